"""The evidence gate: from which similarity on a passage may answer, measured for each vector space and stored with it.

"No evidence" is a result. Models differ too much for one number (FACTS: unrelated texts have a cosine of .27 with USE
and .80 with e5), so a space without a calibrated floor lets everything pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.errors import PermanentError
from shared.retrieval.metrics import auc, keeping
from shared.retrieval.passages import Passage
from shared.retrieval.ranking import lexical_weight
from shared.retrieval.spaces import Space


@dataclass(frozen=True, slots=True)
class Calibration:
    """A floor fitted on one half of the questions and what it is worth on the other, unseen half.

    `kept` is the share of answerable questions that pass, `refused` the share of unanswerable ones that do not.
    """

    floor: float
    auc: float
    kept: float
    refused: float
    questions: int


SHARE = 0.2
"""Of the lexical weight of ranking: across languages an answerable question has few words in common with its passage,
so full weight would take any hit of a hopeless question for better evidence (pooled AUC .86 instead of .92)."""


RELEVANCE_FLOOR = 0.022
"""Of the bundled re-ranker. On unseen questions of XQuAD, four language pairs in one, it keeps 94 % of the answerable
and refuses 75 % of the others; strength alone refuses 52 to 58 % (docs/retrieval.md)."""

CONSIDERED = 5
"""Passages that count: who asks for more must not get another answer to the same question."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the passages of a search are worth as evidence.

    `strength` is comparable within a vector space only; `floor` is the space's, None before it was calibrated: then
    everything that was found counts as `enough`. Where the bundled re-ranker judged the passages, its best `relevance`
    decides instead, in every space.
    """

    strength: float
    floor: float | None
    enough: bool
    relevance: float | None = None


def weigh(passages: Sequence[Passage], space: Space) -> Evidence:
    """The evidence of a search in `space`."""
    found = strength(passages, space)
    floor = space.evidence_floor
    judged = [p.relevance for p in passages[:CONSIDERED] if p.relevance is not None]
    if judged:
        return Evidence(round(found, 4), floor, max(judged) >= RELEVANCE_FLOOR, round(max(judged), 4))
    return Evidence(round(found, 4), floor, bool(passages) and (floor is None or found >= floor))


def strength(passages: Sequence[Passage], space: Space) -> float:
    """How much the best passages speak for an answer: the highest cosine plus a fifth of weighted BM25; -1 for none."""
    weight = SHARE * lexical_weight(space)
    best = passages[:CONSIDERED]
    return max((passage.similarity + weight * passage.bm25 for passage in best), default=-1.0)


def has_evidence(passages: Sequence[Passage], space: Space) -> bool:
    """Whether the passages are evidence at all; False means: say so instead of answering."""
    return weigh(passages, space).enough


def calibrate(answerable: Sequence[float], unanswerable: Sequence[float], *, keep: float = 0.95) -> Calibration:
    """Fit on every second question so that `keep` of the answerable ones pass; report on the others.

    Keeping comes first: what passes wrongly still meets the verification of citations, what is refused wrongly is lost.
    Strengths of questions whose answer is in the corpus, and of questions whose answer is not. Raises PermanentError
    `too-few-questions` below twenty of a kind: a threshold of chance would refuse real questions.
    """
    if min(len(answerable), len(unanswerable)) < 20:
        raise PermanentError(
            "too-few-questions", "Calibration needs 20 questions of each kind.", "Add questions to the golden set."
        )
    floor = keeping(answerable[::2], keep)
    yes, no = answerable[1::2], unanswerable[1::2]
    return Calibration(
        floor=floor,
        auc=auc(yes, no),
        kept=sum(value >= floor for value in yes) / len(yes),
        refused=sum(value < floor for value in no) / len(no),
        questions=len(answerable) + len(unanswerable),
    )


def store_floor(operator: Session, space: Space, floor: float) -> None:
    """Store the floor of a space. For operators. Raises PermanentError `no-vector-space` when there is none."""
    hit = operator.execute(
        text("update rag.vector_spaces set evidence_floor = :floor where space_id = :space"),
        {"floor": floor, "space": space.space_id},
    ).rowcount  # type: ignore[attr-defined]
    if hit != 1:
        raise PermanentError("no-vector-space", "There is no such vector space.", "See `noesis spaces`.")
