"""Looking at dead letters: which there are, one in full but without its content. For operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters are meant; an empty field means any. `ended`: also those replayed or discarded."""

    kind: str = ""
    tenant_id: UUID | None = None
    reason: str = ""
    since: datetime | None = None
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Letter:
    """A letter on the list."""

    letter_id: UUID
    archived_at: datetime
    origin: str
    tenant_id: UUID | None
    name: str | None
    kind: str
    reason: str
    attempts: int
    replays: int
    replayed_at: datetime | None
    discarded_at: datetime | None

    @property
    def state(self) -> str:
        """`open`, `replayed` or `discarded`."""
        return "discarded" if self.discarded_at else "replayed" if self.replayed_at else "open"


_WHERE = (
    "(:kind = '' or class = :kind) and (cast(:tenant as uuid) is null or tenant_id = :tenant) "
    "and (:reason = '' or reason = :reason) "
    "and (cast(:since as timestamptz) is null or archived_at >= :since) "
    "and (:ended or (replayed_at is null and discarded_at is null))"
)


def _values(selection: Selection) -> dict[str, Any]:
    return {
        "kind": selection.kind,
        "tenant": selection.tenant_id,
        "reason": selection.reason,
        "since": selection.since,
        "ended": selection.ended,
    }


def list_letters(operator: Session, selection: Selection, limit: int = 50) -> list[Letter]:
    """The newest letters of a selection."""
    rows = operator.execute(
        text(
            "select letter_id, archived_at, origin, tenant_id, name, class, reason, attempts, replays, replayed_at, "
            f"discarded_at from core.dead_letters where {_WHERE} order by archived_at desc, letter_id limit :limit"
        ),
        _values(selection) | {"limit": limit},
    )
    return [Letter(*row) for row in rows]


def count_letters(operator: Session, selection: Selection) -> int:
    """How many letters a selection holds."""
    count: int = operator.execute(
        text(f"select count(*) from core.dead_letters where {_WHERE}"), _values(selection)
    ).scalar_one()
    return count


def choose(operator: Session, selection: Selection, limit: int) -> Sequence[UUID]:
    """The oldest letters of a selection: what failed first is replayed first."""
    rows = operator.execute(
        text(f"select letter_id from core.dead_letters where {_WHERE} order by archived_at, letter_id limit :limit"),
        _values(selection) | {"limit": limit},
    )
    return [row.letter_id for row in rows]


def describe(operator: Session, letter_id: UUID) -> dict[str, Any] | None:
    """Everything about a letter but its content; `before` is the letter this message was when it failed last."""
    row = operator.execute(
        text(
            "select l.letter_id, l.origin, l.message_id, l.tenant_id, l.name, l.class, l.reason, l.message, "
            "l.attempts, l.traceparent, l.event_id, octet_length(l.data) as bytes, "
            "(select array_agg(k order by k) from jsonb_object_keys(l.attributes) k) as attributes, "
            "l.archived_at, l.replayed_at, l.replays, l.automatic_replays, l.discarded_at, "
            "(select b.letter_id from core.dead_letters b where b.replay_id = l.event_id limit 1) as before "
            "from core.dead_letters l where l.letter_id = :id"
        ),
        {"id": letter_id},
    ).first()
    return None if row is None else dict(row._mapping)
