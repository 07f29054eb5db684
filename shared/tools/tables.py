"""The tables of tools (schema `core`): what a tenant allows, calls and their outcomes, approvals, cases."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from shared.database import metadata

NOW = text("now()")
NOBODY = text("'{}'")

tenant_tools = Table(
    "tenant_tools",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("roles", ARRAY(Text), nullable=False, server_default=NOBODY),
    Column("asking", Text, nullable=False),
    Column("approvers", ARRAY(Text), nullable=False),
    Column("four_eyes", Boolean, nullable=False, server_default=text("true")),
    Column("patience_hours", Integer, nullable=False, server_default="168"),
    Column("settings", JSONB, nullable=False, server_default=NOBODY),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    PrimaryKeyConstraint("tenant_id", "name"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    CheckConstraint("asking in ('always', 'untrusted', 'never')", name="tenant_tools_asking_check"),
    CheckConstraint("patience_hours between 1 and 8760", name="tenant_tools_patience_check"),
    schema="core",
)
"""A tool without a row is as the catalogue says. `roles` empty: every member; `approvers`: roles that may decide."""

tool_calls = Table(
    "tool_calls",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("run_id", Uuid, nullable=False),
    Column("call_key", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("arguments", JSONB, nullable=False),
    Column("ok", Boolean),
    Column("reason", Text),
    Column("result", JSONB),
    Column("attempts", Integer, nullable=False, server_default="1"),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("finished_at", DateTime(timezone=True)),
    PrimaryKeyConstraint("tenant_id", "run_id", "call_key"),
    ForeignKeyConstraint(["tenant_id", "run_id"], ["core.runs.tenant_id", "core.runs.run_id"], ondelete="CASCADE"),
    CheckConstraint("state in ('reserved', 'finished')", name="tool_calls_state_check"),
    schema="core",
)
"""`reserved` before an effect outside, `finished` with its outcome; `reason` is `outcome-unknown` when nobody can say
whether the effect happened."""

approvals = Table(
    "approvals",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("approval_id", Uuid, nullable=False),
    Column("run_id", Uuid, nullable=False),
    Column("call_key", Text, nullable=False),
    Column("tool", Text, nullable=False),
    Column("arguments", JSONB, nullable=False),
    Column("asked_for", Uuid, nullable=False),
    Column("approvers", ARRAY(Text), nullable=False),
    Column("four_eyes", Boolean, nullable=False),
    Column("state", Text, nullable=False, server_default="pending"),
    Column("edited", JSONB),
    Column("note", Text, nullable=False, server_default=""),
    Column("decided_by", Uuid),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Column("decided_at", DateTime(timezone=True)),
    PrimaryKeyConstraint("tenant_id", "approval_id"),
    UniqueConstraint("tenant_id", "run_id", "call_key"),
    ForeignKeyConstraint(["tenant_id", "run_id"], ["core.runs.tenant_id", "core.runs.run_id"], ondelete="CASCADE"),
    CheckConstraint(
        "state in ('pending', 'approved', 'edited', 'refused', 'expired', 'cancelled')", name="approvals_state_check"
    ),
    Index("approvals_pending_idx", "expires_at", postgresql_where=text("state = 'pending'")),
    schema="core",
)
"""`asked_for` is the member whose question it is. `decided_by` has no foreign key: who decided stays on record."""

cases = Table(
    "cases",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("case_number", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("status", Text, nullable=False, server_default="open"),
    Column("note", Text, nullable=False, server_default=""),
    Column("revision", Integer, nullable=False, server_default="1"),
    Column("access_groups", ARRAY(Text), nullable=False, server_default=NOBODY),
    Column("changed_by", Text, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    PrimaryKeyConstraint("tenant_id", "case_number"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    CheckConstraint("status in ('open', 'in-progress', 'waiting', 'closed')", name="cases_status_check"),
    schema="core",
)
"""The example of business data that tools read and write. `access_groups` empty: every member."""
