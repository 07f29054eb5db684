"""The tables of collections, documents, versions and chunks (schema `rag`)."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
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
    Column("deleted_at", DateTime(timezone=True)),
    Column("deleted_by", Text),
    Column("deleted_version_id", Uuid),
    Column("floor_version", BigInteger),
    Column("acts", Integer, nullable=False, server_default="0"),
    Column("attachment_of", Text, Computed("metadata ->> 'attachment_of'", persisted=True)),
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
    ForeignKeyConstraint(
        ["tenant_id", "deleted_version_id"],
        ["rag.versions.tenant_id", "rag.versions.version_id"],
        name="documents_deleted_version_fkey",
        use_alter=True,
    ),
    CheckConstraint(f"state in {DOCUMENT_STATES}", name="documents_state_check"),
    Index("documents_updated_idx", "tenant_id", "updated_at"),
    Index("documents_current_version_idx", "tenant_id", "current_version_id"),
    Index(
        "documents_deleted_version_idx",
        "tenant_id",
        "deleted_version_id",
        postgresql_where=text("deleted_version_id is not null"),
    ),
    Index(
        "documents_attachment_idx",
        "tenant_id",
        "source",
        "attachment_of",
        postgresql_where=text("attachment_of is not null"),
    ),
    Index("documents_deleted_idx", "deleted_at", postgresql_where=text("state = 'deleted'")),
    schema="rag",
)
"""`access_members` are e-mail addresses, `access_groups` names of groups; both empty means every member.

`deleted_version_id` is what answered when the document was deleted, and what a restoration brings back.
`floor_version` is the source version that answered when somebody rolled back, or the time at which an upload was
cancelled before it was looked at: up to it nothing is swapped in.
`acts` counts deletions, restorations and rollbacks, so that the events of each have ids of their own.
`attachment_of` is the external id of the document inside which it travelled, from `metadata`, for an index.
"""

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
    Column("rejected_at", DateTime(timezone=True)),
    Column("rejected_by", Text),
    Column("purged_at", DateTime(timezone=True)),
    Column("access_members", ARRAY(Text)),
    Column("access_groups", ARRAY(Text)),
    PrimaryKeyConstraint("tenant_id", "version_id"),
    UniqueConstraint("tenant_id", "document_id", "source_version"),
    ForeignKeyConstraint(
        ["tenant_id", "document_id"], ["rag.documents.tenant_id", "rag.documents.document_id"], ondelete="CASCADE"
    ),
    CheckConstraint(f"state in {VERSION_STATES}", name="versions_state_check"),
    CheckConstraint("waiting in ('turn', 'site', 'provider', 'budget', 'price')", name="versions_waiting_check"),
    Index("versions_pending_idx", "tenant_id", "updated_at", postgresql_where=text("state = 'ingested'")),
    Index("versions_blob_idx", "tenant_id", "blob_uri", postgresql_where=text("blob_uri <> ''")),
    Index(
        "versions_in_progress_idx",
        "tenant_id",
        "updated_at",
        # Thousands may wait for their turn; the few that are at work are counted for each of them.
        postgresql_where=text("state in ('received', 'ingested') and waiting is distinct from 'turn'"),
    ),
    Index(
        "versions_kept_idx",
        "tenant_id",
        "document_id",
        "source_version",
        postgresql_where=text("state in ('superseded', 'failed') and chunks > 0 and purged_at is null"),
    ),
    Index(
        "versions_rejected_idx",
        "tenant_id",
        "document_id",
        "content_hash",
        postgresql_where=text("rejected_at is not null"),
    ),
    schema="rag",
)
"""`waiting` is what a version in progress waits for at the moment, `waiting_until` until when if that is known.

`rejected_at`: somebody rolled back from it, the same bytes do not come in again. `purged_at`: its chunks and vectors
are gone, the row stays as history.
"""

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

answering_periods = Table(
    "answering_periods",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("document_id", Uuid, nullable=False),
    Column("version_id", Uuid, nullable=False),
    Column("answering_from", DateTime(timezone=True), nullable=False),
    Column("answering_until", DateTime(timezone=True)),
    PrimaryKeyConstraint("tenant_id", "document_id", "answering_from"),
    CheckConstraint("answering_until >= answering_from", name="answering_periods_order_check"),
    ForeignKeyConstraint(
        ["tenant_id", "version_id"], ["rag.versions.tenant_id", "rag.versions.version_id"], ondelete="CASCADE"
    ),
    Index(
        "answering_periods_open_idx",
        "tenant_id",
        "document_id",
        unique=True,
        postgresql_where=text("answering_until is null"),
    ),
    Index("answering_periods_version_idx", "tenant_id", "version_id"),
    schema="rag",
)
"""When which version answered, for search as of a time. A trigger on rag.documents writes it whenever `state` or
`current_version_id` changes (schema/rag/r0005): swap, withdrawal, deletion, restore and rollback have nothing to call.
"""

tombstones = Table(
    "tombstones",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("key", LargeBinary, nullable=False),
    Column("source_version", BigInteger, nullable=False),
    Column("deleted_at", DateTime(timezone=True), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    PrimaryKeyConstraint("tenant_id", "key"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    CheckConstraint("octet_length(key) = 32", name="tombstones_key_check"),
    schema="rag",
)
"""What was deleted for good: SHA-256 of tenant, source and external id, and the source version up to which nothing
comes back. It outlives the document and every message about it."""

purge_requests = Table(
    "purge_requests",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("request_id", Uuid, nullable=False),
    Column("documents", ARRAY(Uuid), nullable=False),
    Column("total", Integer, nullable=False),
    Column("note", Text, nullable=False, server_default=text("''")),
    Column("requested_by", Text, nullable=False),
    Column("requested_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("approved_by", Text),
    Column("approved_at", DateTime(timezone=True)),
    Column("finished_at", DateTime(timezone=True)),
    PrimaryKeyConstraint("tenant_id", "request_id"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    CheckConstraint("approved_by <> requested_by", name="purge_requests_two_people_check"),
    CheckConstraint("(approved_by is null) = (approved_at is null)", name="purge_requests_approved_check"),
    schema="core",
)
"""Deleting many documents for good takes two people. `documents` are those that are still to be deleted, of `total`."""
