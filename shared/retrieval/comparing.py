"""The shadow comparison: the tenant's own recent questions, and golden sets, asked in the old and the new space.

Read only, and as each asker sees it; answers go on coming from the old space.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import tenant_session
from shared.errors import PermanentError
from shared.llm import Models
from shared.retrieval.evaluation import Outcome, evaluate
from shared.retrieval.evaluation import compare as compare_outcomes
from shared.retrieval.evidence import weigh
from shared.retrieval.golden import Question
from shared.retrieval.metrics import Estimate, difference, estimate
from shared.retrieval.passages import Passage
from shared.retrieval.paying import Payer, question_vectors
from shared.retrieval.questions import checked_question
from shared.retrieval.search import search
from shared.retrieval.spaces import Space, state_in
from shared.tenants.directory import Principal

TOP = 10
RECENT = 100
"""Of the tenant's latest questions; each text once."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as it was asked, and by whom: what a member may see decides what can be found."""

    question: str
    member_id: UUID


@dataclass(frozen=True, slots=True)
class Comparison:
    """Old against new over `questions` of the tenant; means with 95 % intervals, differences are new - old.

    `overlap` is the share of the old space's first ten passages that the new one has among its first ten,
    `same_first` how often the first one is the same. `evidence` is how often the space says that there is evidence;
    in a space without a calibrated floor that is always, and `calibrated` is False.
    """

    questions: int
    overlap: Estimate
    same_first: Estimate
    top_similarity_old: Estimate
    top_similarity_new: Estimate
    evidence_old: Estimate
    evidence_new: Estimate
    evidence_difference: Estimate
    calibrated_old: bool
    calibrated_new: bool

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def recent_questions(session: Session, tenant_id: UUID, limit: int = RECENT) -> list[Asked]:
    """The tenant's latest questions, each text of a member once, newest first."""
    rows = session.execute(
        text(
            "select question, member_id from (select question, member_id, max(created_at) as asked_at from core.runs "
            "where tenant_id = :tenant group by question, member_id) q order by asked_at desc limit :limit"
        ),
        {"tenant": tenant_id, "limit": limit},
    )
    return [Asked(row.question, row.member_id) for row in rows]


def compare(payer: Payer, asked: Sequence[Asked], old: Space, new: Space, models: Models) -> Comparison:
    """Ask every question in both spaces.

    Raises PermanentError `no-questions` when there are none, `no-vector-space`, and like `pay`.
    """
    usable = [question for question in asked if _is_question(question.question)]
    if not usable:
        raise PermanentError(
            "no-questions", "The tenant has asked nothing yet.", "Give a golden set: --golden questions.jsonl."
        )
    _check_filled(payer.tenant_id, old, new)
    before, after = (_ask(payer, usable, space, models) for space in (old, new))
    overlaps = [
        len({p.chunk_id for p in a} & {p.chunk_id for p in b}) / len(a) if a else float(not b)
        for a, b in zip(before, after, strict=True)
    ]
    first = [
        float([p.chunk_id for p in a[:1]] == [p.chunk_id for p in b[:1]]) for a, b in zip(before, after, strict=True)
    ]
    found_old = [float(weigh(passages, old).enough) for passages in before]
    found_new = [float(weigh(passages, new).enough) for passages in after]
    return Comparison(
        questions=len(usable),
        overlap=estimate(overlaps),
        same_first=estimate(first),
        top_similarity_old=estimate([_top(passages) for passages in before]),
        top_similarity_new=estimate([_top(passages) for passages in after]),
        evidence_old=estimate(found_old),
        evidence_new=estimate(found_new),
        evidence_difference=difference(found_new, found_old),
        calibrated_old=old.evidence_floor is not None,
        calibrated_new=new.evidence_floor is not None,
    )


def compare_judged(
    principal: Principal, payer: Payer, questions: Sequence[Question], old: Space, new: Space, models: Models
) -> tuple[Outcome, Outcome, dict[str, Estimate]]:
    """Both spaces on a golden set: measures of each, and paired differences new - old. Raises `no-vector-space`."""
    _check_filled(payer.tenant_id, old, new)
    before, after = (
        evaluate(principal, space, questions, partial(question_vectors, models, payer, space), name=space.name)
        for space in (old, new)
    )
    return before, after, compare_outcomes(after, before)


def store_comparison(operator: Session, tenant_id: UUID, campaign_id: UUID, comparison: dict[str, Any]) -> None:
    """Keep the latest comparison with the campaign, for `noesis campaigns status` and the decision to switch."""
    operator.execute(
        text(
            "update rag.campaigns set comparison = cast(:comparison as jsonb) "
            "where tenant_id = :tenant and campaign_id = :campaign"
        ),
        {"tenant": tenant_id, "campaign": campaign_id, "comparison": json.dumps(comparison)},
    )


def _check_filled(tenant_id: UUID, *spaces: Space) -> None:
    """A space that was dropped, or not begun, answers nothing: measured beside another it would only look bad."""
    with tenant_session(tenant_id) as session:
        for space in spaces:
            if state_in(session, tenant_id, space.space_id) in (None, "retired"):
                raise PermanentError(
                    "no-vector-space",
                    f"The tenant has no vectors in {space.name}.",
                    "Compare after the campaign's start and before a space of it is dropped.",
                )


def _ask(payer: Payer, asked: Sequence[Asked], space: Space, models: Models) -> list[list[Passage]]:
    # No session is open while the model works.
    vectors = question_vectors(models, payer, space, [question.question for question in asked])
    found = []
    with tenant_session(payer.tenant_id) as session:
        for question, vector in zip(asked, vectors, strict=True):
            found.append(
                search(session, payer.tenant_id, question.member_id, space, question.question, vector, top_k=TOP)
            )
    return found


def _is_question(question: str) -> bool:
    try:
        checked_question(question)
    except PermanentError:
        return False
    return True


def _top(passages: Sequence[Passage]) -> float:
    return max((passage.similarity for passage in passages), default=0.0)
