"""Bringing a deleted document back: what answered when it was deleted answers again, in one transaction."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared import audit
from shared.database import write_one
from shared.documents.acting import Actor, read_for, with_attachments
from shared.documents.completion import RESTORED, finish_version, incomplete, publish_indexed, swap_in
from shared.documents.deletion import INTERRUPTED, LOST, RESTORABLE
from shared.documents.ending import fail_version
from shared.documents.storing import Batch
from shared.documents.waiting import command_missing
from shared.errors import PermanentError
from shared.retrieval.spaces import hold_spaces


def restore_document(session: Session, actor: Actor, document_id: UUID, batch: Batch) -> str:
    """Bring a deleted document and the attachments deleted with it back; returns its state now.

    `searchable` at once when something answered before; `ingested` while vectors of a space that is new since then are
    made (`batch`); `failed` when it was deleted before it was read. A version that was in progress goes on.
    Raises PermanentError `unknown-document`, `not-deleted`, `restore-too-late` (30 days) and, for what its source
    withdrew and the member may not overrule, `withdrawn-by-source`.
    """
    read_for(session, actor, document_id)
    tree = with_attachments(session, actor.tenant_id, [document_id])
    # In the order of the writers everywhere: documents, spaces, versions.
    hold_spaces(session, actor.tenant_id)
    row = read_for(session, actor, document_id)
    _check(session, actor, row)
    state = _restore_one(session, actor.tenant_id, row, batch)
    together = 0
    for other in tree:
        attachment = read_for(session, actor, other) if other != document_id else None
        if attachment is None or attachment.state != "deleted":
            continue
        if _together(attachment, row):
            _restore_one(session, actor.tenant_id, attachment, batch)
            together += 1
    audit.record_own(
        session,
        actor=actor.name,
        action="document-restored",
        subject=str(document_id),
        state=state,
        attachments=together,
        deleted_by=row.deleted_by,
    )
    return state


def _together(attachment: Any, row: Any) -> bool:
    """Whether an attachment was deleted with its document: in one transaction, or later by the same."""
    if attachment.deleted_at == row.deleted_at:
        return True  # whoever withdrew the document as well since then
    return bool(attachment.deleted_by == row.deleted_by and attachment.deleted_at > row.deleted_at)


def _check(session: Session, actor: Actor, row: Any) -> None:
    if row.state != "deleted":
        raise PermanentError("not-deleted", "The document is not deleted.", "See its state in the list of documents.")
    if not actor.may_overrule and _withdrawn(session, actor.tenant_id, row):
        raise PermanentError(
            "withdrawn-by-source",
            "The system the document comes from has withdrawn it.",
            "Ask an administrator, or have it submitted again.",
        )
    late = session.execute(
        text("select cast(:at as timestamptz) < now() - cast(:kept as interval)"),
        {"at": row.deleted_at, "kept": RESTORABLE},
    ).scalar_one()
    if late:
        raise PermanentError(
            "restore-too-late", "The document was deleted more than 30 days ago.", "Submit it again as a new version."
        )


def _withdrawn(session: Session, tenant_id: UUID, row: Any) -> bool:
    """Whether its source has taken the document back, before or after a person deleted it."""
    newer = text(
        "select exists (select from rag.versions where tenant_id = :tenant and document_id = :document "
        "and source_version > :withdrawn)"
    )
    values = {"tenant": tenant_id, "document": row.document_id, "withdrawn": row.withdrawn_version}
    if str(row.deleted_by).startswith("source:"):
        return True
    return row.withdrawn_version is not None and not session.execute(newer, values).scalar_one()


def _restore_one(session: Session, tenant_id: UUID, row: Any, batch: Batch) -> str:
    """Undo the deletion of one locked document; returns its state."""
    ids = {"tenant": tenant_id, "document": row.document_id}
    write_one(
        session,
        "update rag.documents set state = 'received', deleted_at = null, deleted_by = null, "
        "deleted_version_id = null, acts = acts + 1, updated_at = now() "
        "where tenant_id = :tenant and document_id = :document",
        ids,
    )
    # A page that was not fetched any more because of the deletion is fetched again.
    session.execute(
        text(
            "update core.web_pages set state = 'fetched' where tenant_id = :tenant and document_id = :document "
            "and state = 'excluded'"
        ),
        ids,
    )
    if row.deleted_version_id is not None:
        _answer_again(session, tenant_id, row, batch)
    _go_on(session, tenant_id, row, batch)
    state: str = session.execute(
        text(
            "update rag.documents set state = case when state = 'received' then 'failed' else state end, "
            "reason = case when state = 'received' then :reason else reason end, "
            "message = case when state = 'received' then :message else message end, "
            "next_action = case when state = 'received' then :next_action else next_action end "
            "where tenant_id = :tenant and document_id = :document returning state"
        ),
        ids | {"reason": LOST.reason, "message": LOST.message, "next_action": LOST.next_action},
    ).scalar_one()
    return state


def _answer_again(session: Session, tenant_id: UUID, row: Any, batch: Batch) -> None:
    version_id = row.deleted_version_id
    if not incomplete(session, tenant_id, version_id):
        swap_in(session, tenant_id, row.document_id, version_id)
        publish_indexed(session, tenant_id, version_id, uuid5(version_id, f"indexed:act:{row.acts + 1}"))
        return
    _set_going(session, tenant_id, row.document_id, version_id, batch, f"restored:{row.acts + 1}")


def _go_on(session: Session, tenant_id: UUID, row: Any, batch: Batch) -> None:
    """Take up what was in progress when the document was deleted: stored chunks are embedded, the rest is lost.

    Not what an earlier deletion had interrupted: its source has sent something newer since.
    """
    document_id = row.document_id
    versions = session.execute(
        text(
            "select version_id, content_hash from rag.versions where tenant_id = :tenant and document_id = :document "
            "and state = 'superseded' and reason = :interrupted and updated_at >= :deleted_at order by source_version"
        ),
        {
            "tenant": tenant_id,
            "document": document_id,
            "interrupted": INTERRUPTED,
            "deleted_at": row.deleted_at,
        },
    ).all()
    for version in versions:
        if version.content_hash:
            _set_going(session, tenant_id, document_id, version.version_id, batch, "resumed")
            finish_version(session, tenant_id, version.version_id)
            continue
        session.execute(
            text(
                "update rag.versions set state = 'received', reason = null where tenant_id = :tenant "
                "and version_id = :version"
            ),
            {"tenant": tenant_id, "version": version.version_id},
        )
        fail_version(session, tenant_id, version.version_id, LOST)


def _set_going(
    session: Session, tenant_id: UUID, document_id: UUID, version_id: UUID, batch: Batch, label: str
) -> None:
    """Make a version `ingested` again and command the vectors it lacks."""
    ids = {"tenant": tenant_id, "document": document_id, "version": version_id}
    write_one(
        session,
        "update rag.versions set state = 'ingested', reason = :restored, updated_at = now() "
        "where tenant_id = :tenant and version_id = :version",
        ids | {"restored": RESTORED},
    )
    session.execute(
        text(
            "update rag.documents set state = 'ingested' where tenant_id = :tenant and document_id = :document "
            "and current_version_id is null"
        ),
        ids,
    )
    command_missing(session, tenant_id, version_id, batch, label)
