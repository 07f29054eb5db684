"""The tables of blobs (schema `core`): the collector's marks, and uploads that go straight to the object store."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Index,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    text,
)

from shared.database import metadata

blob_marks = Table(
    "blob_marks",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("content_hash", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("marked_at", DateTime(timezone=True), nullable=False),
    PrimaryKeyConstraint("tenant_id", "content_hash"),
    schema="core",
)
"""A blob that nothing referred to at `marked_at`, in the state `version`. Without a reference to the tenant: blobs of
a tenant that is gone are collected too."""

uploads = Table(
    "uploads",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("upload_id", Uuid, nullable=False),
    Column("member_id", Uuid, nullable=False),
    Column("file_name", Text, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("content_hash", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("token_hash", Text, nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Column("stored_at", DateTime(timezone=True)),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    PrimaryKeyConstraint("tenant_id", "upload_id"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    ForeignKeyConstraint(
        ["tenant_id", "member_id"], ["core.members.tenant_id", "core.members.member_id"], ondelete="CASCADE"
    ),
    CheckConstraint("bytes > 0", name="uploads_bytes_check"),
    Index("uploads_expired_idx", "expires_at"),
    schema="core",
)
"""An upload that a member may make once until `expires_at`: exactly these bytes, known by their SHA-256 and number.
`token_hash` is the SHA-256 of the secret in the address, `stored_at` when it was used."""
