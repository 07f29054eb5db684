"""A version that failed because its deliveries were used up is set going again: the way back of `fail_version`.

Only for a replay of the dead letter that carries its message, and only as long as nothing newer has come: a version
that nobody would work on must not look as if somebody did. Lock order: document, then version.
"""

from __future__ import annotations

from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.documents.intake import document_id_of
from shared.events import DocumentSubmitted


def resume_submission(session: Session, event: DocumentSubmitted, source: str, reason: str) -> bool:
    """Set going what a submission would have become; False when it did not fail for this reason."""
    document_id = document_id_of(event.tenant_id, source, event.external_id)
    return resume_version(session, event.tenant_id, uuid5(document_id, f"version:{event.version_number()}"), reason)


def resume_version(session: Session, tenant_id: UUID, version_id: UUID, reason: str) -> bool:
    """Bring a version that failed for `reason` back to `received`, or to `ingested` when its chunks are stored.

    False, and nothing changed, when it did not fail for this reason, was withdrawn, deleted or rolled back, its content
    is no longer kept, or a newer version is known.
    """
    ids = {"tenant": tenant_id, "version": version_id, "reason": reason}
    document_id = session.execute(
        text(
            "select d.document_id from rag.documents d join rag.versions v "
            "on v.tenant_id = d.tenant_id and v.document_id = d.document_id "
            "where v.tenant_id = :tenant and v.version_id = :version for update of d"
        ),
        ids,
    ).scalar()
    if document_id is None:
        return False
    ids["document"] = document_id
    state = session.execute(
        text(
            # Storing the chunks is what sets the content's hash.
            "update rag.versions v set state = case v.content_hash when '' then 'received' else 'ingested' end, "
            "reason = null, message = null, next_action = null, updated_at = now() from rag.documents d "
            "where v.tenant_id = :tenant and v.version_id = :version and v.state = 'failed' and v.reason = :reason "
            # What had been stored of it and was purged since would be complete at once, and answer with nothing.
            "and v.purged_at is null "
            "and d.tenant_id = v.tenant_id and d.document_id = v.document_id "
            "and d.state <> 'deleted' and (d.withdrawn_version is null or d.withdrawn_version < v.source_version) "
            "and (d.floor_version is null or d.floor_version < v.source_version) "
            "and not exists (select from rag.versions newer where newer.tenant_id = :tenant "
            "and newer.document_id = :document and newer.source_version > v.source_version) returning v.state"
        ),
        ids,
    ).scalar()
    if state is None:
        return False
    session.execute(
        text(
            "update rag.documents set reason = null, message = null, next_action = null, updated_at = now(), "
            "state = case when current_version_id is null then :state else state end "
            "where tenant_id = :tenant and document_id = :document and reason = :reason"
        ),
        ids | {"state": state},
    )
    return True
