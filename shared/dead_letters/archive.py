"""Keeping a message that nobody could handle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.errors import PermanentError
from shared.events import TenantMessage, decode
from shared.masking import mask
from shared.messaging import storable

LETTERS = UUID("6f1c5a52-6d5e-4d8e-9f0e-1f2f6a0d7c11")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that nobody could handle, with the reason.

    `kind` is one of `tables.CLASSES`, `origin` the subscription that delivered it (or, unknown, the path).
    """

    origin: str
    message_id: str
    data: bytes
    attributes: dict[str, str]
    kind: str
    reason: str
    message: str
    attempts: int = 1


def class_of(error: PermanentError) -> str:
    """The class of a message that was refused for this reason after it was understood."""
    return "budget" if error.reason.startswith("budget-") else "permanent"


def archive(session: Session, letters: Iterable[DeadLetter]) -> None:
    """Keep dead letters for the operators. The same message twice is one letter.

    Tenant, name, event id and trace are what the message claims: a hint for people, trusted by nobody.
    """
    for letter in letters:
        claims = _claims(letter)
        session.execute(
            text(
                "insert into core.dead_letters (letter_id, origin, message_id, tenant_id, name, class, reason, "
                "message, attempts, attributes, data, traceparent, event_id) "
                "values (:letter_id, :origin, :message_id, :tenant_id, :name, :class, :reason, :message, "
                ":attempts, cast(:attributes as jsonb), :data, :traceparent, :event_id) on conflict do nothing"
            ),
            {
                "letter_id": letter_id_of(letter),
                "origin": storable(letter.origin),
                "message_id": storable(letter.message_id),
                "tenant_id": _uuid_or_none(claims.get("tenant_id")),
                "name": storable(claims.get("name", ""))[:200] or None,
                "class": letter.kind,
                "reason": letter.reason,
                "message": mask(storable(letter.message)),
                "attempts": letter.attempts,
                "attributes": json.dumps({storable(k): storable(v) for k, v in letter.attributes.items()}),
                "data": letter.data,
                "traceparent": storable(claims.get("traceparent", ""))[:100] or None,
                "event_id": _uuid_or_none(claims.get("event_id")),
            },
        )


def is_archived(operator: Session, letter: DeadLetter) -> bool:
    """Whether this message is kept already. For operators: the application may only insert."""
    found = operator.execute(
        text("select 1 from core.dead_letters where letter_id = :id"), {"id": letter_id_of(letter)}
    ).scalar()
    return found is not None


def letter_id_of(letter: DeadLetter) -> UUID:
    """The id of a letter follows from its message, so archiving it twice keeps one."""
    # What is no push body has no message id; then the bytes tell one from another.
    message_id = storable(letter.message_id) or hashlib.sha256(letter.data).hexdigest()
    return uuid5(LETTERS, f"{storable(letter.origin)}\n{message_id}")


def _claims(letter: DeadLetter) -> dict[str, str]:
    """What the message says about itself: its body where it can be read, else its attributes."""
    try:
        message = decode(letter.data, letter.attributes)
    except PermanentError:
        return letter.attributes
    claims = {"name": message.wire_name, "event_id": str(message.event_id), "traceparent": message.traceparent}
    if isinstance(message, TenantMessage):
        claims["tenant_id"] = str(message.tenant_id)
    return claims


def _uuid_or_none(value: str | None) -> UUID | None:
    try:
        return UUID(value) if value else None
    except ValueError:
        return None
