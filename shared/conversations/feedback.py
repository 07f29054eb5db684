"""What members think of their answers: up or down and a comment, against what was cited and where it was found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.errors import PermanentError
from shared.retrieval.golden import Question, Relevant
from shared.tenants.directory import Principal

Rating = Literal["up", "down"]
COMMENT_LIMIT = 2_000
_VALUES: dict[Rating, int] = {"up": 1, "down": -1}
_NAMES: dict[int, Rating] = {1: "up", -1: "down"}


@dataclass(frozen=True, slots=True)
class Feedback:
    """A member's word about an answer; the chunks are those it cited when the word was given."""

    run_id: UUID
    question: str
    rating: Rating
    comment: str
    space_id: UUID | None
    chunk_ids: tuple[UUID, ...]
    updated_at: datetime


def give_feedback(session: Session, principal: Principal, run_id: UUID, rating: Rating, comment: str = "") -> None:
    """Keep a member's word about their own answer; the last one counts.

    Raises LookupError when it is not theirs, PermanentError `not-answered`, `comment-too-long`.
    """
    comment = comment.replace("\x00", "").encode("utf-8", "replace").decode().strip()
    if len(comment) > COMMENT_LIMIT:
        raise PermanentError(
            "comment-too-long", f"A comment has at most {COMMENT_LIMIT} characters.", "Say it in fewer words."
        )
    ids = {"tenant": principal.tenant_id, "run": run_id, "member": principal.member_id}
    state = session.execute(
        text("select state from core.runs where tenant_id = :tenant and run_id = :run and member_id = :member"), ids
    ).scalar()
    if state is None:
        raise LookupError("there is no such run")
    if state != "answered":
        raise PermanentError("not-answered", "There is no answer to judge yet.", "Wait for the answer.")
    session.execute(
        text(
            "insert into core.feedback as f (tenant_id, run_id, member_id, rating, comment, space_id, citations) "
            "select r.tenant_id, r.run_id, r.member_id, :rating, :comment, r.space_id, "
            "coalesce((select jsonb_agg(jsonb_build_object('number', c.number, 'document_id', c.document_id, "
            "'version_id', c.version_id, 'chunk_id', c.chunk_id) order by c.number) from core.citations c "
            "where c.tenant_id = r.tenant_id and c.run_id = r.run_id), '[]') "
            "from core.runs r where r.tenant_id = :tenant and r.run_id = :run "
            "on conflict (tenant_id, run_id, member_id) do update set rating = excluded.rating, "
            "comment = excluded.comment, updated_at = now()"
        ),
        ids | {"rating": _VALUES[rating], "comment": comment},
    )


def rating_of(session: Session, principal: Principal, run_id: UUID) -> Rating | None:
    """What the member said of an answer, or None."""
    value = session.execute(
        text("select rating from core.feedback where tenant_id = :tenant and run_id = :run and member_id = :member"),
        {"tenant": principal.tenant_id, "run": run_id, "member": principal.member_id},
    ).scalar()
    return None if value is None else _NAMES[value]


def recent_feedback(session: Session, tenant_id: UUID, limit: int = 100) -> list[Feedback]:
    """What a tenant's members said last, newest first."""
    rows = session.execute(
        text(
            "select f.run_id, r.question, f.rating, f.comment, f.space_id, f.citations, f.updated_at "
            "from core.feedback f join core.runs r on r.tenant_id = f.tenant_id and r.run_id = f.run_id "
            "where f.tenant_id = :tenant order by f.updated_at desc limit :limit"
        ),
        {"tenant": tenant_id, "limit": limit},
    )
    return [
        Feedback(
            row.run_id,
            row.question,
            _NAMES[row.rating],
            row.comment,
            row.space_id,
            tuple(UUID(citation["chunk_id"]) for citation in row.citations),
            row.updated_at,
        )
        for row in rows
    ]


def golden_questions(session: Session, tenant_id: UUID) -> Iterator[Question]:
    """Questions whose answers were found good, with the quoted words that must be found for them.

    An answer that found no evidence and was found good becomes a question without any; documents that are gone are
    left out, and so is a question of which nothing is left.
    """
    rows = session.execute(
        text(
            "select r.run_id, r.question, coalesce(r.language, 'simple') as language, r.no_evidence, "
            "coalesce(jsonb_agg(jsonb_build_object('document', d.external_id, 'passage', c.quote) order by c.number) "
            "filter (where d.document_id is not null), '[]') as relevant "
            "from core.feedback f join core.runs r on r.tenant_id = f.tenant_id and r.run_id = f.run_id "
            "left join core.citations c on c.tenant_id = f.tenant_id and c.run_id = f.run_id "
            "left join rag.documents d on d.tenant_id = f.tenant_id and d.document_id = c.document_id "
            "and d.state = 'searchable' where f.tenant_id = :tenant and f.rating = 1 "
            "group by r.run_id, r.question, r.language, r.no_evidence, f.created_at order by f.created_at"
        ),
        {"tenant": tenant_id},
    )
    for row in rows:
        if row.relevant or row.no_evidence:
            relevant = tuple(Relevant(**one) for one in row.relevant)
            yield Question(id=str(row.run_id), question=row.question, language=row.language, relevant=relevant)
