"""The vectors of chunks: what is still missing, what the model is shown, how the result is stored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal, copy_rows


def embedding_text(heading_path: Sequence[str], chunk_text: str) -> str:
    """What the model sees of a chunk: its heading path as context, then its text."""
    return f"{' › '.join(heading_path)}\n{chunk_text}" if heading_path else chunk_text


def text_hash(heading_path: Sequence[str], chunk_text: str) -> str:
    """Identity of what is embedded, SHA-256 in hexadecimal: equal texts share a vector."""
    return hashlib.sha256(embedding_text(heading_path, chunk_text).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Lack:
    """What a batch still lacks, and what else is to be known of it; without chunks only that nothing is."""

    chunks: list[tuple[UUID, str]]
    """With their embedding text, in the order of the document."""
    filling: bool = False
    """Whether a campaign fills the space, instead of the space answering."""
    waits: bool = False
    """Whether the version is shown as waiting for something."""
    others: bool = False
    """Whether the document has other versions, whose vectors may be borrowed."""


_LACK = text(
    # As JSON: the driver reads an array character by character in Python.
    "select c.chunk_id, array_to_json(c.heading_path) as heading_path, c.text, "
    "s.state = 'filling' as filling, v.waiting is not null as waits, exists (select from rag.versions o "
    "where o.tenant_id = :tenant and o.document_id = v.document_id and o.version_id <> v.version_id) as others "
    "from rag.chunks c join rag.versions v on v.tenant_id = c.tenant_id and v.version_id = c.version_id "
    "join rag.tenant_spaces s on s.tenant_id = c.tenant_id and s.space_id = :space "
    "and s.state in ('active', 'filling') "
    "where c.tenant_id = :tenant and c.version_id = :version "
    "and (v.state in ('ingested', 'searchable') or (v.state = 'superseded' and exists (select from "
    "rag.campaign_batches b where b.tenant_id = :tenant and b.batch_id = cast(:key as uuid) and not b.arrival))) "
    "and c.chunk_id = any(cast(:ids as uuid[])) and not exists (select from rag.embeddings e "
    "where e.tenant_id = :tenant and e.space_id = :space and e.chunk_id = c.chunk_id offset 0) "
    "order by c.ordinal"
)


def chunks_without_vector(
    session: Session,
    tenant_id: UUID,
    version_id: UUID,
    space_id: UUID,
    chunk_ids: Sequence[UUID],
    *,
    key: UUID | None = None,
) -> Lack:
    """Those of the chunks that lack a vector, if the space and the version are in use.

    A version that was superseded meanwhile is not, unless the batch of that `key` was sent by a campaign, which
    carries earlier versions over too.
    """
    values = {"tenant": tenant_id, "version": version_id, "space": space_id, "ids": array_literal(chunk_ids)}
    rows = session.execute(_LACK, values | {"key": key}).all()
    if not rows:
        return Lack([])
    chunks = [(row.chunk_id, embedding_text(row.heading_path, row.text)) for row in rows]
    return Lack(chunks, rows[0].filling, rows[0].waits, rows[0].others)


def borrow_vectors(
    session: Session, tenant_id: UUID, version_id: UUID, space_id: UUID, chunk_ids: Sequence[UUID]
) -> None:
    """Copy what equal chunks of the document's other versions got since these were stored.

    Two versions with the same text that arrive together are both stored before either has vectors; the batch of the
    second then has nothing to pay for.
    """
    session.execute(
        text(
            "insert into rag.embeddings (tenant_id, space_id, chunk_id, embedding) "
            "select distinct on (c.chunk_id) c.tenant_id, e.space_id, c.chunk_id, e.embedding "
            "from rag.chunks c join rag.chunks old on old.tenant_id = c.tenant_id "
            "and old.document_id = c.document_id and old.text_hash = c.text_hash and old.version_id <> c.version_id "
            "join rag.embeddings e on e.tenant_id = old.tenant_id and e.space_id = :space "
            "and e.chunk_id = old.chunk_id "
            "join rag.tenant_spaces s on s.tenant_id = e.tenant_id and s.space_id = e.space_id "
            "and s.state in ('active', 'filling') "
            "where c.tenant_id = :tenant and c.version_id = :version and c.chunk_id = any(cast(:ids as uuid[])) "
            "and not exists (select from rag.embeddings mine where mine.tenant_id = :tenant "
            "and mine.space_id = :space and mine.chunk_id = c.chunk_id) on conflict do nothing"
        ),
        {"tenant": tenant_id, "version": version_id, "space": space_id, "ids": array_literal(chunk_ids)},
    )


def store_vectors(
    session: Session, tenant_id: UUID, space_id: UUID, chunk_ids: Sequence[UUID], vectors: Sequence[Sequence[float]]
) -> int:
    """Store one vector a chunk; returns how many were new. A chunk that has one by now keeps it.

    Chunks that were purged while the model worked get none, and none does in a space that was given up meanwhile.
    """
    tenant, space = UUID(str(tenant_id)), UUID(str(space_id))
    rows = ((tenant, space, chunk_id, vector) for chunk_id, vector in zip(chunk_ids, vectors, strict=True))
    # "offset 0": each of a batch is looked up by its key, whatever is guessed of a table without statistics.
    wanted = (
        f"exists (select from rag.chunks c where c.tenant_id = '{tenant}' and c.chunk_id = incoming.chunk_id offset 0) "
        f"and exists (select from rag.tenant_spaces s where s.tenant_id = '{tenant}' and s.space_id = '{space}' "
        "and s.state <> 'retired')"
    )
    columns = ("tenant_id", "space_id", "chunk_id", "embedding")
    return copy_rows(session, "rag.embeddings", columns, rows, only=wanted)
