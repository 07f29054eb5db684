"""A submission that never becomes a version: who sent it hears `document-failed` all the same, and hears it once.

Two kinds: one that nobody can read but that still names its tenant and document, and one whose reception itself
fails on every delivery. Only a source that is bound to the tenant is told; for any other, and for an unknown tenant,
nothing at all happens that could be told apart.
"""

from __future__ import annotations

from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import platform_session, tenant_session
from shared.dead_letters.archive import DeadLetter, archive, letter_id_of
from shared.documents.ending import submission_failed
from shared.documents.intake import document_id_of
from shared.errors import PermanentError
from shared.events import DocumentSubmitted, submission_head
from shared.messaging import publish
from shared.tenants.directory import may_speak


def archive_refused(letter: DeadLetter, source: str, error: PermanentError) -> None:
    """Keep a message that cannot be read; if it is a submission that says for whom, tell its source why.

    `source` is what the path or subscription proves, empty for messages of our own. Letter and event are written in
    one transaction, and a letter that exists already is not told of again.
    """
    head = submission_head(letter.data, letter.attributes) if source else None
    if head is None:
        with platform_session() as session:
            archive(session, [letter])
        return
    with tenant_session(head.tenant_id) as session:
        if not archive(session, [letter]) or not may_speak(session, head.tenant_id, source):
            return
        # What is known under this version came by a message that could be read, and has an outcome of its own.
        if not _is_known(session, head, source):
            publish(session, submission_failed(head, source, error, uuid5(letter_id_of(letter), "failed")))


def archive_never_received(letter: DeadLetter, event: DocumentSubmitted, source: str, error: PermanentError) -> None:
    """Keep a submission that cannot even be received, and tell its source. Who may speak has been asked before."""
    with tenant_session(event.tenant_id) as session:
        if archive(session, [letter]):
            publish(session, submission_failed(event, source, error))


def _is_known(session: Session, event: DocumentSubmitted, source: str) -> bool:
    document_id: UUID = document_id_of(event.tenant_id, source, event.external_id)
    found = session.execute(
        text(
            "select 1 from rag.versions where tenant_id = :tenant and document_id = :document and source_version = :n"
        ),
        {"tenant": event.tenant_id, "document": document_id, "n": event.version_number()},
    ).scalar()
    return found is not None
