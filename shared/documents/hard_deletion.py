"""Deleting documents for good: every row, vector and word, what messages and conversations keep of them, their blobs.

One transaction a slice: tombstone, rows, proof and audit record are there together or not at all. The bytes go after
the commit; what a crash leaves of them the collector finds, because nothing refers to them any more. For operators.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from shared import audit
from shared.conversations.redaction import erase_from_conversations
from shared.database import array_literal, operator_session, patiently, sqlstate, tenant_session
from shared.documents.acting import Actor, with_attachments
from shared.documents.blob_release import Released, blobs_of, release_blobs
from shared.documents.deletion import delete_document
from shared.documents.message_erasure import erase_messages
from shared.documents.tombstones import entomb
from shared.documents.traces import Needles, needles_of, search_traces
from shared.errors import NoesisError, PermanentError
from shared.retrieval.statistics import prune_terms, terms_of
from shared.storage import Storage

log = logging.getLogger(__name__)

IN_MEMORY = timedelta(minutes=10)
"""How long a worker may have passages of a document in memory: longer than a service's timeout (540 s)."""

STATEMENT_SECONDS = 150.0
"""How long a statement may take: the proof reads all that the tenant's conversations and messages say."""

DEADLOCK, ATTEMPTS = "40P01", 3
"""An embedding batch that is being stored may hold chunks that are deleted here; one of the two begins again."""


class TracesLeft(NoesisError):
    """Something of a document is left in tables that hard deletion does not know; nothing was deleted."""


@dataclass(frozen=True, slots=True)
class Purged:
    """What was deleted for good: how many documents with their attachments, rows by kind, and the proof by table."""

    documents: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    proof: dict[str, int] = field(default_factory=dict)
    """Rows that still tell of them, by table that was searched: every number is 0."""
    blobs: Released = field(default_factory=Released)


def purge_documents(
    actor: Actor, document_ids: Sequence[UUID], storage: Storage, *, action: str = "document-purged"
) -> Purged:
    """Delete documents and their attachments for good, now, whatever their state; those that are gone are no error.

    For a handful: the caller slices. Raises TracesLeft, and nothing is deleted then.
    """
    for document_id in document_ids:
        _hide(actor, document_id)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with operator_session() as operator, patiently(operator, STATEMENT_SECONDS):
                done, blobs = _purge(operator, actor, document_ids, action)
            break
        except DBAPIError as error:
            if sqlstate(error) != DEADLOCK or attempt == ATTEMPTS:
                raise
    if not done.documents:
        return done
    released = release_blobs(actor.tenant_id, blobs, storage)
    log.info("purged", extra={"documents": done.documents, "blobs": released.deleted})
    return Purged(done.documents, done.rows, done.proof, released)


def _hide(actor: Actor, document_id: UUID) -> None:
    """First out of every answer, in a transaction of its own: upstream is told, and what is in progress ends."""
    try:
        with tenant_session(actor.tenant_id) as session:
            delete_document(session, actor, document_id)
    except PermanentError as error:
        if error.reason != "unknown-document":
            raise


def _purge(operator: Session, actor: Actor, document_ids: Sequence[UUID], action: str) -> tuple[Purged, dict[str, Any]]:
    tenant_id = actor.tenant_id
    tree = with_attachments(operator, tenant_id, document_ids)
    if not tree:
        return Purged(), {}
    rows = _describe(operator, tenant_id, tree)
    needles = needles_of(operator, tenant_id, tree)
    blobs = blobs_of(operator, tenant_id, tree)
    for row in rows:
        entomb(operator, tenant_id, row.source, row.external_id, row.newest, row.deleted_at)
    recent = any(row.recent for row in rows)
    conversations = erase_from_conversations(operator, tenant_id, tree, all_running=recent)
    counts = dict(conversations.erased) | {"restarted_runs": conversations.restarted, "ended_runs": conversations.ended}
    counts |= erase_messages(operator, tenant_id, needles, {(row.source, row.external_id) for row in rows})
    terms = terms_of(operator, tenant_id, tree)
    counts |= _delete_rows(operator, tenant_id, tree)
    counts["words"] = prune_terms(operator, tenant_id, terms)
    proof = _prove(operator, tenant_id, needles)
    for row in rows:
        audit.record(
            operator,
            actor=actor.name,
            action=action,
            subject=str(row.document_id),
            tenant_id=tenant_id,
            deleted_by=row.deleted_by,
            deleted_at=row.deleted_at,
            together=len(rows),
            erased={name: number for name, number in counts.items() if number},
            proof=proof,
            searched={
                "ids": len(needles.ids) + len(needles.chunk_ids),
                "external_ids": len(needles.external_ids),
                "passages": len(needles.samples),
            },
        )
    return Purged(len(rows), counts, proof), blobs


def _describe(operator: Session, tenant_id: UUID, documents: Sequence[UUID]) -> Sequence[Any]:
    return operator.execute(
        text(
            "select d.document_id, d.source, d.external_id, d.deleted_by, coalesce(d.deleted_at, now()) as deleted_at, "
            "d.deleted_at is null or d.deleted_at > now() - cast(:in_memory as interval) as recent, "
            "coalesce(greatest(d.withdrawn_version, d.floor_version, (select max(v.source_version) from rag.versions v "
            "where v.tenant_id = d.tenant_id and v.document_id = d.document_id)), 0) as newest "
            "from rag.documents d where d.tenant_id = :tenant and d.document_id = any(cast(:documents as uuid[]))"
        ),
        {"tenant": tenant_id, "documents": array_literal(documents), "in_memory": IN_MEMORY},
    ).all()


_OWN = "tenant_id = :tenant and document_id = any(cast(:documents as uuid[]))"
_OF_CHUNKS = f"tenant_id = :tenant and chunk_id in (select chunk_id from rag.chunks where {_OWN})"

# Children first, so that each is counted; what else refers to them goes by its foreign keys.
_ROWS = {
    "vectors": f"delete from rag.embeddings where {_OF_CHUNKS}",
    # By version, of which there is an index: by document every row of the tenant would be read.
    "terms": f"delete from rag.chunk_terms where tenant_id = :tenant and version_id in "
    f"(select version_id from rag.versions where {_OWN})",
    "chunks": f"delete from rag.chunks where {_OWN}",
    # What was paid stays paid, for nobody knows what.
    "ledger": f"update core.ledger set document_id = null, version_id = null where {_OWN}",
    # The page is not fetched again; its address is what the tenant configured, not the document.
    "pages": "update core.web_pages set state = 'excluded', content_hash = '', etag = '', last_modified = '', "
    f"document_id = '00000000-0000-0000-0000-000000000000' where {_OWN}",
    "requests": "update core.purge_requests q set documents = array(select d from unnest(q.documents) d "
    "where d <> all(cast(:documents as uuid[]))) where q.tenant_id = :tenant "
    "and q.documents && cast(:documents as uuid[])",
    "versions": f"delete from rag.versions where {_OWN}",
    "documents": f"delete from rag.documents where {_OWN}",
}


def _delete_rows(operator: Session, tenant_id: UUID, documents: Sequence[UUID]) -> dict[str, int]:
    values = {"tenant": tenant_id, "documents": array_literal(documents)}
    operator.execute(
        text(f"update rag.documents set current_version_id = null, deleted_version_id = null where {_OWN}"), values
    )
    return {
        name: operator.execute(text(statement), values).rowcount  # type: ignore[attr-defined]
        for name, statement in _ROWS.items()
    }


def _prove(operator: Session, tenant_id: UUID, needles: Needles) -> dict[str, int]:
    proof = search_traces(operator, tenant_id, needles)
    left = {table: number for table, number in proof.items() if number}
    if left:
        named = ", ".join(f"{table} ({number})" for table, number in sorted(left.items()))
        raise TracesLeft(f"Something of the document is left in {named}; nothing was deleted.")
    return proof
