"""A submitted document becomes chunks: receive, read, parse, chunk, store. Its failure is recorded on it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

from functions.ingest.chunking import Chunk, chunk_document
from functions.ingest.parsing.document import Attachment, Page, ParsedDocument
from functions.ingest.parsing.ocr import installed
from functions.ingest.parsing.sandbox import parse_in_child
from shared import tracing
from shared.database import tenant_session
from shared.documents.attachments import DEEPEST, MOST, depth_of, resubmit_attachments, submit_attachments
from shared.documents.completion import finish_version
from shared.documents.ending import fail_version, withdraw
from shared.documents.intake import Reception, document_id_of, receive, skip_unchanged
from shared.documents.overtaking import Overtaken, end_unread
from shared.documents.storing import Batch, Content, NewChunk, StoredAttachment, store
from shared.documents.turns import join_line, next_turns, take_turn
from shared.documents.vectors import text_hash
from shared.errors import PermanentError
from shared.events import DocumentSubmitted, DocumentWithdrawn
from shared.messaging import storable
from shared.retrieval.spaces import chunker_for
from shared.services import Services
from shared.storage import Storage, too_large
from shared.tenants.directory import require_source

log = logging.getLogger(__name__)


def ingest_document(event: DocumentSubmitted, source: str, services: Services) -> None:
    """Bring a submitted version to `ingested` and command its embeddings.

    Raises PermanentError `source-not-bound` (nothing can be recorded for a tenant the source may not speak for) and
    Superseded; whatever is wrong with the document itself ends as its state `failed`, and the message is done.
    """
    share = services.settings.documents_in_progress
    with ending_overtaken(event, source, share):
        reception = _take(event, source, share)
    if reception is None:
        return
    _ingest(event, reception, services)
    with tenant_session(event.tenant_id) as session:
        # It may have ended here: failed, unchanged, or nothing new to embed.
        next_turns(session, event.tenant_id, share)


@contextmanager
def ending_overtaken(event: DocumentSubmitted, source: str, share: int) -> Iterator[None]:
    """Around the reception of a version: one that a newer one has overtaken ends, and its turn is the next one's."""
    try:
        yield
    except Overtaken:
        with tenant_session(event.tenant_id) as session:
            document_id = document_id_of(event.tenant_id, source, event.external_id)
            end_unread(session, event.tenant_id, document_id, event.version_number())
            next_turns(session, event.tenant_id, share)
        raise


def _take(event: DocumentSubmitted, source: str, share: int) -> Reception | None:
    """The version that is to be read now; None when its chunks are stored already or it waits for its turn."""
    with tenant_session(event.tenant_id) as session:
        require_source(session, event.tenant_id, source)
        if join_line(session, event, source):
            return None
        reception = receive(session, event, source)
        if reception.stored:
            finish_version(session, event.tenant_id, reception.version_id)
            return None
        if not take_turn(session, reception, event, f"documents-{source}", share):
            log.info("waits for its turn", extra={"document_id": reception.document_id})
            return None
    return reception


def _ingest(event: DocumentSubmitted, reception: Reception, services: Services) -> None:
    try:
        content = read_content(event, reception, services)
    except PermanentError as error:
        log.warning("document failed: %s", error.reason, extra={"document_id": reception.document_id})
        tracing.fail_operation(error.reason)
        with tenant_session(event.tenant_id) as session:
            fail_version(session, event.tenant_id, reception.version_id, error)
        return
    if content is None:
        return
    settings = services.settings
    with tenant_session(event.tenant_id) as session:
        # First what it no longer carries: documents are locked before the vector spaces, which storing holds.
        submit_attachments(session, reception, event, content.attachments)
        store(session, reception, content, event.traceparent, Batch(settings.batch_size, settings.batch_tokens))
    log.info("ingested", extra={"document_id": reception.document_id, "chunks": len(content.chunks)})


def read_content(event: DocumentSubmitted, reception: Reception, services: Services) -> Content | None:
    """Bytes, text and chunks of the version; None when the document answers with the same content already."""
    settings = services.settings
    if event.uri is not None:
        uri = event.uri
        data = services.storage.get(event.tenant_id, uri, settings.document_max_bytes)
    else:
        data = event.content_bytes()
        if len(data) > settings.document_max_bytes:
            raise too_large(settings.document_max_bytes)
        uri = services.storage.put(event.tenant_id, data)
    content_hash = content_hash_of(event.tenant_id, reception.source, data)
    with tenant_session(event.tenant_id) as session:
        if skip_unchanged(session, reception, content_hash, event.traceparent):
            resubmit_attachments(session, reception, event)
            return None
        chunker = chunker_for(session, event.tenant_id)
    with tracing.span("parse", bytes=len(data)) as span:
        parsed = parse_in_child(
            data,
            name=event.file_name or event.external_id,
            media_type=event.media_type or None,
            seconds=settings.parse_seconds,
            memory_mb=settings.parse_memory_mb,
            recogniser=installed(settings.ocr_languages) if settings.ocr == "auto" else None,
        )
        span.set(media_type=parsed.media_type, pages=len(parsed.pages), characters=len(parsed.text))
    with tracing.span("chunk") as span:
        chunks = chunk_document(parsed, size=chunker.size, overlap=chunker.overlap)
        span.set(chunks=len(chunks))
    content = _content(parsed, chunks, content_hash, uri, len(data), event.title)
    if depth_of(event) >= DEEPEST:
        return content
    return replace(content, attachments=_stored(event.tenant_id, parsed.children, services.storage))


def _stored(tenant_id: UUID, children: Sequence[Attachment], storage: Storage) -> list[StoredAttachment]:
    return [
        StoredAttachment(storable(child.name), storable(child.media_type), storage.put(tenant_id, child.data))
        for child in children[:MOST]
        if child.data
    ]


def _content(
    parsed: ParsedDocument, chunks: list[Chunk], content_hash: str, uri: str, size: int, title: str
) -> Content:
    return Content(
        content_hash=content_hash,
        blob_uri=uri,
        size=size,
        media_type=parsed.media_type,
        language=parsed.language or "simple",
        title=title or parsed.title or "",
        chunks=[
            NewChunk(
                text=chunk.text,
                text_hash=text_hash(chunk.heading_path, chunk.text),
                start=chunk.start,
                end=chunk.end,
                tokens=chunk.tokens,
                language=chunk.language,
                heading_path=tuple(chunk.heading_path),
                position=_position(parsed, chunk),
            )
            for chunk in chunks
        ],
    )


def _position(parsed: ParsedDocument, chunk: Chunk) -> dict[str, Any]:
    """Where the chunk stands, and at which of its characters each page or slide begins: a quotation has one page."""
    starts = [[page.number, max(0, page.start - chunk.start)] for page in parsed.pages if _overlap(page, chunk)]
    return dict(chunk.position) | ({"page_starts": starts} if starts else {})


def _overlap(page: Page, chunk: Chunk) -> bool:
    return page.start < chunk.end and page.end > chunk.start


def content_hash_of(tenant_id: UUID, source: str, data: bytes) -> str:
    """Identity of content: SHA-256 over tenant, source and bytes (REQUIREMENTS section 4), hexadecimal."""
    digest = hashlib.sha256(f"{tenant_id}\n{source}\n".encode())
    digest.update(data)
    return digest.hexdigest()


def withdraw_document(event: DocumentWithdrawn, source: str) -> None:
    """Take a withdrawn document out of every answer. Raises PermanentError `source-not-bound`, Superseded."""
    with tenant_session(event.tenant_id) as session:
        require_source(session, event.tenant_id, source)
        withdraw(session, event, source)
