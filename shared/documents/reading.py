"""What people see of documents: states with progress and reasons, and the passage behind a citation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared import tracing
from shared.database import array_literal
from shared.documents.access import MAY_SEE_VERSION
from shared.documents.intake import document_id_of
from shared.documents.tombstones import is_entombed
from shared.documents.uploads import not_allowed
from shared.events import DocumentSubmitted, new_traceparent
from shared.messaging import publish
from shared.tenants.directory import Principal, require_source

WEB = "web"

_MEMBERS = "array(select m.email from core.members m where m.tenant_id = :tenant and m.member_id = :member)"
_GROUPS = """array(select g.name from core.groups g join core.group_members gm
 on gm.tenant_id = g.tenant_id and gm.group_id = g.group_id where g.tenant_id = :tenant and gm.member_id = :member)"""

# Who may see a document: no access list, or on it by address or group. The search has the same condition.
MAY_SEE = f"""((d.access_members = '{{}}' and d.access_groups = '{{}}')
 or d.access_members && {_MEMBERS} or d.access_groups && {_GROUPS})"""

# What answered before had a list of its own: the text of a version `v` may be seen by who may see both.
MAY_SEE_TEXT = f"({MAY_SEE} and {MAY_SEE_VERSION.format(members=_MEMBERS, groups=_GROUPS)})"


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """A document in a list. `chunks_done` of `chunks` counts embedded chunks of the newest version."""

    document_id: UUID
    source: str
    external_id: str
    title: str
    state: str
    reason: str | None
    message: str | None
    next_action: str | None
    version_id: UUID | None
    source_version: int | None
    media_type: str | None
    bytes: int | None
    chunks: int | None
    chunks_done: int | None
    pending: int
    """Versions that are received or ingested: something newer than what answers is on its way."""
    updated_at: Any
    waiting: str | None
    """What the newest version waits for while it is in progress: `turn`, `provider`, `budget`, `price`."""
    waiting_until: Any


@dataclass(frozen=True, slots=True)
class ChunkView:
    """A chunk with its document, as a citation shows it; `before` and `after` are the neighbouring chunks' texts."""

    chunk_id: UUID
    document_id: UUID
    version_id: UUID
    title: str
    text: str
    heading_path: tuple[str, ...]
    position: dict[str, Any]
    current: bool


_LIST = f"""
select d.document_id, d.source, d.external_id, d.title, d.state, d.reason, d.message, d.next_action,
       v.version_id, v.source_version, v.media_type, v.bytes, v.chunks,
       case when v.state = 'ingested' then
            (select count(*) from rag.chunks c join rag.tenant_spaces s on s.tenant_id = c.tenant_id
              and s.state = 'active'
             join rag.embeddings e on e.tenant_id = c.tenant_id and e.space_id = s.space_id
              and e.chunk_id = c.chunk_id
             where c.tenant_id = :tenant and c.version_id = v.version_id)
            else v.chunks end as chunks_done,
       (select count(*) from rag.versions p where p.tenant_id = :tenant and p.document_id = d.document_id
         and p.state in ('received', 'ingested')) as pending,
       d.updated_at,
       case when v.state in ('received', 'ingested') then v.waiting end as waiting,
       case when v.state in ('received', 'ingested') then v.waiting_until end as waiting_until
from rag.documents d
left join lateral (select * from rag.versions v where v.tenant_id = :tenant and v.document_id = d.document_id
                   order by v.source_version desc limit 1) v on true
where d.tenant_id = :tenant and {MAY_SEE}
"""  # made of constants


def list_documents(session: Session, principal: Principal, limit: int = 100) -> list[DocumentRow]:
    """The documents a member may see, last changed first."""
    rows = session.execute(
        text(_LIST + " order by d.updated_at desc, d.document_id limit :limit"),
        {"tenant": principal.tenant_id, "member": principal.member_id, "limit": limit},
    )
    return [DocumentRow(*row) for row in rows]


def read_document(session: Session, principal: Principal, document_id: UUID) -> DocumentRow | None:
    """One document the member may see, or None."""
    row = session.execute(
        text(_LIST + " and d.document_id = :document"),
        {"tenant": principal.tenant_id, "member": principal.member_id, "document": document_id},
    ).first()
    return DocumentRow(*row) if row else None


def read_chunk(session: Session, principal: Principal, chunk_id: UUID) -> ChunkView | None:
    """The chunk behind a citation, if the member may see its document and it was not withdrawn; else None."""
    row = session.execute(
        text(
            "select c.chunk_id, c.document_id, c.version_id, d.title, c.text, c.heading_path, c.position, "
            "d.current_version_id = c.version_id as current "
            "from rag.chunks c join rag.documents d on d.tenant_id = c.tenant_id and d.document_id = c.document_id "
            "join rag.versions v on v.tenant_id = c.tenant_id and v.version_id = c.version_id "
            f"where c.tenant_id = :tenant and c.chunk_id = :chunk and d.state <> 'deleted' and {MAY_SEE_TEXT}"
        ),
        {"tenant": principal.tenant_id, "member": principal.member_id, "chunk": chunk_id},
    ).first()
    if row is None:
        return None
    return ChunkView(**{**row._mapping, "heading_path": tuple(row.heading_path), "current": bool(row.current)})


def was_closed(session: Session, tenant_id: UUID, member_id: UUID, documents: Sequence[UUID]) -> bool:
    """Whether one of these documents has been deleted, or closed to this member, since they were read.

    One that is gone for good counts for none: whoever purges documents deals with what had read them.
    """
    found = session.execute(
        text(
            "select 1 from rag.documents d where d.tenant_id = :tenant "
            f"and d.document_id = any(cast(:documents as uuid[])) and (d.state = 'deleted' or not {MAY_SEE}) limit 1"
        ),
        {"tenant": tenant_id, "member": member_id, "documents": array_literal(documents)},
    )
    return found.first() is not None


def submit_blob(
    session: Session, principal: Principal, uri: str, file_name: str, media_type: str = "", *, version: int
) -> UUID:
    """Take a member's upload, stored before the session began: the document is `received`, ingest is told.

    Returns its id. The file name is the document's id at the source `web`: the same name again is a new version.
    `version` must grow (the caller's clock in microseconds). Raises PermanentError `source-not-bound` where web may not
    speak for the tenant, and `upload-not-allowed` for one that is told again after its document was deleted for good:
    nobody would ever read either.
    """
    require_source(session, principal.tenant_id, WEB)
    document_id = document_id_of(principal.tenant_id, WEB, file_name)
    event = DocumentSubmitted(
        event_id=uuid5(document_id, f"submitted:{version}"),
        tenant_id=principal.tenant_id,
        traceparent=tracing.current_traceparent(new_traceparent()),
        external_id=file_name,
        source_version=version,
        file_name=file_name,
        media_type=media_type,
        uri=uri,
    )
    if is_entombed(session, principal.tenant_id, WEB, file_name, version, event.occurred_at):
        raise not_allowed()
    session.execute(
        text(
            "insert into rag.documents (tenant_id, document_id, collection_id, source, external_id, title, state) "
            "values (:tenant, :document, :collection, :source, :name, :name, 'received') on conflict do nothing"
        ),
        {
            "tenant": principal.tenant_id,
            "document": document_id,
            "collection": uuid5(principal.tenant_id, "collection:default"),
            "source": WEB,
            "name": file_name,
        },
    )
    publish(session, event, topic="documents-web")
    return document_id


def outcomes(session: Session, tenant_id: UUID, versions: dict[UUID, int]) -> dict[UUID, DocumentRow]:
    """How far submitted versions are, by document id; only those that arrived at their version or a later one."""
    rows = session.execute(
        text(_LIST.replace(MAY_SEE, "true") + " and d.document_id = any(cast(:ids as uuid[]))"),
        {"tenant": tenant_id, "ids": array_literal(versions)},
    )
    found = (DocumentRow(*row) for row in rows)
    return {
        row.document_id: row
        for row in found
        if row.source_version is not None and row.source_version >= versions[row.document_id]
    }
