"""Evaluation of search on a golden set: rankings, measures, and two settings side by side. Runs on what is indexed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shared.database import tenant_session
from shared.retrieval import metrics
from shared.retrieval.evidence import strength
from shared.retrieval.golden import Question, contains
from shared.retrieval.passages import Passage
from shared.retrieval.ranking import DEFAULT, Tuning
from shared.retrieval.search import Search, search_explained
from shared.retrieval.spaces import Space
from shared.tenants.directory import Principal

Embed = Callable[[Sequence[str]], Sequence[Sequence[float]]]
"""Vectors of questions in the space that is evaluated."""


@dataclass(frozen=True, slots=True)
class Reranking:
    """A second look at the best `candidates` passages of a question: the passages in another order, best first."""

    candidates: int
    reorder: Callable[[str, Sequence[Passage]], Sequence[Passage]]


MEASURES = ("ndcg@10", "recall@5", "recall@10", "mrr@10")
TOP = 10
BATCH = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one setting reached: each measure by question, in the order of the questions, and the time of a search."""

    name: str
    values: Mapping[str, Sequence[float]]
    milliseconds: Sequence[float]
    strengths: Sequence[float]

    def summary(self) -> dict[str, metrics.Estimate]:
        """Every measure with its 95 % interval."""
        return {name: metrics.estimate(self.values[name]) for name in MEASURES}


def evaluate(
    principal: Principal,
    space: Space,
    questions: Sequence[Question],
    embed: Embed,
    *,
    name: str = "default",
    tuning: Tuning = DEFAULT,
    reranking: Reranking | None = None,
) -> Outcome:
    """Ask every question as `principal` in `space` and measure.

    A question counts as found where the document is right and the chunk contains the expected passage; without a
    passage in the golden set the document is enough. Questions without `relevant` only have a strength, which is that
    of the search. Milliseconds are those of search and re-ranking.
    Opens its own sessions, none while a model works. Raises what search, `embed` and `reranking` raise: a re-ranking
    that failed and kept the order would be measured as one that does not help.
    """
    values: dict[str, list[float]] = {measure: [] for measure in MEASURES}
    times, strengths = [], []
    top = max(TOP, reranking.candidates) if reranking else TOP
    for start in range(0, len(questions), BATCH):
        batch = questions[start : start + BATCH]
        for question, found in zip(batch, _searches(principal, space, batch, embed, top, tuning), strict=True):
            passages, took = _reranked(question, found.passages, reranking)
            times.append(found.diagnostics.milliseconds + took)
            strengths.append(strength(found.passages, space))
            if question.relevant:
                _measure(question, passages[:TOP], values)
    return Outcome(name, values, times, strengths)


def _searches(
    principal: Principal, space: Space, questions: Sequence[Question], embed: Embed, top: int, tuning: Tuning
) -> list[Search]:
    vectors = embed([question.question for question in questions])
    with tenant_session(principal.tenant_id) as session:
        return [
            search_explained(
                session,
                principal.tenant_id,
                principal.member_id,
                space,
                question.question,
                vector,
                top_k=top,
                tuning=tuning,
            )
            for question, vector in zip(questions, vectors, strict=True)
        ]


def _reranked(
    question: Question, passages: Sequence[Passage], reranking: Reranking | None
) -> tuple[Sequence[Passage], float]:
    """The passages as re-ranking orders them, and the milliseconds that took."""
    if reranking is None:
        return passages, 0.0
    started = time.perf_counter()
    ordered = reranking.reorder(question.question, passages)
    return ordered, (time.perf_counter() - started) * 1000


def compare(ours: Outcome, theirs: Outcome) -> dict[str, metrics.Estimate]:
    """Paired differences of every measure, `ours - theirs`; an interval without 0 is a difference."""
    return {name: metrics.difference(ours.values[name], theirs.values[name]) for name in MEASURES}


def _measure(question: Question, passages: Sequence[Passage], values: dict[str, list[float]]) -> None:
    relevant: metrics.Grades = {r: r.grade for r in question.relevant}
    ranking = [
        next(
            (r for r in question.relevant if r.document == p.external_id and contains(p.text, r.passage)),
            p.chunk_id,
        )
        for p in passages
    ]
    values["ndcg@10"].append(metrics.ndcg(ranking, relevant, 10))
    values["recall@5"].append(metrics.recall(ranking, relevant, 5))
    values["recall@10"].append(metrics.recall(ranking, relevant, 10))
    values["mrr@10"].append(metrics.reciprocal_rank(ranking, relevant, 10))
