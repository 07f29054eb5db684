"""Cancelling an ingestion: what is queued does nothing any more and costs nothing."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared import audit
from shared.documents.acting import Actor, read_for
from shared.documents.ending import fail_unread, fail_version
from shared.documents.turns import next_turns
from shared.errors import PermanentError
from shared.tenants.directory import not_bound


def cancel_ingestion(session: Session, actor: Actor, document_id: UUID, share: int) -> int:
    """Cancel what a document has in progress, for a person; returns how many versions, 0 when there was nothing.

    Their place goes to the next in the tenant's line (`share` of them, as in `turns`).
    Raises PermanentError `unknown-document`.
    """
    read_for(session, actor, document_id, lock=True)
    count = cancel_document(session, actor.tenant_id, document_id)
    if count:
        audit.record_own(
            session, actor=actor.name, action="ingestion-cancelled", subject=str(document_id), versions=count
        )
        next_turns(session, actor.tenant_id, share)
    return count


def cancel_document(session: Session, tenant_id: UUID, document_id: UUID) -> int:
    """End every version of a document that is in progress as failed with `cancelled`; returns how many.

    An upload that nobody has looked at yet counts as one.

    An earlier version goes on answering. Messages on their way find a version that has ended; a request to a
    provider that is out already is paid for, its batch is the last one.
    """
    ids = {"tenant": tenant_id, "document": document_id}
    session.execute(
        text("select 1 from rag.documents where tenant_id = :tenant and document_id = :document for update"), ids
    )
    versions = session.execute(
        text(
            "select version_id from rag.versions where tenant_id = :tenant and document_id = :document "
            "and state in ('received', 'ingested') order by source_version"
        ),
        ids,
    ).scalars()
    cancelled = PermanentError(
        "cancelled", "The ingestion was cancelled.", "Submit the document again as a new version."
    )
    count = int(fail_unread(session, tenant_id, document_id, cancelled))
    for version_id in versions.all():
        fail_version(session, tenant_id, version_id, cancelled)
        count += 1
    session.execute(
        text("delete from core.waiting_messages where tenant_id = :tenant and document_id = :document"), ids
    )
    return count


def cancel_source(session: Session, tenant_id: UUID, source: str) -> int:
    """Fail what a source that was unbound had submitted and nobody has read yet; returns how many documents.

    Its messages are refused from now on, so nothing else would ever become of it. What is stored goes on.
    """
    values = {"tenant": tenant_id, "source": source}
    documents = session.execute(
        text(
            "select d.document_id from rag.documents d where d.tenant_id = :tenant and d.source = :source "
            "and (exists (select from rag.versions v where v.tenant_id = :tenant and v.document_id = d.document_id "
            "and v.state = 'received') or (d.state = 'received' and not exists (select from rag.versions v "
            "where v.tenant_id = :tenant and v.document_id = d.document_id))) order by d.document_id for update of d"
        ),
        values,
    ).scalars()
    found = documents.all()
    for document_id in found:
        fail_unread(session, tenant_id, document_id, not_bound())
        unread = session.execute(
            text(
                "select version_id from rag.versions where tenant_id = :tenant and document_id = :document "
                "and state = 'received' order by source_version"
            ),
            {"tenant": tenant_id, "document": document_id},
        ).scalars()
        for version_id in unread.all():
            fail_version(session, tenant_id, version_id, not_bound())
    session.execute(
        text(
            "delete from core.waiting_messages w using rag.versions v where w.tenant_id = :tenant "
            "and v.tenant_id = :tenant and v.version_id = w.version_id and v.state = 'failed'"
        ),
        values,
    )
    return len(found)
