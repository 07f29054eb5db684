"""Sending a dead letter again, to the topic it came from, and discarding it.

A replay inserts one outbox row under an event id that follows from the letter and the number of the replay, and sets
what failed with the letter going again, in one transaction. It never trusts the letter: the topic follows from the
subscription that delivered it (a command that arrived on a topic of documents stays where it is), and a document's
source must be bound to the tenant now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared import audit
from shared.conversations.resumption import resume_run
from shared.documents.resumption import resume_submission, resume_version
from shared.errors import PermanentError
from shared.events import (
    AnswerQuestion,
    DocumentSubmitted,
    DocumentWithdrawn,
    EmbedChunks,
    Message,
    RunJob,
    TenantMessage,
    decode,
)
from shared.messaging import publish
from shared.tenants.directory import require_source

EXHAUSTED = "attempts-exhausted"
"""The reason of what failed because every delivery of its message did: the one failure that a replay takes back."""

COMMANDS: dict[str, type[TenantMessage]] = {"embed": EmbedChunks, "agent": AnswerQuestion}
"""Subscriptions of commands, and what they carry (terraform/topology.yaml; held by tests/house)."""

SOURCE_SUBSCRIPTION, SOURCE_TOPIC = "ingest-", "documents-"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a letter. `detail` is a sentence for people."""

    letter_id: UUID
    done: bool
    detail: str


def replay(
    operator: Session,
    letter_id: UUID,
    *,
    actor: str,
    automatic: bool = False,
    again: bool = False,
    dry_run: bool = False,
) -> Outcome:
    """Send a letter again in the operator's transaction. `again`: also when it has been replayed before.

    Locks the letter, so of two replays at once the second finds the first's work done.
    """
    letter = operator.execute(
        text("select * from core.dead_letters where letter_id = :id for update"), {"id": letter_id}
    ).first()
    try:
        if letter is None:
            raise _not("There is no such dead letter.")
        message, topic = _replayable(operator, letter, again)
    except PermanentError as refusal:
        return Outcome(letter_id, False, refusal.message)
    if dry_run:
        return Outcome(letter_id, True, f"Would be sent to {topic}.")
    earlier, automatic_earlier = _counts(operator, letter)
    replay_id = uuid5(letter_id, f"replay:{letter.replays + 1}")
    resumed = _resume(operator, message, topic)
    publish(operator, message.model_copy(update={"event_id": replay_id}), topic=topic)
    operator.execute(
        text(
            "update core.dead_letters set replayed_at = now(), replay_id = :replay, replays = replays + 1, "
            "automatic_replays = :automatic where letter_id = :id"
        ),
        {"id": letter_id, "replay": replay_id, "automatic": automatic_earlier + automatic},
    )
    audit.record(
        operator,
        actor=actor,
        action="dead-letter-replayed",
        subject=str(letter_id),
        tenant_id=message.tenant_id,
        number=earlier + 1,
        reason=letter.reason,
        resumed=resumed,
    )
    return Outcome(letter_id, True, f"Sent to {topic}." + (" What had failed with it goes on." if resumed else ""))


def discard(operator: Session, letter_id: UUID, *, actor: str) -> Outcome:
    """Take a letter off the list of what is open; it stays readable until the purge."""
    row = operator.execute(
        text(
            "update core.dead_letters set discarded_at = now() where letter_id = :id and discarded_at is null "
            "and replayed_at is null returning tenant_id, reason"
        ),
        {"id": letter_id},
    ).first()
    if row is None:
        return Outcome(letter_id, False, "There is no such open dead letter.")
    audit.record(
        operator,
        actor=actor,
        action="dead-letter-discarded",
        subject=str(letter_id),
        tenant_id=row.tenant_id,
        reason=row.reason,
    )
    return Outcome(letter_id, True, "Discarded.")


def automatic_replays(operator: Session, event_id: UUID | None) -> int:
    """How often the message of this event id was replayed automatically before it came back."""
    found = operator.execute(
        text("select max(automatic_replays) from core.dead_letters where replay_id = :event"), {"event": event_id}
    ).scalar()
    return found or 0


def source_of(origin: str) -> str:
    """The source of documents behind a subscription or endpoint; empty for any other origin."""
    for prefix in (SOURCE_SUBSCRIPTION, "/sources/"):
        if origin.startswith(prefix):
            return origin.removeprefix(prefix)
    return ""


def _counts(operator: Session, letter: Any) -> tuple[int, int]:
    """All and automatic replays of this message until now, counting those of the letters it was before."""
    before = operator.execute(
        text("select replays, automatic_replays from core.dead_letters where replay_id = :event"),
        {"event": letter.event_id},
    ).first()
    if before is None:
        return letter.replays, letter.automatic_replays
    return letter.replays + before.replays, max(letter.automatic_replays, before.automatic_replays)


def _replayable(operator: Session, letter: Any, again: bool) -> tuple[TenantMessage, str]:
    """The message and the topic it goes to. Raises PermanentError with the reason why it cannot be sent."""
    if letter.discarded_at is not None:
        raise _not("It was discarded.")
    if letter.replayed_at is not None and not again:
        raise _not("It has been replayed already; if it failed again, that is a newer letter.")
    try:
        message = decode(letter.data, letter.attributes)
    except PermanentError as error:
        raise _not(f"{error.message} It has to be corrected and published anew by whoever sent it.") from None
    if isinstance(message, RunJob):
        raise _not("Jobs come again by their schedule; run one now with `noesis jobs run`.")
    topic = topic_for(letter.origin, message)
    if topic is None or not isinstance(message, TenantMessage):
        raise _not("It came by a subscription that does not carry such messages, so it has nowhere to go.")
    known = operator.execute(
        text("select 1 from core.tenants where tenant_id = :tenant"), {"tenant": message.tenant_id}
    ).scalar()
    if known is None:
        raise _not("Its tenant is not known here.")
    if source := source_of(letter.origin):
        require_source(operator, message.tenant_id, source)
    return message, topic


def topic_for(origin: str, message: Message) -> str | None:
    """The topic a message came from, None where it should not have been."""
    if source := source_of(origin):
        return f"{SOURCE_TOPIC}{source}" if isinstance(message, DocumentSubmitted | DocumentWithdrawn) else None
    kind = COMMANDS.get(origin)
    return kind.topic if kind is not None and isinstance(message, kind) else None


def _resume(operator: Session, message: TenantMessage, topic: str) -> bool:
    """Take back the failure that was recorded when the message was archived."""
    if isinstance(message, AnswerQuestion):
        return resume_run(operator, message.tenant_id, message.run_id, EXHAUSTED)
    if isinstance(message, EmbedChunks):
        return resume_version(operator, message.tenant_id, message.version_id, EXHAUSTED)
    if isinstance(message, DocumentSubmitted):
        return resume_submission(operator, message, topic.removeprefix(SOURCE_TOPIC), EXHAUSTED)
    return False


def _not(message: str) -> PermanentError:
    return PermanentError("not-replayable", message)
