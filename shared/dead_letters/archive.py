"""Keeping a message that nobody could handle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.errors import PermanentError
from shared.events import TenantMessage, decode, submission_head
from shared.masking import mask
from shared.messaging import storable

ERASED = "tenant-erased"
"""The reason of a letter that came for an erased tenant."""

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


def archive(session: Session, letters: Iterable[DeadLetter]) -> int:
    """Keep dead letters for the operators; returns how many are new. The same message twice is one letter.

    Tenant, name, event id and trace are what the message claims: a hint for people, trusted by nobody. Of a message
    for a tenant that is erased only its kind and its place in the bus are kept, without tenant or content.
    """
    kept = 0
    for given in letters:
        letter, claims = given, _claims(given)
        tenant_id = _uuid_or_none(claims.get("tenant_id"))
        erased = tenant_id is not None and is_erased(session, tenant_id)
        if erased:
            letter, claims = _without_content(given), {"name": claims.get("name", "")}
        kept += session.execute(
            text(
                "insert into core.dead_letters (letter_id, origin, message_id, tenant_id, name, class, reason, "
                "message, attempts, attributes, data, traceparent, event_id, discarded_at) "
                "values (:letter_id, :origin, :message_id, :tenant_id, :name, :class, :reason, :message, "
                ":attempts, cast(:attributes as jsonb), :data, :traceparent, :event_id, "
                "case when cast(:erased as boolean) then now() end) on conflict do nothing"
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
                "erased": erased,
            },
        ).rowcount  # type: ignore[attr-defined]
    return kept


def is_erased(session: Session, tenant_id: UUID) -> bool:
    """Whether a tenant is closed for good: its erasure has begun or ended. In any session."""
    erased: bool = session.execute(text("select core.tenant_is_erased(:tenant)"), {"tenant": tenant_id}).scalar_one()
    return erased


def _without_content(letter: DeadLetter) -> DeadLetter:
    return replace(
        letter,
        data=b"",
        attributes={},
        # The bytes of what has no message id would be in its letter's id; all such letters are one.
        message_id=letter.message_id or ERASED,
        kind="permanent",
        reason=ERASED,
        message="Its tenant has been erased; nothing of the message is kept.",
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
        head = submission_head(letter.data, letter.attributes)
        return letter.attributes if head is None else letter.attributes | {
            "name": head.wire_name, "tenant_id": str(head.tenant_id), "traceparent": head.traceparent
        }  # fmt: skip
    claims = {"name": message.wire_name, "event_id": str(message.event_id), "traceparent": message.traceparent}
    if isinstance(message, TenantMessage):
        claims["tenant_id"] = str(message.tenant_id)
    return claims


def _uuid_or_none(value: str | None) -> UUID | None:
    try:
        return UUID(value) if value else None
    except ValueError:
        return None
