"""What a received version consists of: its chunks by COPY, vectors it can keep, and commands for those it lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import LostWrite, copy_rows, often
from shared.documents.completion import finish_version
from shared.documents.intake import Reception
from shared.errors import Superseded
from shared.events import EmbedChunks
from shared.messaging import publish
from shared.retrieval.spaces import HOLD, live_spaces, lock_name


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A chunk as ingestion hands it over: text, its place in the document, its language."""

    text: str
    text_hash: str
    start: int
    end: int
    tokens: int
    language: str
    heading_path: tuple[str, ...]
    position: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredAttachment:
    """A file that travelled inside a document (a mail); its bytes are in the object store."""

    name: str
    media_type: str
    uri: str


@dataclass(frozen=True, slots=True)
class Content:
    """What a version consists of."""

    content_hash: str
    blob_uri: str
    size: int
    media_type: str
    language: str
    title: str
    chunks: Sequence[NewChunk]
    attachments: Sequence[StoredAttachment] = ()


# The document is locked first, then the version, then the spaces: each CTE takes its rows from the one before. Other
# versions are looked for at the same time, before a lock was waited for; one that came meanwhile costs nothing, for
# embed asks again before it pays (`vectors.borrow_vectors`).
_TAKE = often(
    "with document as (update rag.documents set updated_at = now(), "
    "title = coalesce(nullif(:title, ''), nullif((select v.file_name from rag.versions v "
    "where v.tenant_id = :tenant and v.version_id = :version), ''), external_id), "
    "state = case when current_version_id is null then 'ingested' else state end "
    "where tenant_id = :tenant and document_id = :document returning 1), "
    "taken as (update rag.versions v set state = 'ingested', content_hash = :hash, blob_uri = :uri, bytes = :size, "
    "media_type = :media_type, language = :language, chunks = :chunks, updated_at = now() from document "
    "where v.tenant_id = :tenant and v.version_id = :version and v.state = 'received' returning 1) "
    "select exists (select from document) as found, exists (select from taken) as taken, "
    f"(select {HOLD} from taken) as held, exists (select from rag.versions o where o.tenant_id = :tenant "
    "and o.document_id = :document and o.version_id <> :version) as others"
)


def store(session: Session, reception: Reception, content: Content, traceparent: str, batch: Batch) -> None:
    """Store the chunks of a received version and ask for its embeddings, all in one transaction.

    Chunks whose text the document had before keep their vectors: only what changed is embedded.
    Raises Superseded when the version was withdrawn, failed or stored by somebody else meanwhile.
    """
    ids = {"tenant": reception.tenant_id, "document": reception.document_id, "version": reception.version_id}
    written = session.execute(
        _TAKE,
        ids
        | lock_name(reception.tenant_id)
        | {
            "title": content.title[:512],
            "hash": content.content_hash,
            "uri": content.blob_uri,
            "size": content.size,
            "media_type": content.media_type,
            "language": content.language,
            "chunks": len(content.chunks),
        },
    ).one()
    if not written.found:
        raise LostWrite("storing a version hit no document")
    if not written.taken:
        raise Superseded("this version is no longer waiting for its chunks")
    chunk_ids = [uuid5(reception.version_id, f"chunk:{ordinal}") for ordinal in range(len(content.chunks))]
    new = list(zip(chunk_ids, content.chunks, strict=True))
    rows = [_chunk_row(reception, chunk_id, ordinal, chunk) for ordinal, (chunk_id, chunk) in enumerate(new)]
    copy_rows(session, "rag.chunks", CHUNK_COLUMNS, rows)
    if written.others:
        session.execute(REUSE, ids)
    complete = True
    for space in live_spaces(session, reception.tenant_id):
        if written.others:
            missing = missing_chunks(session, reception.tenant_id, reception.version_id, space.space_id)
        else:
            missing = [(chunk_id, chunk.tokens) for chunk_id, chunk in new]
        complete = complete and not missing
        for command in _embed_commands(reception, traceparent, space.space_id, split(missing, batch)):
            publish(session, command)
    if complete:
        finish_version(session, reception.tenant_id, reception.version_id)


CHUNK_COLUMNS = (
    "tenant_id",
    "chunk_id",
    "version_id",
    "document_id",
    "ordinal",
    "text",
    "text_hash",
    "start_offset",
    "end_offset",
    "tokens",
    "language",
    "heading_path",
    "position",
)


def _chunk_row(reception: Reception, chunk_id: UUID, ordinal: int, chunk: NewChunk) -> tuple[Any, ...]:
    return (
        reception.tenant_id,
        chunk_id,
        reception.version_id,
        reception.document_id,
        ordinal,
        chunk.text,
        chunk.text_hash,
        chunk.start,
        chunk.end,
        chunk.tokens,
        chunk.language,
        chunk.heading_path,
        chunk.position,
    )


REUSE = text(
    "insert into rag.embeddings (tenant_id, space_id, chunk_id, embedding) "
    "select distinct on (c.chunk_id, e.space_id) c.tenant_id, e.space_id, c.chunk_id, e.embedding "
    "from rag.chunks c cross join lateral (select o.chunk_id from rag.chunks o where o.tenant_id = :tenant "
    "and o.document_id = :document and o.text_hash = c.text_hash and o.version_id <> :version offset 0) old "
    "join rag.embeddings e on e.tenant_id = :tenant and e.chunk_id = old.chunk_id "
    "join rag.tenant_spaces s on s.tenant_id = e.tenant_id and s.space_id = e.space_id "
    "and s.state in ('active', 'filling') "
    "where c.tenant_id = :tenant and c.version_id = :version "
    # Most documents have no other version: nothing is compared then, whatever the planner thinks of it. Before the
    # first ANALYZE it joined a new document's chunks with all of the tenant's (94 ms for 40 chunks in one of 6,000).
    "and exists (select from rag.versions v where v.tenant_id = :tenant and v.document_id = :document "
    "and v.version_id <> :version) on conflict do nothing"
)


@dataclass(frozen=True, slots=True)
class Batch:
    """How much one embedding request may carry: chunks and tokens."""

    chunks: int
    tokens: int


def _embed_commands(
    reception: Reception, traceparent: str, space_id: UUID, groups: Sequence[Sequence[UUID]]
) -> Iterator[EmbedChunks]:
    for group in groups:
        yield EmbedChunks(
            event_id=uuid5(reception.version_id, f"embed:{space_id}:{group[0]}"),
            tenant_id=reception.tenant_id,
            traceparent=traceparent,
            document_id=reception.document_id,
            version_id=reception.version_id,
            space_id=space_id,
            chunk_ids=tuple(group),
        )


def missing_chunks(session: Session, tenant_id: UUID, version_id: UUID, space_id: UUID) -> list[tuple[UUID, int]]:
    """Chunks of a version without a vector in a space, with their tokens, in reading order."""
    rows = session.execute(
        text(
            "select c.chunk_id, c.tokens from rag.chunks c where c.tenant_id = :tenant and c.version_id = :version "
            "and not exists (select from rag.embeddings e where e.tenant_id = :tenant and e.space_id = :space "
            "and e.chunk_id = c.chunk_id offset 0) order by c.ordinal"  # see shared.retrieval.filling.THERE
        ),
        {"tenant": tenant_id, "version": version_id, "space": space_id},
    )
    return [(row.chunk_id, row.tokens) for row in rows]


def split(chunks: Sequence[tuple[UUID, int]], batch: Batch) -> list[list[UUID]]:
    """Chunk ids in groups that one embedding request may carry; a chunk over the token limit goes alone."""
    groups: list[list[UUID]] = []
    tokens = 0
    for chunk_id, size in chunks:
        if not groups or len(groups[-1]) >= batch.chunks or tokens + size > batch.tokens:
            groups.append([])
            tokens = 0
        groups[-1].append(chunk_id)
        tokens += size
    return groups
