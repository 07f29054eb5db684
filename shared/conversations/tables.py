"""The tables of conversations, runs and checkpoints (schema `core`)."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    Numeric,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from shared.database import metadata

NOW = text("now()")

EUR = Numeric(18, 9)
"""Euros to the nano, as in the ledger of shared.money."""

RUN_STATES = ("queued", "running", "waiting", "answered", "failed", "cancelled")

conversations = Table(
    "conversations",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("conversation_id", Uuid, nullable=False),
    Column("member_id", Uuid, nullable=False),
    Column("title", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    PrimaryKeyConstraint("tenant_id", "conversation_id"),
    ForeignKeyConstraint(
        ["tenant_id", "member_id"], ["core.members.tenant_id", "core.members.member_id"], ondelete="CASCADE"
    ),
    Index("conversations_member_idx", "tenant_id", "member_id", "created_at"),
    schema="core",
)

runs = Table(
    "runs",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("run_id", Uuid, nullable=False),
    Column("conversation_id", Uuid, nullable=False),
    Column("member_id", Uuid, nullable=False),
    Column("question", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("epoch", Integer, nullable=False, server_default="0"),
    Column("crashes", Integer, nullable=False, server_default="0"),
    Column("lease_until", DateTime(timezone=True)),
    Column("answer", Text),
    Column("no_evidence", Boolean),
    Column("model", Text),
    Column("input_tokens", Integer),
    Column("output_tokens", Integer),
    Column("reason", Text),
    Column("message", Text),
    Column("traceparent", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("finished_at", DateTime(timezone=True)),
    Column("cost_eur", EUR, nullable=False, server_default="0"),
    Column("partial", Boolean, nullable=False, server_default=text("false")),
    Column("language", Text),
    Column("prompts", Text),
    Column("space_id", Uuid),
    Column("waiting_for", Text),
    Column("waiting_until", DateTime(timezone=True)),
    PrimaryKeyConstraint("tenant_id", "run_id"),
    ForeignKeyConstraint(
        ["tenant_id", "conversation_id"],
        ["core.conversations.tenant_id", "core.conversations.conversation_id"],
        ondelete="CASCADE",
    ),
    ForeignKeyConstraint(
        ["tenant_id", "member_id"], ["core.members.tenant_id", "core.members.member_id"], ondelete="CASCADE"
    ),
    CheckConstraint(f"state in {RUN_STATES}", name="runs_state_check"),
    CheckConstraint("waiting_for in ('approval', 'budget', 'price', 'provider')", name="runs_waiting_check"),
    Index("runs_conversation_idx", "tenant_id", "conversation_id", "created_at"),
    Index("runs_member_idx", "tenant_id", "member_id", "created_at"),
    Index("runs_open_idx", "created_at", postgresql_where=text("state in ('queued', 'running')")),
    Index("runs_waiting_idx", "waiting_until", postgresql_where=text("state = 'waiting'")),
    schema="core",
)

run_events = Table(
    "run_events",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("run_id", Uuid, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("data", JSONB, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    PrimaryKeyConstraint("tenant_id", "run_id", "seq"),
    ForeignKeyConstraint(["tenant_id", "run_id"], ["core.runs.tenant_id", "core.runs.run_id"], ondelete="CASCADE"),
    schema="core",
)

citations = Table(
    "citations",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("run_id", Uuid, nullable=False),
    Column("number", Integer, nullable=False),
    Column("document_id", Uuid, nullable=False),
    Column("version_id", Uuid, nullable=False),
    Column("chunk_id", Uuid, nullable=False),
    Column("title", Text, nullable=False),
    Column("heading_path", JSONB, nullable=False),
    Column("page", Integer),
    Column("quote", Text, nullable=False),
    Column("quote_start", Integer, nullable=False),
    Column("quote_end", Integer, nullable=False),
    PrimaryKeyConstraint("tenant_id", "run_id", "number"),
    ForeignKeyConstraint(["tenant_id", "run_id"], ["core.runs.tenant_id", "core.runs.run_id"], ondelete="CASCADE"),
    schema="core",
)
"""`quote_start` and `quote_end` are character offsets into the chunk's text."""

model_calls = Table(
    "model_calls",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("run_id", Uuid, nullable=False),
    Column("call_key", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("prompt", Text, nullable=False, server_default=text("''")),
    Column("reply", JSONB, nullable=False),
    Column("input_tokens", Integer, nullable=False),
    Column("output_tokens", Integer, nullable=False),
    Column("cost_eur", EUR, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    PrimaryKeyConstraint("tenant_id", "run_id", "call_key"),
    ForeignKeyConstraint(["tenant_id", "run_id"], ["core.runs.tenant_id", "core.runs.run_id"], ondelete="CASCADE"),
    schema="core",
)
"""Finished model calls of runs, keyed by their place in the graph: what is here is never paid again."""

feedback = Table(
    "feedback",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("run_id", Uuid, nullable=False),
    Column("member_id", Uuid, nullable=False),
    Column("rating", SmallInteger, nullable=False),
    Column("comment", Text, nullable=False, server_default=text("''")),
    Column("space_id", Uuid),
    Column("citations", JSONB, nullable=False, server_default=text("'[]'")),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    PrimaryKeyConstraint("tenant_id", "run_id", "member_id"),
    ForeignKeyConstraint(["tenant_id", "run_id"], ["core.runs.tenant_id", "core.runs.run_id"], ondelete="CASCADE"),
    ForeignKeyConstraint(
        ["tenant_id", "member_id"], ["core.members.tenant_id", "core.members.member_id"], ondelete="CASCADE"
    ),
    CheckConstraint("rating in (-1, 1)", name="feedback_rating_check"),
    Index("feedback_created_idx", "tenant_id", "created_at"),
    schema="core",
)
"""What a member thought of an answer: up (1) or down (-1), against what it cited and the space it was found in."""

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("thread_id", Text, nullable=False),
    Column("checkpoint_ns", Text, nullable=False),
    Column("checkpoint_id", Text, nullable=False),
    Column("parent_id", Text),
    Column("kind", Text, nullable=False),
    Column("checkpoint", LargeBinary, nullable=False),
    Column("metadata", JSONB, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    PrimaryKeyConstraint("tenant_id", "thread_id", "checkpoint_ns", "checkpoint_id"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    schema="core",
)

checkpoint_parts = Table(
    "checkpoint_parts",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("thread_id", Text, nullable=False),
    Column("checkpoint_ns", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("first", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("value", LargeBinary, nullable=False),
    PrimaryKeyConstraint("tenant_id", "thread_id", "checkpoint_ns", "channel", "first"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    schema="core",
)
"""Large values of a run's state, stored once: a list by its items from `first` on (functions/agent/parts.py)."""

checkpoint_writes = Table(
    "checkpoint_writes",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("thread_id", Text, nullable=False),
    Column("checkpoint_ns", Text, nullable=False),
    Column("checkpoint_id", Text, nullable=False),
    Column("task_id", Text, nullable=False),
    Column("task_path", Text, nullable=False),
    Column("position", Integer, nullable=False),
    Column("channel", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("value", LargeBinary, nullable=False),
    PrimaryKeyConstraint("tenant_id", "thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "position"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    schema="core",
)
