"""How a document gets in: reception of a version, its chunks, its failure, and withdrawal.

Every function works in the caller's tenant session; the lock order is document, then version.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal, copy_rows, write_one
from shared.documents.completion import finish_version
from shared.errors import PermanentError, Superseded
from shared.events import (
    DocumentFailed,
    DocumentIndexed,
    DocumentRemoved,
    DocumentSubmitted,
    DocumentWithdrawn,
    EmbedChunks,
)
from shared.messaging import publish
from shared.retrieval.spaces import live_spaces


@dataclass(frozen=True, slots=True)
class Reception:
    """A version that was accepted for ingestion."""

    tenant_id: UUID
    document_id: UUID
    version_id: UUID
    source: str
    external_id: str
    source_version: int
    stored: bool
    """Its chunks are stored already: a redelivery only has to finish it."""


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
class Content:
    """What a version consists of."""

    content_hash: str
    blob_uri: str
    size: int
    media_type: str
    language: str
    title: str
    chunks: Sequence[NewChunk]


def document_id_of(tenant_id: UUID, source: str, external_id: str) -> UUID:
    """The id of a document follows from who sent it under which id, so a redelivery finds the same one."""
    return uuid5(tenant_id, f"document:{source}:{external_id}")


def receive(session: Session, event: DocumentSubmitted, source: str) -> Reception:
    """Accept a version: the document exists and is locked, the version is `received`.

    Raises Superseded when the version is older than what is known, withdrawn, or already done.
    """
    document_id = document_id_of(event.tenant_id, source, event.external_id)
    number = event.version_number()
    _ensure_document(session, event, source, document_id)
    withdrawn = session.execute(
        text(
            "select withdrawn_version from rag.documents "
            "where tenant_id = :tenant and document_id = :document for update"
        ),
        {"tenant": event.tenant_id, "document": document_id},
    ).scalar_one()
    if withdrawn is not None and withdrawn >= number:
        raise Superseded("the document was withdrawn at this or a later version")
    newest = session.execute(
        text("select max(source_version) from rag.versions where tenant_id = :tenant and document_id = :document"),
        {"tenant": event.tenant_id, "document": document_id},
    ).scalar()
    if newest is not None and newest > number:
        raise Superseded("a newer version of the document is known")
    version_id = uuid5(document_id, f"version:{number}")
    session.execute(
        text(
            "insert into rag.versions (tenant_id, version_id, document_id, source_version, state, content_hash, "
            "blob_uri, bytes, file_name, media_type, traceparent) values (:tenant, :version, :document, :number, "
            "'received', '', '', 0, :file_name, :media_type, :traceparent) on conflict do nothing"
        ),
        {
            "tenant": event.tenant_id,
            "version": version_id,
            "document": document_id,
            "number": number,
            "file_name": event.file_name,
            "media_type": event.media_type,
            "traceparent": event.traceparent,
        },
    )
    state = session.execute(
        text("select state from rag.versions where tenant_id = :tenant and version_id = :version"),
        {"tenant": event.tenant_id, "version": version_id},
    ).scalar_one()
    if state not in ("received", "ingested"):
        raise Superseded(f"this version is {state} already")
    _describe(session, event, document_id)
    return Reception(
        event.tenant_id, document_id, version_id, source, event.external_id, number, stored=state == "ingested"
    )


def _ensure_document(session: Session, event: DocumentSubmitted, source: str, document_id: UUID) -> None:
    collection_id = uuid5(event.tenant_id, f"collection:{event.collection}")
    session.execute(
        text(
            "insert into rag.collections (tenant_id, collection_id, name) values (:tenant, :id, :name) "
            "on conflict do nothing"
        ),
        {"tenant": event.tenant_id, "id": collection_id, "name": event.collection},
    )
    session.execute(
        text(
            "insert into rag.documents (tenant_id, document_id, collection_id, source, external_id, title, state) "
            "values (:tenant, :document, :collection, :source, :external_id, :title, 'received') "
            "on conflict do nothing"
        ),
        {
            "tenant": event.tenant_id,
            "document": document_id,
            "collection": collection_id,
            "source": source,
            "external_id": event.external_id,
            "title": event.title or event.file_name or event.external_id,
        },
    )


def _describe(session: Session, event: DocumentSubmitted, document_id: UUID) -> None:
    """Title, collection, metadata and access follow the newest version at once: a narrower access must not wait."""
    write_one(
        session,
        "update rag.documents set title = :title, collection_id = :collection, metadata = cast(:metadata as jsonb), "
        "access_members = cast(:members as text[]), access_groups = cast(:groups as text[]), updated_at = now(), "
        "state = case when current_version_id is null and state in ('failed', 'deleted') then 'received' else state end"
        " where tenant_id = :tenant and document_id = :document",
        {
            "tenant": event.tenant_id,
            "document": document_id,
            "title": event.title or event.file_name or event.external_id,
            "collection": uuid5(event.tenant_id, f"collection:{event.collection}"),
            "metadata": json.dumps(event.metadata),
            "members": array_literal(member.lower() for member in event.access.members),
            "groups": array_literal(event.access.groups),
        },
    )


def skip_unchanged(session: Session, reception: Reception, content_hash: str, traceparent: str) -> bool:
    """Whether the content is what the document answers with already; then the version ends as `unchanged`."""
    same = session.execute(
        text(
            "select v.chunks, v.version_id from rag.documents d join rag.versions v "
            "on v.tenant_id = d.tenant_id and v.version_id = d.current_version_id "
            "where d.tenant_id = :tenant and d.document_id = :document and v.content_hash = :hash for update of d"
        ),
        {"tenant": reception.tenant_id, "document": reception.document_id, "hash": content_hash},
    ).first()
    if same is None:
        return False
    write_one(
        session,
        "update rag.versions set state = 'unchanged', content_hash = :hash, updated_at = now() "
        "where tenant_id = :tenant and version_id = :version and state = 'received'",
        {"tenant": reception.tenant_id, "version": reception.version_id, "hash": content_hash},
    )
    publish(session, _indexed(reception, same.version_id, same.chunks, traceparent))
    return True


def _indexed(reception: Reception, version_id: UUID, chunks: int, traceparent: str) -> DocumentIndexed:
    return DocumentIndexed(
        event_id=uuid5(reception.version_id, "indexed"),
        tenant_id=reception.tenant_id,
        traceparent=traceparent,
        source=reception.source,
        external_id=reception.external_id,
        source_version=reception.source_version,
        document_id=reception.document_id,
        version_id=version_id,
        chunks=chunks,
    )


def store(session: Session, reception: Reception, content: Content, traceparent: str, batch: Batch) -> None:
    """Store the chunks of a received version and ask for its embeddings, all in one transaction.

    Chunks whose text the document had before keep their vectors: only what changed is embedded.
    Raises Superseded when the version was withdrawn, failed or stored by somebody else meanwhile.
    """
    ids = {"tenant": reception.tenant_id, "document": reception.document_id, "version": reception.version_id}
    session.execute(
        text("select 1 from rag.documents where tenant_id = :tenant and document_id = :document for update"), ids
    )
    taken = session.execute(
        text(
            "update rag.versions set state = 'ingested', content_hash = :hash, blob_uri = :uri, bytes = :size, "
            "media_type = :media_type, language = :language, chunks = :chunks, updated_at = now() "
            "where tenant_id = :tenant and version_id = :version and state = 'received'"
        ),
        ids
        | {
            "hash": content.content_hash,
            "uri": content.blob_uri,
            "size": content.size,
            "media_type": content.media_type,
            "language": content.language,
            "chunks": len(content.chunks),
        },
    ).rowcount  # type: ignore[attr-defined]
    if taken == 0:
        raise Superseded("this version is no longer waiting for its chunks")
    write_one(
        session,
        "update rag.documents set updated_at = now(), "
        "title = case when title in (external_id, :file) and :title <> '' then :title else title end, "
        "state = case when current_version_id is null then 'ingested' else state end "
        "where tenant_id = :tenant and document_id = :document",
        ids | {"title": content.title[:512], "file": _file_name(session, reception)},
    )
    rows = [_chunk_row(reception, ordinal, chunk) for ordinal, chunk in enumerate(content.chunks)]
    copy_rows(session, "rag.chunks", CHUNK_COLUMNS, rows)
    _reuse_vectors(session, reception)
    for command in _embed_commands(session, reception, traceparent, batch):
        publish(session, command)
    finish_version(session, reception.tenant_id, reception.version_id)


def _file_name(session: Session, reception: Reception) -> str:
    name: str = session.execute(
        text("select file_name from rag.versions where tenant_id = :tenant and version_id = :version"),
        {"tenant": reception.tenant_id, "version": reception.version_id},
    ).scalar_one()
    return name


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


def _chunk_row(reception: Reception, ordinal: int, chunk: NewChunk) -> tuple[Any, ...]:
    return (
        reception.tenant_id,
        uuid5(reception.version_id, f"chunk:{ordinal}"),
        reception.version_id,
        reception.document_id,
        ordinal,
        chunk.text,
        chunk.text_hash,
        chunk.start,
        chunk.end,
        chunk.tokens,
        chunk.language,
        list(chunk.heading_path),
        chunk.position,
    )


def _reuse_vectors(session: Session, reception: Reception) -> None:
    """Copy the vectors of equal chunks of this document's other versions, in every live space."""
    session.execute(
        text(
            "insert into rag.embeddings (tenant_id, space_id, chunk_id, embedding) "
            "select distinct on (c.chunk_id, e.space_id) c.tenant_id, e.space_id, c.chunk_id, e.embedding "
            "from rag.chunks c join rag.chunks old on old.tenant_id = c.tenant_id "
            "and old.document_id = c.document_id and old.text_hash = c.text_hash and old.version_id <> c.version_id "
            "join rag.embeddings e on e.tenant_id = old.tenant_id and e.chunk_id = old.chunk_id "
            "join rag.tenant_spaces s on s.tenant_id = e.tenant_id and s.space_id = e.space_id "
            "and s.state in ('active', 'filling') "
            "where c.tenant_id = :tenant and c.version_id = :version on conflict do nothing"
        ),
        {"tenant": reception.tenant_id, "version": reception.version_id},
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """How much one embedding request may carry: chunks and tokens."""

    chunks: int
    tokens: int


def _embed_commands(session: Session, reception: Reception, traceparent: str, batch: Batch) -> list[EmbedChunks]:
    commands = []
    for space in live_spaces(session, reception.tenant_id):
        missing = missing_chunks(session, reception.tenant_id, reception.version_id, space.space_id)
        for group in split(missing, batch):
            commands.append(
                EmbedChunks(
                    event_id=uuid5(reception.version_id, f"embed:{space.space_id}:{group[0]}"),
                    tenant_id=reception.tenant_id,
                    traceparent=traceparent,
                    document_id=reception.document_id,
                    version_id=reception.version_id,
                    space_id=space.space_id,
                    chunk_ids=tuple(group),
                )
            )
    return commands


def missing_chunks(session: Session, tenant_id: UUID, version_id: UUID, space_id: UUID) -> list[tuple[UUID, int]]:
    """Chunks of a version without a vector in a space, with their tokens, in reading order."""
    rows = session.execute(
        text(
            "select c.chunk_id, c.tokens from rag.chunks c where c.tenant_id = :tenant and c.version_id = :version "
            "and not exists (select from rag.embeddings e where e.tenant_id = :tenant and e.space_id = :space "
            "and e.chunk_id = c.chunk_id) order by c.ordinal"
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


def fail_version(session: Session, tenant_id: UUID, version_id: UUID, error: PermanentError) -> None:
    """Record why a version cannot become searchable and tell upstream; an earlier version goes on answering.

    Does nothing when the version has ended already, or is not this tenant's.
    """
    ids = {"tenant": tenant_id, "version": version_id}
    row = session.execute(
        text(
            "select d.document_id, d.source, d.external_id, v.source_version, v.traceparent from rag.versions v "
            "join rag.documents d on d.tenant_id = v.tenant_id and d.document_id = v.document_id "
            "where v.tenant_id = :tenant and v.version_id = :version for update of d"
        ),
        ids,
    ).first()
    if row is None:
        return
    why = {"reason": error.reason, "message": error.message, "next_action": error.next_action}
    failed = session.execute(
        text(
            "update rag.versions set state = 'failed', reason = :reason, message = :message, "
            "next_action = :next_action, updated_at = now() "
            "where tenant_id = :tenant and version_id = :version and state in ('received', 'ingested')"
        ),
        ids | why,
    ).rowcount  # type: ignore[attr-defined]
    if failed == 0:
        return
    write_one(
        session,
        "update rag.documents set reason = :reason, message = :message, next_action = :next_action, "
        "state = case when current_version_id is null then 'failed' else state end, updated_at = now() "
        "where tenant_id = :tenant and document_id = :document",
        ids | why | {"document": row.document_id},
    )
    publish(
        session,
        DocumentFailed(
            event_id=uuid5(version_id, "failed"),
            tenant_id=tenant_id,
            traceparent=row.traceparent,
            source=row.source,
            external_id=row.external_id,
            source_version=row.source_version,
            document_id=row.document_id,
            reason=error.reason,
            message=error.message,
            next_action=error.next_action,
        ),
    )


def fail_submission(session: Session, event: DocumentSubmitted, source: str, error: PermanentError) -> None:
    """Fail what a submission would have become: its version, or the document that was received and never got one."""
    document_id = document_id_of(event.tenant_id, source, event.external_id)
    fail_version(session, event.tenant_id, uuid5(document_id, f"version:{event.version_number()}"), error)
    session.execute(
        text(
            "update rag.documents set state = 'failed', reason = :reason, message = :message, "
            "next_action = :next_action, updated_at = now() "
            "where tenant_id = :tenant and document_id = :document and state = 'received'"
        ),
        {
            "tenant": event.tenant_id,
            "document": document_id,
            "reason": error.reason,
            "message": error.message,
            "next_action": error.next_action,
        },
    )


def withdraw(session: Session, event: DocumentWithdrawn, source: str) -> None:
    """Take a document out of every answer, at once. A document that never arrived leaves a tombstone.

    Raises Superseded when a newer version than the withdrawn one is known.
    """
    document_id = document_id_of(event.tenant_id, source, event.external_id)
    number = event.version_number()
    submitted = DocumentSubmitted(
        tenant_id=event.tenant_id, external_id=event.external_id, source_version=number, content=""
    )
    _ensure_document(session, submitted, source, document_id)
    ids = {"tenant": event.tenant_id, "document": document_id, "number": number}
    state = session.execute(
        text(
            "select d.state, d.withdrawn_version, (select max(v.source_version) from rag.versions v "
            "where v.tenant_id = d.tenant_id and v.document_id = d.document_id) as newest "
            "from rag.documents d where d.tenant_id = :tenant and d.document_id = :document for update"
        ),
        ids,
    ).one()
    if state.newest is not None and state.newest > number:
        raise Superseded("a newer version of the document is known")
    if state.withdrawn_version is not None and state.withdrawn_version >= number:
        raise Superseded("the document is withdrawn already")
    write_one(
        session,
        "update rag.documents set state = 'deleted', current_version_id = null, withdrawn_version = :number, "
        "reason = null, message = null, next_action = null, updated_at = now() "
        "where tenant_id = :tenant and document_id = :document",
        ids,
    )
    session.execute(
        text(
            "update rag.versions set state = 'superseded', updated_at = now() where tenant_id = :tenant "
            "and document_id = :document and state in ('received', 'ingested', 'searchable')"
        ),
        ids,
    )
    publish(
        session,
        DocumentRemoved(
            event_id=uuid5(document_id, f"removed:{number}"),
            tenant_id=event.tenant_id,
            traceparent=event.traceparent,
            source=source,
            external_id=event.external_id,
            source_version=number,
            document_id=document_id,
        ),
    )
