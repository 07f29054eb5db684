"""When a version becomes searchable: complete in every live space, under the document's lock, swapped at once."""

from __future__ import annotations

from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import write_one
from shared.events import DocumentIndexed
from shared.messaging import publish


def finish_version(session: Session, tenant_id: UUID, version_id: UUID) -> bool:
    """Swap a complete version in; True when it became searchable now.

    Called by ingest (nothing may have changed) and by every embedding batch, after its vectors are written in the
    same transaction. The document is locked first and what is missing is counted in a statement of its own: counting
    before locking loses the swap when the two last batches finish together (HOUSE).
    """
    ids = {"tenant": tenant_id, "version": version_id}
    document = session.execute(
        text(
            "select d.document_id, d.source, d.external_id from rag.documents d join rag.versions v "
            "on v.tenant_id = d.tenant_id and v.document_id = d.document_id "
            "where v.tenant_id = :tenant and v.version_id = :version for update of d"
        ),
        ids,
    ).first()
    if document is None:
        return False
    version = session.execute(
        text(
            "select v.state, v.source_version, v.chunks, v.traceparent, d.withdrawn_version, "
            "c.source_version as current "
            "from rag.versions v join rag.documents d on d.tenant_id = v.tenant_id and d.document_id = v.document_id "
            "left join rag.versions c on c.tenant_id = d.tenant_id and c.version_id = d.current_version_id "
            "where v.tenant_id = :tenant and v.version_id = :version"
        ),
        ids,
    ).one()
    if version.state != "ingested" or _incomplete(session, tenant_id, version_id):
        return False
    late = version.current is not None and version.current >= version.source_version
    withdrawn = version.withdrawn_version is not None and version.withdrawn_version >= version.source_version
    if late or withdrawn:
        _set_state(session, tenant_id, version_id, "superseded")
        return False
    session.execute(
        text(
            "update rag.versions set state = 'superseded', updated_at = now() "
            "where tenant_id = :tenant and document_id = :document and state = 'searchable'"
        ),
        {"tenant": tenant_id, "document": document.document_id},
    )
    _set_state(session, tenant_id, version_id, "searchable")
    write_one(
        session,
        "update rag.documents set current_version_id = :version, state = 'searchable', reason = null, "
        "message = null, next_action = null, updated_at = now() "
        "where tenant_id = :tenant and document_id = :document",
        ids | {"document": document.document_id},
    )
    publish(
        session,
        DocumentIndexed(
            event_id=uuid5(version_id, "indexed"),
            tenant_id=tenant_id,
            traceparent=version.traceparent,
            source=document.source,
            external_id=document.external_id,
            source_version=version.source_version,
            document_id=document.document_id,
            version_id=version_id,
            chunks=version.chunks,
        ),
    )
    return True


def _incomplete(session: Session, tenant_id: UUID, version_id: UUID) -> bool:
    """Whether a chunk of the version lacks a vector in a space that is active or filling."""
    found: bool = session.execute(
        text(
            "select exists (select from rag.tenant_spaces s join rag.chunks c on c.tenant_id = s.tenant_id "
            "where s.tenant_id = :tenant and s.state in ('active', 'filling') and c.version_id = :version "
            "and not exists (select from rag.embeddings e where e.tenant_id = :tenant "
            "and e.space_id = s.space_id and e.chunk_id = c.chunk_id))"
        ),
        {"tenant": tenant_id, "version": version_id},
    ).scalar_one()
    return found


def _set_state(session: Session, tenant_id: UUID, version_id: UUID, state: str) -> None:
    write_one(
        session,
        "update rag.versions set state = :state, updated_at = now() "
        "where tenant_id = :tenant and version_id = :version",
        {"state": state, "tenant": tenant_id, "version": version_id},
    )
