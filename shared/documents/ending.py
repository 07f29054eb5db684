"""How a version or document ends other than searchable: it fails with a reason, or upstream withdraws it."""

from __future__ import annotations

from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.documents.attached import take_out, withdraw_attachments
from shared.documents.intake import document_id_of, ensure_document, receive, version_id_of
from shared.documents.tombstones import raise_tombstone
from shared.errors import PermanentError, Superseded
from shared.events import (
    DocumentFailed,
    DocumentSubmitted,
    DocumentWithdrawn,
)
from shared.messaging import publish


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
    session.execute(
        text(
            # The document tells of its newest version: what became of an older one stands in the history.
            "update rag.documents set reason = :reason, message = :message, next_action = :next_action, "
            "state = case when current_version_id is null then 'failed' else state end, updated_at = now() "
            "where tenant_id = :tenant and document_id = :document and not exists (select from rag.versions newer "
            "where newer.tenant_id = :tenant and newer.document_id = :document and newer.source_version > :number)"
        ),
        ids | why | {"document": row.document_id, "number": row.source_version},
    )
    publish(
        session,
        DocumentFailed(
            event_id=_failed_id(version_id),
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


def fail_unread(session: Session, tenant_id: UUID, document_id: UUID, error: PermanentError) -> bool:
    """Fail an upload of which nothing was received yet; False when there is more of it, or something else became of it.

    Its message is still on its way and changes nothing any more: versions of uploads are times, so the floor is now.
    """
    why = {"reason": error.reason, "message": error.message, "next_action": error.next_action}
    row = session.execute(
        text(
            "update rag.documents d set state = 'failed', reason = :reason, message = :message, "
            "next_action = :next_action, updated_at = now(), "
            "floor_version = cast(extract(epoch from clock_timestamp()) * 1000000 as bigint) "
            "where d.tenant_id = :tenant and d.document_id = :document and d.state = 'received' "
            "and not exists (select from rag.versions v where v.tenant_id = :tenant and v.document_id = :document) "
            "returning d.source, d.external_id, d.floor_version"
        ),
        {"tenant": tenant_id, "document": document_id} | why,
    ).first()
    if row is None:
        return False
    publish(
        session,
        DocumentFailed(
            event_id=uuid5(document_id, f"failed:{row.floor_version}"),
            tenant_id=tenant_id,
            source=row.source,
            external_id=row.external_id,
            source_version=row.floor_version,
            document_id=document_id,
            reason=error.reason,
            message=error.message,
            next_action=error.next_action,
        ),
    )
    return True


def fail_submission(
    session: Session, event: DocumentSubmitted, source: str, error: PermanentError, *, receive_first: bool = True
) -> None:
    """Fail the version a submission would have become; one that was never received is received for that.

    So people see it in the list and upstream hears of it, once. Without `receive_first` only what was received fails.
    Raises Superseded when one that was never received
    would change nothing any more: overtaken, withdrawn or deleted.
    """
    version_id = version_id_of(event, source)
    known = session.execute(
        text("select 1 from rag.versions where tenant_id = :tenant and version_id = :version"),
        {"tenant": event.tenant_id, "version": version_id},
    ).scalar()
    if known is None and receive_first:
        receive(session, event, source)
    fail_version(session, event.tenant_id, version_id, error)


def submission_failed(
    event: DocumentSubmitted, source: str, error: PermanentError, event_id: UUID | None = None
) -> DocumentFailed:
    """The outcome of a submission that has no version; without `event_id` under the id its version's would have."""
    document_id = document_id_of(event.tenant_id, source, event.external_id)
    number = event.version_number()
    return DocumentFailed(
        event_id=event_id or _failed_id(uuid5(document_id, f"version:{number}")),
        tenant_id=event.tenant_id,
        traceparent=event.traceparent,
        source=source,
        external_id=event.external_id,
        source_version=number,
        document_id=document_id,
        reason=error.reason,
        message=error.message,
        next_action=error.next_action,
    )


def _failed_id(version_id: UUID) -> UUID:
    return uuid5(version_id, "failed")


def withdraw(session: Session, event: DocumentWithdrawn, source: str) -> None:
    """Take a document out of every answer, at once, with what travelled inside it.

    A document that never arrived is remembered as deleted.

    The same state as after a deletion by a person: purged after 30 days, restorable until then by an administrator.
    Raises Superseded when a newer version than the withdrawn one is known.
    """
    document_id = document_id_of(event.tenant_id, source, event.external_id)
    number = event.version_number()
    if not _known(session, event.tenant_id, document_id) and raise_tombstone(
        session, event.tenant_id, source, event.external_id, number
    ):
        return  # deleted for good already: nothing is written down about it again
    submitted = DocumentSubmitted(
        tenant_id=event.tenant_id, external_id=event.external_id, source_version=number, content=""
    )
    ensure_document(session, submitted, source, document_id)
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
    take_out(session, event, source, document_id, event.external_id, number)
    withdraw_attachments(session, event, source, number)


def _known(session: Session, tenant_id: UUID, document_id: UUID) -> bool:
    found = session.execute(
        text("select 1 from rag.documents where tenant_id = :tenant and document_id = :document"),
        {"tenant": tenant_id, "document": document_id},
    ).scalar()
    return found is not None
