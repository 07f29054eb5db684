"""What was deleted for good does not come back through an old message: a hash outlives the document."""

from __future__ import annotations

import hashlib
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session


def tombstone_key(tenant_id: UUID, source: str, external_id: str) -> bytes:
    """SHA-256 of tenant, source and external id: 32 bytes that name a document to who knows its name already."""
    return hashlib.sha256(f"{tenant_id}\n{source}\n{external_id}".encode()).digest()


def is_entombed(
    session: Session, tenant_id: UUID, source: str, external_id: str, source_version: int, occurred_at: datetime
) -> bool:
    """Whether a message is about what was deleted for good: sent before it, or of a version known then.

    A newer version that was sent afterwards is a new document, by decision of who sends it.
    """
    found = session.execute(
        text(
            "select 1 from rag.tombstones where tenant_id = :tenant and key = :key "
            "and (source_version >= :number or deleted_at >= :occurred_at)"
        ),
        {
            "tenant": tenant_id,
            "key": tombstone_key(tenant_id, source, external_id),
            "number": source_version,
            "occurred_at": occurred_at,
        },
    ).scalar()
    return found is not None


def raise_tombstone(session: Session, tenant_id: UUID, source: str, external_id: str, source_version: int) -> bool:
    """Note a withdrawal of what was deleted for good; False when there is no tombstone."""
    raised = session.execute(
        text(
            "update rag.tombstones set source_version = greatest(source_version, :number) "
            "where tenant_id = :tenant and key = :key"
        ),
        {
            "tenant": tenant_id,
            "key": tombstone_key(tenant_id, source, external_id),
            "number": source_version,
        },
    )
    return bool(raised.rowcount)  # type: ignore[attr-defined]


def entomb(
    operator: Session, tenant_id: UUID, source: str, external_id: str, source_version: int, deleted_at: datetime
) -> None:
    """Set the tombstone of a document that is deleted for good now. For operators."""
    operator.execute(
        text(
            "insert into rag.tombstones as t (tenant_id, key, source_version, deleted_at) "
            "values (:tenant, :key, :number, :deleted_at) on conflict (tenant_id, key) do update "
            "set source_version = greatest(t.source_version, excluded.source_version), "
            "deleted_at = greatest(t.deleted_at, excluded.deleted_at)"
        ),
        {
            "tenant": tenant_id,
            "key": tombstone_key(tenant_id, source, external_id),
            "number": source_version,
            "deleted_at": deleted_at,
        },
    )
