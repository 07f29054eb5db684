"""Messages that tell of documents which are deleted for good: waiting in the outbox, archived as dead letters."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal
from shared.documents.traces import Needles, byte_needles
from shared.errors import PermanentError
from shared.events import DocumentSubmitted, DocumentWithdrawn, EmbedChunks, Message, decode


def erase_messages(
    operator: Session, tenant_id: UUID, needles: Needles, named: Collection[tuple[str, str]]
) -> dict[str, int]:
    """Delete messages about documents; returns how many by place. `named` are their (source, external id).

    `document-removed` stays in the outbox: it says only that the document is gone. A message of another source under
    the same external id is another document's and stays too. What waits for its turn goes with its version.
    """
    values = {"tenant": tenant_id, "raw": array_literal(f"\\x{needle.hex()}" for needle in byte_needles(needles))}
    outbox = operator.execute(
        text(
            "select event_id as id, topic as origin, convert_to(data, 'UTF8') as data, attributes from core.outbox "
            "where tenant_id = :tenant and attributes ->> 'name' <> 'document-removed' and exists (select from "
            "unnest(cast(:raw as bytea[])) n where position(n in convert_to(data, 'UTF8')) > 0) for update"
        ),
        values,
    ).all()
    letters = operator.execute(
        text(
            "select letter_id as id, origin, data, attributes from core.dead_letters where tenant_id = :tenant "
            "and exists (select from unnest(cast(:raw as bytea[])) n where position(n in data) > 0) for update"
        ),
        values,
    ).all()
    return {
        "outbox": _delete(operator, "core.outbox", "event_id", tenant_id, _about(outbox, needles, named)),
        "dead_letters": _delete(operator, "core.dead_letters", "letter_id", tenant_id, _about(letters, needles, named)),
    }


def _about(rows: Any, needles: Needles, named: Collection[tuple[str, str]]) -> list[UUID]:
    ids = set(needles.ids)
    return [row.id for row in rows if _concerns(_read(row), row.origin, ids, named)]


def _read(row: Any) -> Message | None:
    try:
        return decode(bytes(row.data), row.attributes)
    except PermanentError:
        return None


def _concerns(message: Message | None, origin: str, ids: set[UUID], named: Collection[tuple[str, str]]) -> bool:
    """Whether a message that names one of them is about them; one that cannot be read is taken to be."""
    if isinstance(message, DocumentSubmitted | DocumentWithdrawn):
        sources = {source for source, external_id in named if external_id == message.external_id}
        return any(origin in (f"documents-{source}", f"ingest-{source}", f"/sources/{source}") for source in sources)
    if isinstance(message, EmbedChunks):
        return message.document_id in ids
    return True


def _delete(operator: Session, table: str, key: str, tenant_id: UUID, ids: list[UUID]) -> int:
    gone = operator.execute(
        text(f"delete from {table} where tenant_id = :tenant and {key} = any(cast(:ids as uuid[]))"),
        {"tenant": tenant_id, "ids": array_literal(ids)},
    )
    return int(gone.rowcount)  # type: ignore[attr-defined]
