"""The tables of vector spaces and embeddings (schema `rag`)."""

from __future__ import annotations

from typing import Any

from pgvector.sqlalchemy import Vector
from sqlalchemy import (
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    Double,
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

from shared.database import metadata

NOW = text("now()")

vector_spaces = Table(
    "vector_spaces",
    metadata,
    Column("space_id", Uuid, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("model", Text, nullable=False),
    Column("dimension", Integer, nullable=False),
    Column("evidence_floor", Double),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    UniqueConstraint("space_id", "dimension"),
    schema="rag",
)
"""An immutable profile: a model and its dimension. The same for every tenant, hence without a tenant."""

tenant_spaces = Table(
    "tenant_spaces",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("space_id", Uuid, nullable=False),
    Column("state", Text, nullable=False),
    PrimaryKeyConstraint("tenant_id", "space_id"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    ForeignKeyConstraint(["space_id"], ["rag.vector_spaces.space_id"]),
    CheckConstraint("state in ('filling', 'active', 'retired')", name="tenant_spaces_state_check"),
    Index("tenant_spaces_active_idx", "tenant_id", unique=True, postgresql_where=text("state = 'active'")),
    schema="rag",
)
"""Which spaces a tenant has; exactly one answers (`active`)."""

_vector: Any = Vector()

embeddings = Table(
    "embeddings",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("space_id", Uuid, nullable=False),
    Column("chunk_id", Uuid, nullable=False),
    Column("embedding", _vector, nullable=False),
    Column("dimension", Integer, Computed("vector_dims(embedding)", persisted=True), nullable=False),
    PrimaryKeyConstraint("tenant_id", "space_id", "chunk_id"),
    ForeignKeyConstraint(
        ["tenant_id", "chunk_id"], ["rag.chunks.tenant_id", "rag.chunks.chunk_id"], ondelete="CASCADE"
    ),
    # The type of a space: a vector of another dimension than its space cannot be stored.
    ForeignKeyConstraint(["space_id", "dimension"], ["rag.vector_spaces.space_id", "rag.vector_spaces.dimension"]),
    ForeignKeyConstraint(
        ["tenant_id", "space_id"], ["rag.tenant_spaces.tenant_id", "rag.tenant_spaces.space_id"], ondelete="CASCADE"
    ),
    Index("embeddings_chunk_idx", "tenant_id", "chunk_id"),
    schema="rag",
)
