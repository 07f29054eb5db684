"""How a document gets in: reception of a version, its chunks, its failure, and withdrawal.

Every function works in the caller's tenant session; the lock order is document, then version.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal, write_one
from shared.errors import Superseded
from shared.events import (
    DocumentIndexed,
    DocumentSubmitted,
)
from shared.messaging import publish


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


def document_id_of(tenant_id: UUID, source: str, external_id: str) -> UUID:
    """The id of a document follows from who sent it under which id, so a redelivery finds the same one."""
    return uuid5(tenant_id, f"document:{source}:{external_id}")


def receive(session: Session, event: DocumentSubmitted, source: str) -> Reception:
    """Accept a version: the document exists and is locked, the version is `received`.

    Raises Superseded when the version is older than what is known, withdrawn, or already done.
    """
    document_id = document_id_of(event.tenant_id, source, event.external_id)
    number = event.version_number()
    ensure_document(session, event, source, document_id)
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


def ensure_document(session: Session, event: DocumentSubmitted, source: str, document_id: UUID) -> None:
    """The document's row and its collection's exist; what is there already stays as it is."""
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
