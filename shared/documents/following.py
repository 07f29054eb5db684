"""Attachments of a document that is rolled back: those of the version that answers again answer, the others are hidden.

Somebody may go back because of what a version carried. Which attachments a version had is known by their own versions:
they have the number of the document's they came with, or of a later one that brought the same bytes again.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import write_one
from shared.documents.completion import incomplete, publish_indexed, swap_in
from shared.documents.deletion import hide
from shared.documents.overtaking import end_older
from shared.events import DocumentRemoved, new_traceparent
from shared.messaging import publish

# What people deleted themselves stays deleted. "again": the version whose content came with one of the numbers.
_CARRIED = """
select d.document_id, d.external_id, d.state, d.acts, d.current_version_id, again.version_id, again.content_hash,
       coalesce((select max(n.source_version) from rag.versions n where n.tenant_id = :tenant
                 and n.document_id = d.document_id), 0) as newest
from rag.documents p join rag.documents d on d.tenant_id = p.tenant_id and d.source = p.source
 and d.attachment_of = p.external_id
left join lateral (
    select c.version_id, c.content_hash from rag.versions a join rag.versions c on c.tenant_id = a.tenant_id
    and c.document_id = a.document_id and c.content_hash = a.content_hash
    and c.state in ('searchable', 'superseded') and c.chunks > 0 and c.purged_at is null
    where a.tenant_id = :tenant and a.document_id = d.document_id and a.state <> 'failed' and a.content_hash <> ''
    and a.source_version in (select v.source_version from rag.versions v where v.tenant_id = :tenant
      and v.document_id = p.document_id and v.content_hash = :hash and v.state <> 'failed')
    order by a.source_version desc, c.source_version desc limit 1) again on true
where p.tenant_id = :tenant and p.document_id = :document
  and (d.state <> 'deleted' or d.deleted_by like 'source:%')
order by d.document_id
"""


def follow_back(
    session: Session, tenant_id: UUID, source: str, document_id: UUID, content_hash: str, floor: int
) -> int:
    """Let the attachments of a rolled back document follow it, at any depth; returns how many changed.

    `content_hash` is what the document answers with now. What arrives late up to the `floor` changes nothing for them
    either. One whose content is not kept, or lacks vectors, is hidden like those that do not belong to it. The caller
    holds all documents and the spaces.
    """
    rows = session.execute(text(_CARRIED), {"tenant": tenant_id, "document": document_id, "hash": content_hash}).all()
    changed = 0
    for row in rows:
        stays = row.version_id is not None and not incomplete(session, tenant_id, row.version_id)
        if stays and row.version_id != row.current_version_id:
            _answer_again(session, tenant_id, row)
            changed += 1
        elif not stays and row.state != "deleted":
            _hide(session, tenant_id, source, row)
            changed += 1
        write_one(
            session,
            "update rag.documents set floor_version = greatest(floor_version, cast(:floor as bigint)) "
            "where tenant_id = :tenant and document_id = :document",
            {"tenant": tenant_id, "document": row.document_id, "floor": floor},
        )
        end_older(session, tenant_id, row.document_id, floor + 1)
        inside = row.content_hash if stays else ""
        changed += follow_back(session, tenant_id, source, row.document_id, inside, floor)
    return changed


def _answer_again(session: Session, tenant_id: UUID, row: Any) -> None:
    swap_in(session, tenant_id, row.document_id, row.version_id)
    write_one(
        session,
        "update rag.documents set acts = acts + 1 where tenant_id = :tenant and document_id = :document",
        {"tenant": tenant_id, "document": row.document_id},
    )
    publish_indexed(session, tenant_id, row.version_id, uuid5(row.version_id, f"indexed:act:{row.acts + 1}"))


def _hide(session: Session, tenant_id: UUID, source: str, row: Any) -> None:
    """As if its source no longer had it: its next version brings it back."""
    hide(session, tenant_id, row.document_id, f"source:{source}")
    publish(
        session,
        DocumentRemoved(
            event_id=uuid5(row.document_id, f"removed:act:{row.acts + 1}"),
            tenant_id=tenant_id,
            traceparent=new_traceparent(),
            source=source,
            external_id=row.external_id,
            source_version=row.newest,
            document_id=row.document_id,
        ),
    )
