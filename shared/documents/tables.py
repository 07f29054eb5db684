"""The tables of collections, documents, versions and chunks (schema `rag`)."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
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

DOCUMENT_STATES = ("received", "ingested", "searchable", "failed", "deleted")
VERSION_STATES = ("received", "ingested", "searchable", "superseded", "unchanged", "failed")

collections = Table(
    "collections",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("collection_id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    PrimaryKeyConstraint("tenant_id", "collection_id"),
    UniqueConstraint("tenant_id", "name"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    schema="rag",
)

documents = Table(
    "documents",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("document_id", Uuid, nullable=False),
    Column("collection_id", Uuid, nullable=False),
    Column("source", Text, nullable=False),
    Column("external_id", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("message", Text),
    Column("next_action", Text),
    Column("current_version_id", Uuid),
    Column("withdrawn_version", BigInteger),
    Column("access_members", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("access_groups", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'")),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    PrimaryKeyConstraint("tenant_id", "document_id"),
    UniqueConstraint("tenant_id", "source", "external_id"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    ForeignKeyConstraint(
        ["tenant_id", "collection_id"], ["rag.collections.tenant_id", "rag.collections.collection_id"]
    ),
    ForeignKeyConstraint(
        ["tenant_id", "current_version_id"],
        ["rag.versions.tenant_id", "rag.versions.version_id"],
        name="documents_current_version_fkey",
        use_alter=True,
    ),
    CheckConstraint(f"state in {DOCUMENT_STATES}", name="documents_state_check"),
    Index("documents_updated_idx", "tenant_id", "updated_at"),
    schema="rag",
)
"""`access_members` are e-mail addresses, `access_groups` names of groups; both empty means every member."""

versions = Table(
    "versions",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("version_id", Uuid, nullable=False),
    Column("document_id", Uuid, nullable=False),
    Column("source_version", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("content_hash", Text, nullable=False),
    Column("blob_uri", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("file_name", Text, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("language", Text, nullable=False, server_default="simple"),
    Column("chunks", Integer, nullable=False, server_default="0"),
    Column("reason", Text),
    Column("message", Text),
    Column("next_action", Text),
    Column("traceparent", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("waiting", Text),
    Column("waiting_until", DateTime(timezone=True)),
    PrimaryKeyConstraint("tenant_id", "version_id"),
    UniqueConstraint("tenant_id", "document_id", "source_version"),
    ForeignKeyConstraint(
        ["tenant_id", "document_id"], ["rag.documents.tenant_id", "rag.documents.document_id"], ondelete="CASCADE"
    ),
    CheckConstraint(f"state in {VERSION_STATES}", name="versions_state_check"),
    CheckConstraint("waiting in ('turn', 'provider', 'budget', 'price')", name="versions_waiting_check"),
    Index("versions_pending_idx", "tenant_id", "updated_at", postgresql_where=text("state = 'ingested'")),
    Index(
        "versions_in_progress_idx",
        "tenant_id",
        "updated_at",
        # Thousands may wait for their turn; the few that are at work are counted for each of them.
        postgresql_where=text("state in ('received', 'ingested') and waiting is distinct from 'turn'"),
    ),
    schema="rag",
)
"""`waiting` is what a version in progress waits for at the moment, `waiting_until` until when if that is known."""

waiting_messages = Table(
    "waiting_messages",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("event_id", Uuid, nullable=False),
    Column("document_id", Uuid, nullable=False),
    Column("version_id", Uuid, nullable=False),
    Column("topic", Text, nullable=False),
    Column("data", Text, nullable=False),
    Column("attributes", JSONB, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    PrimaryKeyConstraint("tenant_id", "event_id"),
    ForeignKeyConstraint(
        ["tenant_id", "version_id"], ["rag.versions.tenant_id", "rag.versions.version_id"], ondelete="CASCADE"
    ),
    Index("waiting_messages_turn_idx", "tenant_id", "created_at"),
    schema="core",
)
"""Submissions over a tenant's share: they go back to the bus, oldest first, as its documents are finished."""

chunks = Table(
    "chunks",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("chunk_id", Uuid, nullable=False),
    Column("version_id", Uuid, nullable=False),
    Column("document_id", Uuid, nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Column("text_hash", Text, nullable=False),
    Column("start_offset", Integer, nullable=False),
    Column("end_offset", Integer, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("language", Text, nullable=False),
    Column("heading_path", ARRAY(Text), nullable=False),
    Column("position", JSONB, nullable=False),
    PrimaryKeyConstraint("tenant_id", "chunk_id"),
    UniqueConstraint("tenant_id", "version_id", "ordinal"),
    ForeignKeyConstraint(
        ["tenant_id", "version_id"], ["rag.versions.tenant_id", "rag.versions.version_id"], ondelete="CASCADE"
    ),
    ForeignKeyConstraint(
        ["tenant_id", "document_id"], ["rag.documents.tenant_id", "rag.documents.document_id"], ondelete="CASCADE"
    ),
    Index("chunks_document_idx", "tenant_id", "document_id", "text_hash"),
    schema="rag",
)
