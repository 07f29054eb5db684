"""Could another fusion of the same two scores find more? Cosine and BM25 of every candidate, fused in other ways.

`python -m benchmarks.retrieval_fusion [--model use-v3] [--only XQuAD] [--errors]`. Candidates are those of the
product's search (its hundred best), so every fusion orders the same passages. The parameter of a fusion is chosen by
the mean over the fitting halves of all sets and reported on the unseen ones (`retrieval_quality.Case.unseen`); beside
it, as a bound and no result, the parameter that is best on the very half it is measured on. `--errors` lists the
questions whose right passage is not first.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.retrieval_corpus import database, load, new_tenant
from benchmarks.retrieval_quality import DIMENSIONS, Case, Scores, bm25, cases, ndcg, rankings, shown
from benchmarks.retrieval_vectors import CHECKOUT, vectors
from shared.database import tenant_session
from shared.retrieval import metrics
from shared.retrieval.golden import contains
from shared.retrieval.questions import language_of
from shared.retrieval.ranking import DEFAULT
from shared.retrieval.search import MOST_RESULTS, search_explained

Fusion = Callable[[Scores, Scores, float], Scores]
"""Cosines and BM25 scores of the candidates of a question, and the parameter: the score to order them by."""


@dataclass(frozen=True)
class Candidates:
    """What search found for a question, best first: indices into the set's passages and their two scores.

    `lexical` is BM25 as search counts it: less across languages, double for a question without function words.
    """

    passages: NDArray[np.intp]
    cosine: Scores
    lexical: Scores


@dataclass(frozen=True)
class Measured:
    """A set of questions with its candidates; `base` is nDCG@10 of the better baseline, by question."""

    case: Case
    candidates: list[Candidates]
    base: Scores
    either: Scores
    """Of whichever baseline is better for the question: what choosing between the two lists could reach at most."""
    unseen: NDArray[np.bool_]

    def ndcg(self, fusion: Fusion, parameter: float) -> Scores:
        """nDCG@10 of every question."""
        ranked = []
        for found in self.candidates:
            order = np.argsort(-fusion(found.cosine, found.lexical, parameter), kind="stable")[:10]
            ranked.append([int(number) for number in found.passages[order]])
        return np.array(ndcg(ranked, self.case), dtype=np.float32)


def _share(values: Scores) -> Scores:
    """Of the best value of the question."""
    return values / max(float(values.max()), 1e-9)


def _min_max(values: Scores) -> Scores:
    low, high = float(values.min()), float(values.max())
    return (values - low) / max(high - low, 1e-9)


def _z_score(values: Scores) -> Scores:
    return (values - float(values.mean())) / max(float(values.std()), 1e-9)


def _reciprocal(values: Scores, constant: int) -> Scores:
    ranks = np.argsort(np.argsort(-values, kind="stable"), kind="stable") + 1
    return np.asarray(1 / (constant + ranks), dtype=np.float32)


_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_WEIGHTS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
FUSIONS: dict[str, tuple[Fusion, Sequence[float]]] = {
    "cosine + w BM25 (ours)": (lambda c, b, w: c + w * b, (0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1)),
    "cosine + w BM25^.8": (lambda c, b, w: c + w * b**0.8, (0.05, 0.08, 0.1, 0.15, 0.2)),
    "cosine + w BM25^1.2": (lambda c, b, w: c + w * b**1.2, (0.02, 0.03, 0.04, 0.05, 0.08)),
    "cosine + w BM25 / best BM25": (lambda c, b, w: c + w * _share(b), (0.1, 0.2, 0.3, 0.4, 0.6, 0.8)),
    # Bruch, Gai, Ingber: An Analysis of Fusion Functions for Hybrid Retrieval, TOIS 2023: convex combination of scores,
    # normalised by what is attained (min-max, z) or by what could be (theoretical minimum: cosine -1, BM25 0).
    "convex, min-max": (lambda c, b, w: (1 - w) * _min_max(c) + w * _min_max(b), _SHARES),
    "convex, theoretical min-max": (lambda c, b, w: (1 - w) * _share(c + 1) + w * _share(b), (0.05, 0.1, *_SHARES)),
    "convex, z-score": (lambda c, b, w: (1 - w) * _z_score(c) + w * _z_score(b), _SHARES),
    "product": (lambda c, b, w: np.sqrt(np.maximum(c, 0.01)) * (b + w), (0.5, 1.0, 2.0, 4.0, 8.0)),
    "reciprocal rank, k 60": (lambda c, b, w: _reciprocal(c, 60) + w * (b > 0) * _reciprocal(b, 60), _WEIGHTS),
    "reciprocal rank, k 1": (lambda c, b, w: _reciprocal(c, 1) + w * (b > 0) * _reciprocal(b, 1), _WEIGHTS),
}


def measured(case: Case, number: int, model: str) -> Measured:
    """Search for every question of the set, once."""
    passages = vectors([shown(piece) for piece in case.pieces], model)
    asked = vectors([q.question for q in case.questions], model, "query")
    who, space = new_tenant(f"fusion-{number}", model, DIMENSIONS[model])
    load(who, space, case.pieces, passages)
    place = {(piece.document, piece.text): index for index, piece in enumerate(case.pieces)}
    candidates = []
    with tenant_session(who.tenant_id) as session:
        for question, vector in zip(case.questions, asked, strict=True):
            found = search_explained(
                session, who.tenant_id, who.member_id, space, question.question, vector.tolist(), top_k=MOST_RESULTS
            ).passages
            weight = DEFAULT.keyword_weight if language_of(question.question) == "simple" else 1.0
            candidates.append(
                Candidates(
                    np.array([place[p.external_id, p.text] for p in found], dtype=np.intp),
                    np.array([p.similarity for p in found], dtype=np.float32),
                    np.array([p.bm25 * weight for p in found], dtype=np.float32),
                )
            )
    unseen = np.array([case.unseen(index) for index in range(len(case.questions))])
    baselines = [np.array(ndcg(rankings(s), case), dtype=np.float32) for s in (bm25(case), asked @ passages.T)]
    base = max(baselines, key=lambda values: float(values[unseen].mean()))
    return Measured(case, candidates, base, np.maximum(*baselines), unseen)


def compare(sets: Sequence[Measured]) -> None:
    """Every fusion on every set: the chosen parameter, and the bound."""
    for name, (fusion, parameters) in FUSIONS.items():
        values = {parameter: [one.ndcg(fusion, parameter) for one in sets] for parameter in parameters}
        fitted = {p: np.mean([v[~s.unseen].mean() for v, s in zip(values[p], sets, strict=True)]) for p in parameters}
        chosen = max(parameters, key=lambda parameter: float(fitted[parameter]))
        print(f"\n{name}: {chosen}", flush=True)
        for index, one in enumerate(sets):
            bound = max(float((values[p][index] - one.base)[one.unseen].mean()) for p in parameters)
            print(f"  {one.case.name:18} {gap(values[chosen][index], one)}   best of all parameters {100 * bound:+.1f}")


def gap(values: Scores, one: Measured) -> str:
    """The unseen half: nDCG@10 and the paired difference to the better baseline, in points."""
    ours, theirs = values[one.unseen].tolist(), one.base[one.unseen].tolist()
    found = metrics.difference(ours, theirs)
    return f"{np.mean(ours):.3f}  {100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def errors(one: Measured) -> None:
    """The questions of the unseen half whose right passage search does not put first, and what stands before it."""
    ranked = [found.passages.tolist() for found in one.candidates]
    values = np.array(ndcg(ranked, one.case))
    wrong = np.flatnonzero((values < 1) & one.unseen)
    print(
        f"\n{one.case.name}: {len(wrong)} of {one.unseen.sum()} unseen questions are not answered by the first passage"
    )
    for index in wrong:
        question, order = one.case.questions[index], ranked[index]
        before = order[: min((order.index(n) for n in one.case.relevant[index] if n in order), default=10)]
        also = sum(any(contains(one.case.pieces[n].text, answer) for answer in question.answers) for n in before)
        print(f"  {values[index]:.2f}  {len(before)} before it, {also} with the answer: {question.question}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=DIMENSIONS, default="use-v3")
    parser.add_argument("--only", default="", help="Only sets whose name contains this.")
    parser.add_argument("--errors", action="store_true", help="List the questions that are not answered first.")
    arguments = parser.parse_args()
    data = Path(os.environ.get("NOESIS_SHARED") or CHECKOUT.parent / "shared") / "data"
    with database():
        chosen = [(number, case) for number, case in enumerate(cases(data)) if arguments.only in case.name]
        sets = [measured(case, number, arguments.model) for number, case in chosen]
    print("\nthe better of both lists, question by question (a bound)")
    for one in sets:
        print(f"  {one.case.name:18} {gap(one.either, one)}")
    compare(sets)
    for one in sets if arguments.errors else []:
        errors(one)


if __name__ == "__main__":
    main()
