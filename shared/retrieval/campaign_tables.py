"""The tables of campaigns (schema `rag`): a tenant's way from one vector space to another."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Index,
    Integer,
    Numeric,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from shared.database import metadata

NOW = text("now()")
EUR = Numeric(18, 9)

OPEN = ("planned", "filling", "paused", "ready", "switched")
"""States of a campaign that is not over; a tenant has one such campaign at most (the index says so)."""

ENDED = ("rolled-back", "completed", "cancelled", "failed")

campaigns = Table(
    "campaigns",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("campaign_id", Uuid, nullable=False),
    Column("source_space_id", Uuid, nullable=False),
    Column("target_space_id", Uuid, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("message", Text),
    Column("next_action", Text),
    Column("history", Boolean, nullable=False, server_default=text("true")),
    Column("budget_eur", EUR),
    Column("spent_eur", EUR, nullable=False, server_default="0"),
    Column("estimate", JSONB, nullable=False, server_default=text("'{}'")),
    Column("comparison", JSONB),
    Column("cursor", Uuid),
    Column("slots", Integer, nullable=False, server_default="1"),
    Column("batch", Integer),
    Column("actor", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("started_at", DateTime(timezone=True)),
    Column("ready_at", DateTime(timezone=True)),
    Column("switched_at", DateTime(timezone=True)),
    Column("grace_until", DateTime(timezone=True)),
    Column("ended_at", DateTime(timezone=True)),
    Column("drop_after", DateTime(timezone=True)),
    Column("dropped_at", DateTime(timezone=True)),
    PrimaryKeyConstraint("tenant_id", "campaign_id"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    ForeignKeyConstraint(["source_space_id"], ["rag.vector_spaces.space_id"]),
    ForeignKeyConstraint(["target_space_id"], ["rag.vector_spaces.space_id"]),
    CheckConstraint(f"state in {OPEN + ENDED}", name="campaigns_state_check"),
    CheckConstraint("budget_eur > 0", name="campaigns_budget_check"),
    CheckConstraint("batch > 0", name="campaigns_batch_check"),
    CheckConstraint("source_space_id <> target_space_id", name="campaigns_spaces_check"),
    Index("campaigns_open_idx", "tenant_id", unique=True, postgresql_where=text(f"state in {OPEN}")),
    schema="rag",
)
"""One row a campaign. `cursor` is the version up to which batches were sent, `slots` how many may be under way,
`batch` how many chunks one may have once the model was too slow for more;
`spent_eur` what its ended batches cost (those under way are added from the ledger). `drop_after` says from when on the
space it leaves behind may go, `dropped_at` that it is gone."""

campaign_batches = Table(
    "campaign_batches",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("campaign_id", Uuid, nullable=False),
    Column("batch_id", Uuid, nullable=False),
    Column("version_id", Uuid, nullable=False),
    Column("chunk_ids", ARRAY(Uuid), nullable=False),
    Column("arrival", Boolean, nullable=False, server_default=text("false")),
    Column("attempts", Integer, nullable=False, server_default="1"),
    Column("sent_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("waiting", Text),
    Column("waiting_until", DateTime(timezone=True)),
    Column("paid_before_eur", EUR, nullable=False, server_default="0"),
    PrimaryKeyConstraint("tenant_id", "campaign_id", "batch_id"),
    ForeignKeyConstraint(
        ["tenant_id", "campaign_id"], ["rag.campaigns.tenant_id", "rag.campaigns.campaign_id"], ondelete="CASCADE"
    ),
    ForeignKeyConstraint(
        ["tenant_id", "version_id"], ["rag.versions.tenant_id", "rag.versions.version_id"], ondelete="CASCADE"
    ),
    schema="rag",
)
"""Batches under way in the target space, named by the key of their call in the ledger; an ended one has no row.

`arrival`: a new document's own batch, which takes no slot but is paid by the campaign too. `paid_before_eur` is what
the same call had cost an earlier campaign.
"""

embedding_failures = Table(
    "embedding_failures",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("space_id", Uuid, nullable=False),
    Column("chunk_id", Uuid, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("next_action", Text, nullable=False),
    Column("failed_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    PrimaryKeyConstraint("tenant_id", "space_id", "chunk_id"),
    ForeignKeyConstraint(
        ["tenant_id", "space_id"], ["rag.tenant_spaces.tenant_id", "rag.tenant_spaces.space_id"], ondelete="CASCADE"
    ),
    ForeignKeyConstraint(
        ["tenant_id", "chunk_id"], ["rag.chunks.tenant_id", "rag.chunks.chunk_id"], ondelete="CASCADE"
    ),
    schema="rag",
)
"""Chunks that the model of a filling space refuses: they hold up neither their document nor the campaign."""
