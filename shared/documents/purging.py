"""What is no longer kept: documents deleted 30 days ago, and the content of versions that were superseded long ago.

For the daily job. A version whose content is purged stays in the history as a row.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal
from shared.documents.deletion import RESTORABLE

KEPT_VERSIONS = 5
"""So many superseded versions of a document keep their content, however old: what people go back to is recent."""

KEPT_FOR = timedelta(days=30)
"""A younger one keeps it too, up to …"""

MOST_VERSIONS = 50
"""… so many: a document that changes every minute must not fill the index with what nobody searches."""


@dataclass(frozen=True, slots=True)
class Kept:
    """How many chunks were purged, of how many versions."""

    versions: int
    chunks: int


def due_documents(operator: Session, limit: int, but: Collection[UUID] = ()) -> tuple[UUID, list[UUID]] | None:
    """Documents of one tenant that were deleted long enough ago, longest first; None when there are no others `but`."""
    rows = operator.execute(
        text(
            "with due as (select tenant_id, document_id, deleted_at from rag.documents where state = 'deleted' "
            "and deleted_at < now() - cast(:kept as interval) and document_id <> all(cast(:but as uuid[]))) "
            "select tenant_id, document_id from due where tenant_id = (select tenant_id from due "
            "order by deleted_at, tenant_id limit 1) order by deleted_at, document_id limit :limit"
        ),
        {"kept": RESTORABLE, "limit": limit, "but": array_literal(but)},
    ).all()
    if not rows:
        return None
    return rows[0].tenant_id, [row.document_id for row in rows]


def due_count(operator: Session) -> int:
    """How many documents are due."""
    number: int = operator.execute(
        text(
            "select count(*) from rag.documents where state = 'deleted' and deleted_at < now() - cast(:k as interval)"
        ),
        {"k": RESTORABLE},
    ).scalar_one()
    return number


_OLD = """
select v.tenant_id, v.document_id, v.version_id, v.chunks from (
    select v.tenant_id, v.document_id, v.version_id, v.chunks, v.state, v.updated_at,
           count(*) filter (where v.state = 'superseded') over (
               partition by v.tenant_id, v.document_id order by v.source_version desc) as place
    from rag.versions v
    where v.state in ('superseded', 'failed') and v.chunks > 0 and v.purged_at is null) v
join rag.documents d on d.tenant_id = v.tenant_id and d.document_id = v.document_id
where d.state <> 'deleted'
  and case v.state when 'failed' then v.updated_at < now() - cast(:kept as interval)
      else v.place > :most or v.place > :versions and v.updated_at < now() - cast(:kept as interval) end
order by v.updated_at, v.version_id limit :limit
"""


def purge_old_content(operator: Session, *, versions: int, chunks: int) -> Kept:
    """Delete chunks, words and vectors of old versions, at most so many versions and about so many chunks at once.

    Nothing is deleted of what answers, and of deleted documents, which go whole or come back. The bytes of the files
    are left to the collector of blobs: nothing names them any more.
    """
    limits = {"kept": KEPT_FOR, "versions": KEPT_VERSIONS, "most": MOST_VERSIONS, "limit": versions}
    chosen: list[Any] = []
    number = 0
    for row in operator.execute(text(_OLD), limits):
        if chosen and number + row.chunks > chunks:
            break
        chosen.append(row)
        number += row.chunks
    values = {
        "tenants": array_literal({row.tenant_id for row in chosen}),
        "documents": array_literal({row.document_id for row in chosen}),
        "ids": array_literal(row.version_id for row in chosen),
    }
    where = "tenant_id = any(cast(:tenants as uuid[]))"
    # Whoever rolls back or deletes meanwhile is waited for, and what they made of the version is seen below.
    operator.execute(
        text(
            f"select 1 from rag.documents where {where} and document_id = any(cast(:documents as uuid[])) "
            "order by document_id for update"
        ),
        values,
    )
    purged = operator.execute(
        text(
            f"update rag.versions v set purged_at = now(), blob_uri = '' where {where} "
            "and version_id = any(cast(:ids as uuid[])) and state in ('superseded', 'failed') and purged_at is null "
            "and not exists (select from rag.documents d where d.tenant_id = v.tenant_id "
            "and d.document_id = v.document_id and d.state = 'deleted') returning version_id"
        ),
        values,
    ).scalars()
    gone = list(purged)
    deleted = operator.execute(
        text(f"delete from rag.chunks where {where} and version_id = any(cast(:gone as uuid[]))"),
        values | {"gone": array_literal(gone)},
    )
    return Kept(len(gone), int(deleted.rowcount))  # type: ignore[attr-defined]
