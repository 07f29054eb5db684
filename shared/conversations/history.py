"""Conversations as their member finds them again: each by its first question, with what came of its last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.tenants.directory import Principal

LOOKED_AT = 200
"""Last questions of the member among which conversations are found."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation: `title` is the beginning of its first question; the rest tells about its last question.

    `questions` counts those among the last LOOKED_AT of the member.
    """

    conversation_id: UUID
    title: str
    questions: int
    run_id: UUID
    state: str
    no_evidence: bool | None
    asked_at: Any


def recent_conversations(session: Session, principal: Principal, limit: int = 20) -> list[Conversation]:
    """The member's conversations, the one with the newest question first."""
    rows = session.execute(
        text(
            "with asked as (select conversation_id, run_id, state, no_evidence, created_at from core.runs "
            "where tenant_id = :tenant and member_id = :member order by created_at desc limit :looked_at), "
            "latest as (select distinct on (conversation_id) asked.*, "
            "count(*) over (partition by conversation_id) as questions "
            "from asked order by conversation_id, created_at desc) "
            "select l.conversation_id, c.title, l.questions, l.run_id, l.state, l.no_evidence, "
            "l.created_at as asked_at from latest l "
            "join core.conversations c on c.tenant_id = :tenant and c.conversation_id = l.conversation_id "
            "order by l.created_at desc limit :limit"
        ),
        {
            "tenant": principal.tenant_id,
            "member": principal.member_id,
            "looked_at": LOOKED_AT,
            "limit": limit,
        },
    )
    return [Conversation(**row._mapping) for row in rows]
