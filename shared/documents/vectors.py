"""The vectors of chunks: what is still missing, what the model is shown, how the result is stored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal, copy_rows, vector_literal


def embedding_text(heading_path: Sequence[str], chunk_text: str) -> str:
    """What the model sees of a chunk: its heading path as context, then its text."""
    return f"{' › '.join(heading_path)}\n{chunk_text}" if heading_path else chunk_text


def text_hash(heading_path: Sequence[str], chunk_text: str) -> str:
    """Identity of what is embedded, SHA-256 in hexadecimal: equal texts share a vector."""
    return hashlib.sha256(embedding_text(heading_path, chunk_text).encode()).hexdigest()


def chunks_without_vector(
    session: Session, tenant_id: UUID, version_id: UUID, space_id: UUID, chunk_ids: Sequence[UUID]
) -> list[tuple[UUID, str]]:
    """Those of the chunks that lack a vector, with their embedding text, if the version is still being ingested."""
    rows = session.execute(
        text(
            "select c.chunk_id, c.heading_path, c.text from rag.chunks c "
            "join rag.versions v on v.tenant_id = c.tenant_id and v.version_id = c.version_id "
            "join rag.tenant_spaces s on s.tenant_id = c.tenant_id and s.space_id = :space "
            "and s.state in ('active', 'filling') "
            "where c.tenant_id = :tenant and c.version_id = :version and v.state in ('ingested', 'searchable') "
            "and c.chunk_id = any(cast(:ids as uuid[])) and not exists (select from rag.embeddings e "
            "where e.tenant_id = :tenant and e.space_id = :space and e.chunk_id = c.chunk_id) order by c.ordinal"
        ),
        {"tenant": tenant_id, "version": version_id, "space": space_id, "ids": array_literal(chunk_ids)},
    )
    return [(row.chunk_id, embedding_text(row.heading_path, row.text)) for row in rows]


def space_of(session: Session, space_id: UUID) -> tuple[str, int] | None:
    """Model and dimension of a space, or None."""
    row = session.execute(
        text("select model, dimension from rag.vector_spaces where space_id = :space"), {"space": space_id}
    ).first()
    return (row.model, row.dimension) if row else None


def store_vectors(
    session: Session, tenant_id: UUID, space_id: UUID, chunk_ids: Sequence[UUID], vectors: Sequence[Sequence[float]]
) -> int:
    """Store one vector a chunk; returns how many were new. A chunk that has one by now keeps it."""
    rows = (
        (tenant_id, space_id, chunk_id, vector_literal(vector))
        for chunk_id, vector in zip(chunk_ids, vectors, strict=True)
    )
    return copy_rows(session, "rag.embeddings", ("tenant_id", "space_id", "chunk_id", "embedding"), rows)
