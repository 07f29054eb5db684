"""The tables of web sources, their pages, and the sites they are on (schema `core`)."""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    Interval,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)

from shared.database import metadata

NOW = text("now()")

KINDS = ("page", "sitemap")
PAGE_STATES = ("new", "fetched", "failed", "gone", "excluded")
ROBOTS_STATES = ("rules", "all", "none")

web_sources = Table(
    "web_sources",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("web_source_id", Uuid, nullable=False),
    Column("parent_id", Uuid),
    Column("url", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("collection", Text, nullable=False, server_default="default"),
    Column("refresh_every", Interval, nullable=False, server_default=text("'1 day'::interval")),
    Column("next_fetch_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("fetched_at", DateTime(timezone=True)),
    Column("etag", Text, nullable=False, server_default=""),
    Column("last_modified", Text, nullable=False, server_default=""),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("reason", Text),
    Column("message", Text),
    Column("next_action", Text),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    PrimaryKeyConstraint("tenant_id", "web_source_id"),
    UniqueConstraint("tenant_id", "url"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    ForeignKeyConstraint(
        ["tenant_id", "parent_id"],
        ["core.web_sources.tenant_id", "core.web_sources.web_source_id"],
        ondelete="CASCADE",
    ),
    CheckConstraint(f"kind in {KINDS}", name="web_sources_kind_check"),
    Index("web_sources_due_idx", "next_fetch_at", postgresql_where=text("kind = 'sitemap'")),
    schema="core",
)
"""What a tenant asked for. For a `page`, its one row in web_pages is what is fetched; `parent_id` is the index that
named a sitemap."""

web_pages = Table(
    "web_pages",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("page_id", Uuid, nullable=False),
    Column("web_source_id", Uuid, nullable=False),
    Column("url", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("state", Text, nullable=False, server_default="new"),
    Column("document_id", Uuid, nullable=False),
    Column("content_hash", Text, nullable=False, server_default=""),
    Column("etag", Text, nullable=False, server_default=""),
    Column("last_modified", Text, nullable=False, server_default=""),
    Column("missing", Integer, nullable=False, server_default="0"),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("reason", Text),
    Column("message", Text),
    Column("next_action", Text),
    Column("next_fetch_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("fetched_at", DateTime(timezone=True)),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    PrimaryKeyConstraint("tenant_id", "page_id"),
    UniqueConstraint("tenant_id", "url"),
    ForeignKeyConstraint(
        ["tenant_id", "web_source_id"],
        ["core.web_sources.tenant_id", "core.web_sources.web_source_id"],
        ondelete="CASCADE",
    ),
    CheckConstraint(f"state in {PAGE_STATES}", name="web_pages_state_check"),
    Index("web_pages_due_idx", "next_fetch_at", postgresql_where=text("state <> 'excluded'")),
    Index("web_pages_source_idx", "tenant_id", "web_source_id"),
    schema="core",
)
"""`etag` and `last_modified` belong to the content with `content_hash`; `missing` counts 404 and 410 in a row;
`gone`: withdrawn after two of them; `excluded`: somebody deleted the document, so it is not fetched any more."""

web_hosts = Table(
    "web_hosts",
    metadata,
    Column("origin", Text, primary_key=True),
    Column("next_turn_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("crawl_delay", Double),
    Column("robots_state", Text),
    Column("robots", Text, nullable=False, server_default=""),
    Column("robots_until", DateTime(timezone=True)),
    CheckConstraint(f"robots_state in {ROBOTS_STATES}", name="web_hosts_robots_check"),
    schema="core",
)
"""A site, for all tenants together: reached only through definer functions (`shared.web_sources.sites`)."""

web_turns = Table(
    "web_turns",
    metadata,
    Column("origin", Text, nullable=False),
    Column("turn_key", Uuid, nullable=False),
    Column("turn_at", DateTime(timezone=True), nullable=False),
    PrimaryKeyConstraint("origin", "turn_key"),
    ForeignKeyConstraint(["origin"], ["core.web_hosts.origin"], ondelete="CASCADE"),
    schema="core",
)
"""Who may ask a site when: a message that comes back at its time finds the turn it was given."""
