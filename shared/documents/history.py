"""The versions of a document, and going back to an earlier one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared import audit
from shared.database import write_one
from shared.documents.acting import Actor, read_for, with_attachments
from shared.documents.completion import incomplete, publish_indexed, swap_in
from shared.documents.following import follow_back
from shared.documents.overtaking import end_older
from shared.errors import PermanentError
from shared.retrieval.spaces import hold_spaces


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version in a document's history. `current`: it answers. `kept`: its chunks are still there.

    `bytes` is the size of the file, `chunks` how many it was cut into. `rejected_by` is who rolled back from it.
    """

    version_id: UUID
    source_version: int
    state: str
    current: bool
    kept: bool
    file_name: str
    media_type: str
    bytes: int
    chunks: int
    content_hash: str
    reason: str | None
    message: str | None
    next_action: str | None
    created_at: datetime
    updated_at: datetime
    rejected_at: datetime | None
    rejected_by: str | None
    purged_at: datetime | None


_HISTORY = """
select v.version_id, v.source_version, v.state, coalesce(v.version_id = d.current_version_id, false) as current,
       v.chunks > 0 and v.purged_at is null as kept, v.file_name, v.media_type, v.bytes, v.chunks, v.content_hash,
       v.reason, v.message, v.next_action, v.created_at, v.updated_at, v.rejected_at, v.rejected_by, v.purged_at
from rag.versions v join rag.documents d on d.tenant_id = v.tenant_id and d.document_id = v.document_id
where v.tenant_id = :tenant and v.document_id = :document order by v.source_version desc
"""


def read_history(session: Session, actor: Actor, document_id: UUID) -> list[VersionRow]:
    """All versions of a document, newest first. Raises PermanentError `unknown-document`."""
    read_for(session, actor, document_id)
    rows = session.execute(text(_HISTORY), {"tenant": actor.tenant_id, "document": document_id})
    return [VersionRow(*row) for row in rows]


def roll_back(session: Session, actor: Actor, document_id: UUID, version_id: UUID) -> None:
    """Let an earlier (or, undoing that, a later) complete version answer from now on.

    What arrives late up to the version that answered until now changes nothing (the floor); a newer version wins again,
    unless it has exactly the bytes that were rejected here. The versions newer than the chosen one are rejected only
    in so far as they answered. Attachments follow: those of the chosen version answer, others are hidden.
    Raises PermanentError `unknown-document`, `unknown-version`, `document-deleted`, `version-current`,
    `version-failed`, `version-unchanged`, `version-incomplete`, `version-purged`, `version-not-embedded`.
    """
    read_for(session, actor, document_id)
    with_attachments(session, actor.tenant_id, [document_id])
    document = read_for(session, actor, document_id)
    hold_spaces(session, actor.tenant_id)
    version = _choose(session, actor.tenant_id, document, version_id)
    ids = {"tenant": actor.tenant_id, "document": document_id, "number": version.source_version}
    answered = session.execute(
        text(
            # What answered, with the later submissions that brought the same content again.
            "select max(v.source_version) from rag.versions v join rag.versions c on c.tenant_id = v.tenant_id "
            "and c.version_id = :current where v.tenant_id = :tenant and v.document_id = :document "
            "and (v.version_id = c.version_id or (v.state = 'unchanged' and v.content_hash = c.content_hash))"
        ),
        ids | {"current": document.current_version_id},
    ).scalar()
    session.execute(
        text(
            "update rag.versions set rejected_at = now(), rejected_by = :by where tenant_id = :tenant "
            "and version_id = :current and source_version > :number"
        ),
        ids | {"current": document.current_version_id, "by": actor.name},
    )
    # Whoever chooses content wants it: it is no longer what somebody rolled back from, whichever version carried it.
    session.execute(
        text(
            "update rag.versions set rejected_at = null, rejected_by = null where tenant_id = :tenant "
            "and document_id = :document and content_hash = :hash and rejected_at is not null"
        ),
        ids | {"hash": version.content_hash},
    )
    swap_in(session, actor.tenant_id, document_id, version_id)
    write_one(
        session,
        "update rag.documents set acts = acts + 1, floor_version = greatest(floor_version, cast(:floor as bigint)) "
        "where tenant_id = :tenant and document_id = :document",
        ids | {"floor": answered},
    )
    floor = version.source_version if answered is None else answered
    # What is still in progress up to the floor would change nothing, but cost.
    end_older(session, actor.tenant_id, document_id, floor + 1)
    attachments = follow_back(session, actor.tenant_id, document.source, document_id, version.content_hash, floor)
    publish_indexed(session, actor.tenant_id, version_id, uuid5(version_id, f"indexed:act:{document.acts + 1}"))
    audit.record_own(
        session,
        actor=actor.name,
        action="document-rolled-back",
        subject=str(document_id),
        from_version=document.current_version_id,
        to_version=version_id,
        floor=answered,
        attachments=attachments,
    )


def _choose(session: Session, tenant_id: UUID, document: Any, version_id: UUID) -> Any:
    """The version that is to answer. Raises PermanentError when it cannot."""
    if document.state == "deleted":
        raise PermanentError("document-deleted", "The document is deleted.", "Restore it first.")
    row = session.execute(
        text(
            "select v.version_id, v.source_version, v.state, v.content_hash, v.chunks, v.purged_at, "
            "(select count(*) from rag.chunks c where c.tenant_id = :tenant and c.version_id = v.version_id) as kept "
            "from rag.versions v where v.tenant_id = :tenant and v.version_id = :version and v.document_id = :document"
        ),
        {"tenant": tenant_id, "version": version_id, "document": document.document_id},
    ).first()
    if row is None:
        raise PermanentError("unknown-version", "The document has no such version.", "See its history.")
    if row.version_id == document.current_version_id:
        raise PermanentError("version-current", "This version answers already.", "Choose another one.")
    if row.state == "failed":
        raise PermanentError("version-failed", "This version failed and never answered.", "Choose a complete one.")
    if row.state == "unchanged":
        raise PermanentError(
            "version-unchanged",
            "This version brought no new content.",
            "Choose the earlier version that has the same content.",
        )
    if row.purged_at is not None:
        raise PermanentError(
            "version-purged", "The content of this version is no longer kept.", "Submit it again as a new version."
        )
    if row.state in ("received", "ingested") or row.kept == 0 or row.kept < row.chunks:
        raise PermanentError("version-incomplete", "This version was never complete.", "Choose a complete one.")
    if incomplete(session, tenant_id, version_id):
        raise PermanentError(
            "version-not-embedded",
            "This version has no vectors in a vector space that the tenant uses now.",
            "Submit its content again as a new version.",
        )
    return row
