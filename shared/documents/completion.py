"""When a version becomes searchable: complete in every live space, under the document's lock, swapped at once."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from shared.database import LostWrite, write_one
from shared.documents.access import settle_access
from shared.documents.ending import fail_version
from shared.documents.intake import is_rejected, rolled_back
from shared.documents.overtaking import end_older
from shared.events import DocumentIndexed
from shared.messaging import publish
from shared.retrieval.spaces import HOLD, lock_name

RESTORED = "restored"
"""The reason of a version in progress that people brought back: what they took it back from does not stop it."""


_INCOMPLETE = """exists (select from rag.tenant_spaces s join rag.chunks c on c.tenant_id = s.tenant_id
    where s.tenant_id = :tenant and s.state in ('active', 'filling') and c.version_id = :version
    and not exists (select from rag.embeddings e where e.tenant_id = :tenant
    and e.space_id = s.space_id and e.chunk_id = c.chunk_id offset 0)
    and not (s.state = 'filling' and exists (select from rag.embedding_failures f
    where f.tenant_id = :tenant and f.space_id = s.space_id and f.chunk_id = c.chunk_id)))"""
# "offset 0": see filling.THERE.

# Rows are looked up one after the other, by key, whatever statistics say: those of a tenant's first thousand documents
# know of none of them, and a join read every document and version it has, for each batch.

# The spaces are held once the document is locked: a row of the CTE is there when its lock is.
_LOCK = text(
    "with locked as (select d.document_id from rag.documents d where d.tenant_id = :tenant and d.document_id = "
    "(select v.document_id from rag.versions v where v.tenant_id = :tenant and v.version_id = :version) for update) "
    f"select {HOLD} from locked"
)

# `others`: versions that this one may replace, or whose content was rejected; a new document has none.
_STANDING = text(
    "select d.document_id, d.source, d.external_id, d.state as document_state, "
    "v.state, v.source_version, v.content_hash, v.chunks, v.traceparent, "
    "case when v.reason = :restored then c.source_version "
    "else greatest(d.withdrawn_version, d.floor_version, c.source_version) end as over, "
    "exists (select from rag.versions o where o.tenant_id = :tenant and o.document_id = d.document_id "
    "and (o.version_id <> :version or o.rejected_at is not null)) as others, "
    f"{_INCOMPLETE} as incomplete "
    "from rag.versions v cross join lateral (select * from rag.documents d where d.tenant_id = :tenant "
    "and d.document_id = v.document_id offset 0) d "
    "left join lateral (select c.source_version from rag.versions c where c.tenant_id = :tenant "
    "and c.version_id = d.current_version_id offset 0) c on true "
    "where v.tenant_id = :tenant and v.version_id = :version"
)


def finish_version(session: Session, tenant_id: UUID, version_id: UUID) -> bool:
    """Swap a complete version in; True when it became searchable now.

    Called by ingest (nothing may have changed) and by every embedding batch, after its vectors are written in the
    same transaction. The document is locked first and what is missing is counted in a statement of its own: counting
    before locking loses the swap when the two last batches finish together (HOUSE).
    """
    ids = {"tenant": tenant_id, "version": version_id}
    if session.execute(_LOCK, ids | lock_name(tenant_id)).first() is None:
        return False
    version = session.execute(_STANDING, ids | {"restored": RESTORED}).one()
    if version.state != "ingested" or version.incomplete:
        return False
    # A newer version answers, upstream withdrew it, people rolled back from it or deleted the document.
    late = version.over is not None and version.over >= version.source_version
    if late or version.document_state == "deleted":
        _set_state(session, tenant_id, version_id, "superseded")
        return False
    if version.others and is_rejected(session, tenant_id, version.document_id, version.content_hash):
        fail_version(session, tenant_id, version_id, rolled_back())
        return False
    if version.others:
        _supersede(session, tenant_id, version.document_id)
    _let_answer(session, tenant_id, version.document_id, version_id)
    if version.others:
        end_older(session, tenant_id, version.document_id, version.source_version)
        _tell_of_newer(session, tenant_id, version.document_id, version.source_version)
        settle_access(session, tenant_id, version.document_id)
    _publish(session, tenant_id, version_id, uuid5(version_id, "indexed"), version)
    return True


def swap_in(session: Session, tenant_id: UUID, document_id: UUID, version_id: UUID) -> None:
    """Let a complete version of a locked document answer from now on, instead of any other."""
    _supersede(session, tenant_id, document_id)
    _let_answer(session, tenant_id, document_id, version_id)
    settle_access(session, tenant_id, document_id)


def _supersede(session: Session, tenant_id: UUID, document_id: UUID) -> None:
    session.execute(
        text(
            "update rag.versions set state = 'superseded', updated_at = now() "
            "where tenant_id = :tenant and document_id = :document and state = 'searchable'"
        ),
        {"tenant": tenant_id, "document": document_id},
    )


_LET_ANSWER = text(
    "with version as (update rag.versions set state = 'searchable', reason = null, updated_at = now() "
    "where tenant_id = :tenant and version_id = :version returning 1), "
    "document as (update rag.documents set current_version_id = :version, state = 'searchable', reason = null, "
    "message = null, next_action = null, deleted_at = null, deleted_by = null, deleted_version_id = null, "
    "updated_at = now() where tenant_id = :tenant and document_id = :document returning 1) "
    "select (select count(*) from version), (select count(*) from document)"
)


def _let_answer(session: Session, tenant_id: UUID, document_id: UUID, version_id: UUID) -> None:
    values = {"tenant": tenant_id, "version": version_id, "document": document_id}
    written = tuple(session.execute(_LET_ANSWER, values).one())
    if written != (1, 1):
        raise LostWrite(f"letting a version answer hit {written} instead of one version and its document")


def _tell_of_newer(session: Session, tenant_id: UUID, document_id: UUID, source_version: int) -> None:
    """The document goes on saying that its newest version failed, although an older one was ready later."""
    session.execute(
        text(
            "update rag.documents d set reason = v.reason, message = v.message, next_action = v.next_action "
            "from (select * from rag.versions where tenant_id = :tenant and document_id = :document "
            "and source_version > :number order by source_version desc limit 1) v "
            "where d.tenant_id = :tenant and d.document_id = :document and v.state = 'failed'"
        ),
        {"tenant": tenant_id, "document": document_id, "number": source_version},
    )


def publish_indexed(session: Session, tenant_id: UUID, version_id: UUID, event_id: UUID) -> None:
    """Tell upstream that a version answers."""
    row = session.execute(
        text(
            "select d.document_id, d.source, d.external_id, v.source_version, v.chunks, v.traceparent "
            "from rag.versions v join rag.documents d on d.tenant_id = v.tenant_id and d.document_id = v.document_id "
            "where v.tenant_id = :tenant and v.version_id = :version"
        ),
        {"tenant": tenant_id, "version": version_id},
    ).one()
    _publish(session, tenant_id, version_id, event_id, row)


def _publish(session: Session, tenant_id: UUID, version_id: UUID, event_id: UUID, row: Row[Any]) -> None:
    publish(
        session,
        DocumentIndexed(
            event_id=event_id,
            tenant_id=tenant_id,
            traceparent=row.traceparent,
            source=row.source,
            external_id=row.external_id,
            source_version=row.source_version,
            document_id=row.document_id,
            version_id=version_id,
            chunks=row.chunks,
        ),
    )


def incomplete(session: Session, tenant_id: UUID, version_id: UUID) -> bool:
    """Whether a chunk of the version lacks a vector in a space that is active or filling.

    What the model of a filling space refused does not hold the document up: the campaign knows of it.
    """
    found: bool = session.execute(
        text(f"select {_INCOMPLETE}"), {"tenant": tenant_id, "version": version_id}
    ).scalar_one()
    return found


def _set_state(session: Session, tenant_id: UUID, version_id: UUID, state: str) -> None:
    write_one(
        session,
        "update rag.versions set state = :state, reason = null, updated_at = now() "
        "where tenant_id = :tenant and version_id = :version",
        {"state": state, "tenant": tenant_id, "version": version_id},
    )
