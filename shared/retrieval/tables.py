"""The tables of vector spaces and embeddings (schema `rag`)."""

from __future__ import annotations

from typing import Any

from pgvector.sqlalchemy import Vector
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

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
    Column("chunker", Text, nullable=False, server_default="structure-1/800/80"),
    Column("query_prefix", Text, nullable=False, server_default=""),
    Column("passage_prefix", Text, nullable=False, server_default=""),
    UniqueConstraint("space_id", "dimension"),
    UniqueConstraint(
        "model", "dimension", "chunker", "query_prefix", "passage_prefix", name="vector_spaces_profile_key"
    ),
    CheckConstraint("dimension between 1 and 4000", name="vector_spaces_dimension_check"),
    schema="rag",
)
"""A profile: model, dimension, chunker, what is written before a text. Immutable by a trigger; only the evidence floor,
a measurement about it, may change. The same for every tenant, hence without a tenant."""

tenant_spaces = Table(
    "tenant_spaces",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("space_id", Uuid, nullable=False),
    Column("state", Text, nullable=False),
    PrimaryKeyConstraint("tenant_id", "space_id"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    ForeignKeyConstraint(["space_id"], ["rag.vector_spaces.space_id"]),
    CheckConstraint("state in ('filling', 'active', 'paused', 'retired')", name="tenant_spaces_state_check"),
    Index("tenant_spaces_active_idx", "tenant_id", unique=True, postgresql_where=text("state = 'active'")),
    schema="rag",
)
"""Which spaces a tenant has; exactly one answers (`active`).

`filling`: new versions need vectors there too; `paused`: they do not, what is there stays; `retired`: being dropped.
"""

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

_C = Text(collation="C")

chunk_terms = Table(
    "chunk_terms",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("chunk_id", Uuid, nullable=False),
    Column("document_id", Uuid, nullable=False),
    Column("version_id", Uuid, nullable=False),
    Column("language", Text, nullable=False),
    Column("length", Integer, nullable=False),
    Column("terms", ARRAY(Integer), nullable=False),
    Column("markers", ARRAY(Integer)),
    PrimaryKeyConstraint("tenant_id", "chunk_id"),
    ForeignKeyConstraint(
        ["tenant_id", "chunk_id"], ["rag.chunks.tenant_id", "rag.chunks.chunk_id"], ondelete="CASCADE"
    ),
    Index("chunk_terms_version_idx", "tenant_id", "version_id", postgresql_include=["chunk_id"]),
    Index("chunk_terms_terms_idx", "terms", postgresql_using="gin", postgresql_with={"fastupdate": "off"}),
    schema="rag",
)
"""What a chunk is found by: its stems as numbers that carry the tenant, and its length in words without stop words.

Written by a trigger on rag.chunks; one chunk, one row. `markers` say which stems it has twice, three times, five times
or more; where they are null (stored before r0009) they are among the terms.
"""

vocabulary = Table(
    "vocabulary",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("language", Text, nullable=False),
    Column("stem", _C, nullable=False),
    Column("backwards", _C, Computed("tenant_id::text || language || reverse(stem)", persisted=True), nullable=False),
    Column("spellings", ARRAY(Integer), nullable=False),
    PrimaryKeyConstraint("tenant_id", "language", "stem"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    Index("vocabulary_backwards_idx", "backwards"),
    Index("vocabulary_spellings_idx", "spellings", postgresql_using="gin", postgresql_with={"fastupdate": "off"}),
    schema="rag",
)
"""The stems of a tenant's chunks, for compounds (by either end) and typing errors; index care prunes it."""

term_statistics = Table(
    "term_statistics",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("term", Integer, nullable=False),
    Column("chunks", Integer, nullable=False),
    PrimaryKeyConstraint("tenant_id", "term"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    schema="rag",
)
"""In how many chunks a term is, for terms in many; what is not here is rare and counted when it is asked for."""

corpus_statistics = Table(
    "corpus_statistics",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("chunks", Integer, nullable=False),
    Column("average_length", Double, nullable=False),
    Column("refreshed_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    PrimaryKeyConstraint("tenant_id"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    schema="rag",
)
"""Size of a tenant's corpus and mean length of its chunks, as of the last index care."""

term_segments = Table(
    "term_segments",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("bits", SmallInteger, nullable=False),
    Column("part", Integer, nullable=False),
    Column("chunks", Integer, nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("fingerprint", BigInteger, nullable=False),
    Column("terms", ARRAY(Integer), nullable=False),
    Column("counts", ARRAY(Integer), nullable=False),
    PrimaryKeyConstraint("tenant_id", "bits", "part"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    schema="rag",
)
"""What the two tables above are added up from: the chunks whose version's id begins with the `bits` bits of `part`.

`terms` and, in the same places, in how many of the segment's chunks each is; `length` is the sum of theirs;
`fingerprint` is of the ids of the chunks that were counted (shared.retrieval.segments).
"""

recall_probes = Table(
    "recall_probes",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("space_id", Uuid, nullable=False),
    Column("probed_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("queries", Integer, nullable=False),
    Column("mean", Double, nullable=False),
    Column("worst", Double, nullable=False),
    Column("method", Text, nullable=False),
    PrimaryKeyConstraint("tenant_id", "space_id", "probed_at"),
    ForeignKeyConstraint(
        ["tenant_id", "space_id"], ["rag.tenant_spaces.tenant_id", "rag.tenant_spaces.space_id"], ondelete="CASCADE"
    ),
    CheckConstraint("method in ('hnsw', 'ivfflat', 'exact')", name="recall_probes_method_check"),
    schema="rag",
)
"""recall@10 of approximate against exact search over `queries` probes; `worst` is the single worst of them."""
