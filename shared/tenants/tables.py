"""The tables of tenants, members, groups and sources (schema `core`)."""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Index,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from shared.database import metadata

NOW = text("now()")

tenants = Table(
    "tenants",
    metadata,
    Column("tenant_id", Uuid, primary_key=True),
    Column("slug", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("closed_at", DateTime(timezone=True)),
    CheckConstraint("slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'", name="tenants_slug_check"),
    schema="core",
)

members = Table(
    "members",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("member_id", Uuid, nullable=False),
    Column("email", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    PrimaryKeyConstraint("tenant_id", "member_id"),
    UniqueConstraint("tenant_id", "email"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    CheckConstraint("role in ('member', 'curator', 'admin', 'operator')", name="members_role_check"),
    Index("members_email_idx", "email"),
    schema="core",
)

groups = Table(
    "groups",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("group_id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    PrimaryKeyConstraint("tenant_id", "group_id"),
    UniqueConstraint("tenant_id", "name"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    schema="core",
)

group_members = Table(
    "group_members",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("group_id", Uuid, nullable=False),
    Column("member_id", Uuid, nullable=False),
    PrimaryKeyConstraint("tenant_id", "group_id", "member_id"),
    ForeignKeyConstraint(
        ["tenant_id", "group_id"], ["core.groups.tenant_id", "core.groups.group_id"], ondelete="CASCADE"
    ),
    ForeignKeyConstraint(
        ["tenant_id", "member_id"], ["core.members.tenant_id", "core.members.member_id"], ondelete="CASCADE"
    ),
    Index("group_members_member_idx", "tenant_id", "member_id"),
    schema="core",
)

sources = Table(
    "sources",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("source", Text, nullable=False),
    PrimaryKeyConstraint("tenant_id", "source"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    schema="core",
)
"""A source (one topic each) may speak for a tenant only when it is bound here."""

ERASURE_STATES = ("closed", "erasing", "proving", "erased")

erasures = Table(
    "erasures",
    metadata,
    Column("tenant_id", Uuid, primary_key=True),
    Column("slug", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("requested_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("before", JSONB, nullable=False, server_default=text("'{}'")),
    Column("deleted", JSONB, nullable=False, server_default=text("'{}'")),
    Column("erased_at", DateTime(timezone=True)),
    Column("certificate", JSONB),
    CheckConstraint(f"state in {ERASURE_STATES}", name="erasures_state_check"),
    schema="core",
)
"""A tombstone for each tenant that was closed: it outlives the tenant, so that no late message brings anything back.

`before` are rows by table and blobs when erasing began, `deleted` the rows that were taken out until now.
"""
