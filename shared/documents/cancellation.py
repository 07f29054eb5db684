"""Cancelling an ingestion: what is queued does nothing any more and costs nothing."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.documents.ending import fail_version
from shared.errors import PermanentError


def cancel_document(session: Session, tenant_id: UUID, document_id: UUID) -> int:
    """End every version of a document that is in progress as failed with `cancelled`; returns how many.

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
    count = 0
    for version_id in versions.all():
        fail_version(session, tenant_id, version_id, cancelled)
        count += 1
    session.execute(
        text("delete from core.waiting_messages where tenant_id = :tenant and document_id = :document"), ids
    )
    return count
