"""Taking a document out of every answer, by a person or by its source: hidden at once, restorable for 30 days.

Nothing is lost yet: versions, chunks and vectors stay until the purge. Lock order: documents, then versions.

searchable, failed, … ──delete, withdraw──▶ deleted ──purge, after 30 days──▶ (tombstone)
          ▲                                    │
          └── restore; a newer version sent ───┘
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared import audit
from shared.database import write_one
from shared.documents.acting import Actor, read_for, with_attachments
from shared.errors import PermanentError
from shared.events import DocumentRemoved, new_traceparent
from shared.messaging import publish

RESTORABLE = timedelta(days=30)
"""How long a deleted document can be restored; then it is purged (REQUIREMENTS section 4)."""

INTERRUPTED = "deleted"
"""The reason of a version that was in progress when its document was deleted: a restoration takes it up again."""

LOST = PermanentError(
    "interrupted",
    "The document was deleted before this version was read.",
    "Submit it again as a new version.",
)
"""How a version ends that was in progress, and whose bytes went with a message, when its document is restored."""


def delete_document(session: Session, actor: Actor, document_id: UUID) -> int:
    """Delete a document with its attachments; returns how many documents went, 0 when it was deleted already.

    `document-removed` goes out for each; what is in progress ends. What its source sends later as a newer version is
    a new submission; whatever was sent before the deletion changes nothing (`intake.receive`).
    Raises PermanentError `unknown-document`.
    """
    read_for(session, actor, document_id)
    tree = with_attachments(session, actor.tenant_id, [document_id])
    gone = [one for one in tree if _delete_one(session, actor, one)]
    if document_id in gone:
        audit.record_own(
            session,
            actor=actor.name,
            action="document-deleted",
            subject=str(document_id),
            attachments=len(gone) - 1,
        )
    return len(gone)


def _delete_one(session: Session, actor: Actor, document_id: UUID) -> bool:
    ids = {"tenant": actor.tenant_id, "document": document_id}
    row = session.execute(
        text(
            "select source, external_id, state, acts, coalesce((select max(v.source_version) from rag.versions v "
            "where v.tenant_id = :tenant and v.document_id = :document), withdrawn_version, 0) as newest "
            "from rag.documents where tenant_id = :tenant and document_id = :document"
        ),
        ids,
    ).one()
    if row.state == "deleted":
        return False
    hide(session, actor.tenant_id, document_id, actor.name)
    publish(
        session,
        DocumentRemoved(
            event_id=uuid5(document_id, f"removed:act:{row.acts + 1}"),
            tenant_id=actor.tenant_id,
            traceparent=new_traceparent(),
            source=row.source,
            external_id=row.external_id,
            source_version=row.newest,
            document_id=document_id,
        ),
    )
    return True


def hide(
    session: Session, tenant_id: UUID, document_id: UUID, by: str, *, withdrawn_version: int | None = None
) -> None:
    """Mark a locked document as deleted, end what is in progress, and give up its place in the line.

    `by` is who: `member:…`, `operator:…`, `source:…`. One that was deleted earlier keeps its time: the purge does not
    wait longer because the source withdraws it too. What a person deleted stays a person's deletion then: nothing that
    was sent before it comes in.
    """
    ids = {"tenant": tenant_id, "document": document_id}
    write_one(
        session,
        "update rag.documents set deleted_at = case when state = 'deleted' then coalesce(deleted_at, now()) "
        "else now() end, deleted_by = case when state = 'deleted' and deleted_by not like 'source:%' then deleted_by "
        "else :by end, "
        "deleted_version_id = case when state = 'deleted' then deleted_version_id else current_version_id end, "
        "state = 'deleted', current_version_id = null, acts = acts + 1, "
        "withdrawn_version = greatest(withdrawn_version, cast(:withdrawn as bigint)), "
        "reason = null, message = null, next_action = null, updated_at = now() "
        "where tenant_id = :tenant and document_id = :document",
        ids | {"by": by, "withdrawn": withdrawn_version},
    )
    session.execute(
        text(
            "update rag.versions set reason = case state when 'searchable' then reason else :interrupted end, "
            "state = 'superseded', waiting = null, waiting_until = null, updated_at = now() "
            "where tenant_id = :tenant and document_id = :document and state in ('received', 'ingested', 'searchable')"
        ),
        ids | {"interrupted": INTERRUPTED},
    )
    session.execute(
        text("delete from core.waiting_messages where tenant_id = :tenant and document_id = :document"), ids
    )
