"""The bytes of documents that are deleted for good, if nothing else of the tenant refers to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal, operator_session
from shared.errors import PermanentError
from shared.storage import Storage


@dataclass(frozen=True, slots=True)
class Released:
    """Blobs: `deleted` now, `shared` with another document, `left` to the collector because somebody sent them anew."""

    deleted: int = 0
    shared: int = 0
    left: int = 0


def blobs_of(operator: Session, tenant_id: UUID, documents: Sequence[UUID]) -> dict[str, datetime]:
    """The URIs of the documents' files, each with the time at which its last version was changed."""
    rows = operator.execute(
        text(
            "select blob_uri, max(updated_at) as used_at from rag.versions where tenant_id = :tenant "
            "and document_id = any(cast(:documents as uuid[])) and blob_uri <> '' group by blob_uri"
        ),
        {"tenant": tenant_id, "documents": array_literal(documents)},
    )
    return {row.blob_uri: row.used_at for row in rows}


def release_blobs(tenant_id: UUID, blobs: dict[str, datetime], storage: Storage) -> Released:
    """Delete those to which nothing refers. What was made new after its last use is on its way to another document."""
    deleted = shared = left = 0
    for uri, used_at in blobs.items():
        try:
            # Looked at before the references are: whoever stores the bytes again from here on changes its version.
            blob = storage.find(tenant_id, uri)
        except PermanentError:
            continue  # an address on the web, not a blob of ours
        if blob is None:
            continue
        if _is_referred_to(tenant_id, uri):
            shared += 1
        elif blob.changed_at <= used_at and storage.delete(blob):
            deleted += 1
        else:
            left += 1
    return Released(deleted, shared, left)


def _is_referred_to(tenant_id: UUID, uri: str) -> bool:
    with operator_session() as operator:
        found: bool = operator.execute(
            text(
                "select exists (select from rag.versions where tenant_id = :tenant and blob_uri = :uri) "
                "or exists (select from core.outbox where tenant_id = :tenant and strpos(data, :uri) > 0) "
                "or exists (select from core.waiting_messages where tenant_id = :tenant and strpos(data, :uri) > 0) "
                # By its hash, in whatever form the message has the address: somebody may send it again.
                "or exists (select from core.dead_letters where (tenant_id = :tenant or tenant_id is null) "
                "and position(convert_to(:hash, 'UTF8') in data) > 0)"
            ),
            {"tenant": tenant_id, "uri": uri, "hash": uri[-64:]},
        ).scalar_one()
    return found
