"""What was said before in a conversation, as far as the next question may need it."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.conversations.runs import Lease
from shared.conversations.withholding import WITHHELD

MOST_TURNS = 6
MEMORY_CHARACTERS = 8_000
"""About 2,000 tokens: what refers back refers to the last few turns."""
ANSWER_CHARACTERS = 1_500


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier question of the conversation and its answer; long answers are cut."""

    question: str
    answer: str


def begins_conversation(lease: Lease) -> bool:
    """Whether the run's question opened its conversation (`ask` names it after the run): nothing was said before."""
    return lease.conversation_id == uuid5(lease.run_id, "conversation")


def turns_before(session: Session, lease: Lease) -> list[Turn]:
    """The answered questions of the run's conversation before it, oldest first, the newest as far as the room goes."""
    rows = session.execute(
        text(
            "select r.question, left(r.answer, :cut) as answer from core.runs r join core.runs mine "
            "on mine.tenant_id = r.tenant_id and mine.run_id = :run "
            "where r.tenant_id = :tenant and r.conversation_id = :conversation and r.member_id = :member "
            "and r.state = 'answered' and r.run_id <> :run and r.created_at <= mine.created_at "
            # What quotes a deleted document is not shown to the model either.
            f"and not {WITHHELD} "
            "order by r.created_at desc limit :limit"
        ),
        {
            "tenant": lease.tenant_id,
            "run": lease.run_id,
            "conversation": lease.conversation_id,
            "member": lease.member_id,
            "cut": ANSWER_CHARACTERS,
            "limit": MOST_TURNS,
        },
    )
    turns: list[Turn] = []
    room = MEMORY_CHARACTERS
    for row in rows:
        room -= len(row.question) + len(row.answer or "")
        if room < 0:
            break
        turns.append(Turn(row.question, row.answer or ""))
    return turns[::-1]
