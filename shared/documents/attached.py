"""What travelled inside a document is taken out with it: at once, at any depth, in the transaction that says so.

Lock order: outermost first (`shared.documents.acting.with_attachments`).
"""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.documents.acting import with_attachments
from shared.documents.deletion import hide
from shared.documents.intake import document_id_of
from shared.events import DocumentRemoved, DocumentSubmitted, DocumentWithdrawn
from shared.messaging import publish


def withdraw_attachments(
    session: Session,
    event: DocumentSubmitted | DocumentWithdrawn,
    source: str,
    source_version: int,
    *,
    except_for: Collection[str] = (),
) -> None:
    """Withdraw the attachments of a document at this version with all inside them, but for those named.

    One that came with a later version of its document stays, and what people deleted keeps their time of deletion.
    """
    rows = session.execute(
        text(
            "select document_id, external_id from rag.documents where tenant_id = :tenant and source = :source "
            "and attachment_of = :parent and state <> 'deleted'"
        ),
        {"tenant": event.tenant_id, "source": source, "parent": event.external_id},
    ).all()
    gone = [row.document_id for row in rows if row.external_id not in except_for]
    if not gone:
        return
    session.execute(
        text("select from rag.documents where tenant_id = :tenant and document_id = :document for update"),
        {"tenant": event.tenant_id, "document": document_id_of(event.tenant_id, source, event.external_id)},
    )
    for document_id in with_attachments(session, event.tenant_id, gone):
        _withdraw_one(session, event, source, document_id, source_version)


def _withdraw_one(
    session: Session,
    event: DocumentSubmitted | DocumentWithdrawn,
    source: str,
    document_id: UUID,
    source_version: int,
) -> None:
    external_id = session.execute(
        text(
            "select d.external_id from rag.documents d where d.tenant_id = :tenant and d.document_id = :document "
            "and d.state <> 'deleted' and not exists (select from rag.versions v where v.tenant_id = :tenant "
            "and v.document_id = :document and v.source_version > :number)"
        ),
        {"tenant": event.tenant_id, "document": document_id, "number": source_version},
    ).scalar()
    if external_id is None:
        return
    take_out(session, event, source, document_id, external_id, source_version)


def take_out(
    session: Session,
    event: DocumentSubmitted | DocumentWithdrawn,
    source: str,
    document_id: UUID,
    external_id: str,
    source_version: int,
) -> None:
    """Hide one document for its source, up to a version, and tell upstream."""
    hide(session, event.tenant_id, document_id, f"source:{source}", withdrawn_version=source_version)
    publish(
        session,
        DocumentRemoved(
            event_id=uuid5(document_id, f"removed:{source_version}"),
            tenant_id=event.tenant_id,
            traceparent=event.traceparent,
            source=source,
            external_id=external_id,
            source_version=source_version,
            document_id=document_id,
        ),
    )
