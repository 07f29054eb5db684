"""Quality of search on real questions beside BM25 (bm25s) and brute force with the same embedder, in one run.

`python -m benchmarks.retrieval_quality [--model use-v3|e5-small] [--rerank] [--tuning '{"lexical_weight": 0.07}']`.
Real PostgreSQL, real vectors (computed once, kept under build/). nDCG@10 with 95 % bootstrap intervals; the margin is
a paired difference against the better baseline of the set. Every set is cut in two: settings are chosen on one half
(XQuAD: articles with an even number, on which the weights of the re-ranker were fitted too; else every second
question), and the other one, `unseen`, is what is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import bm25s
import numpy as np
import Stemmer  # type: ignore[import-not-found] # PyStemmer has no types
from numpy.typing import NDArray

from benchmarks.retrieval_corpus import Piece, database, load, new_tenant
from benchmarks.retrieval_models import model_service
from benchmarks.retrieval_vectors import CHECKOUT, Vectors, vectors
from shared.database import operator_session, tenant_session
from shared.llm import Models
from shared.retrieval import golden, indexes, metrics
from shared.retrieval.paying import Payer
from shared.retrieval.ranking import DEFAULT, Tuning
from shared.retrieval.reranking import BUNDLED, paid, reordered
from shared.retrieval.search import search_explained
from shared.retrieval.spaces import Space
from shared.tenants.directory import Principal

DIMENSIONS = {"use-v3": 512, "e5-small": 384}
CANDIDATES = 20
INDEXED_FROM = 1_000
"""Passages from which the approximate index is measured too (in the product: 10,000)."""
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A set of questions over a corpus of passages; `relevant` holds indices into `pieces`."""

    name: str
    language: str
    pieces: list[Piece]
    questions: list[golden.Question]
    relevant: list[dict[int, float]]

    def unseen(self, number: int) -> bool:
        """Whether a question is in the half that no setting was chosen on."""
        if self.name.startswith("XQuAD"):
            return int(self.pieces[min(self.relevant[number])].document.split("-")[1]) % 2 == 1
        return number % 2 == 1


def cases(data: Path) -> list[Case]:
    made = []
    for asked, written in (("de", "de"), ("en", "en"), ("de", "en"), ("en", "de")):
        texts, questions = golden.xquad(
            data / f"xquad/xquad.{asked}.json", data / f"xquad/xquad.{written}.json", asked, written
        )
        made.append(_by_document(f"XQuAD {asked}›{written}", written, texts, questions))
    texts, questions = golden.cranfield(data / "cranfield")
    made.append(_by_document("Cranfield", "en", texts, questions))
    made.append(_laws(sorted((data / "laws").glob("*.md"))))
    return made


def _by_document(name: str, language: str, texts: list[golden.CorpusText], questions: list[golden.Question]) -> Case:
    place = {text.document: number for number, text in enumerate(texts)}
    # Binary: Cranfield's published grades run the other way round in some editions.
    relevant = [{place[r.document]: 1.0 for r in question.relevant if r.document in place} for question in questions]
    return Case(name, language, [Piece(t.document, t.language, t.text, t.title) for t in texts], questions, relevant)


def _laws(paths: list[Path]) -> Case:
    """The laws cut by the product's own parser and chunker."""
    from functions.ingest.chunking import chunk_document
    from functions.ingest.parsing.markdown import parse_markdown

    pieces = []
    for path in paths:
        parsed = parse_markdown(path.read_text(encoding="utf-8"))
        pieces += [Piece(path.stem, c.language, c.text, path.stem, c.heading_path) for c in chunk_document(parsed)]
    questions, relevant = [], []
    for question in golden.known_items(paths):
        wanted = question.relevant[0]
        right = [
            number
            for number, piece in enumerate(pieces)
            if piece.document == wanted.document and golden.contains(piece.text, wanted.passage)
        ]
        if right:
            questions.append(question)
            relevant.append(dict.fromkeys(right, 1.0))
    return Case("laws, known item", "de", pieces, questions, relevant)


def shown(piece: Piece) -> str:
    """The text that is embedded and counted: headings, then the text."""
    return f"{' › '.join(piece.headings)}\n{piece.text}" if piece.headings else piece.text


def bm25(case: Case) -> Scores:
    """Scores of every passage by bm25s with Snowball stems and its own stop words, its default parameters."""
    stemmer = Stemmer.Stemmer({"de": "german", "en": "english"}[case.language])

    def tokens(texts: list[str]) -> object:
        return bm25s.tokenize(texts, stopwords=case.language, stemmer=stemmer, show_progress=False)

    index = bm25s.BM25()
    index.index(tokens([shown(piece) for piece in case.pieces]), show_progress=False)
    found, scores = index.retrieve(
        tokens([q.question for q in case.questions]), k=len(case.pieces), show_progress=False
    )
    table = np.zeros((len(case.questions), len(case.pieces)), dtype=np.float32)
    np.put_along_axis(table, found, scores, axis=1)
    return table


def rankings(scores: Scores) -> list[list[int]]:
    order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    return [[int(column) for column in row if scores[number, column] > 0] for number, row in enumerate(order)]


def hybrid(
    case: Case, principal: Principal, space: Space, asked: Vectors, tuning: Tuning, models: Models | None = None
) -> tuple[list[list[int]], list[float]]:
    """The ten best passages of every question, and the milliseconds of its re-ranking when there are `models`.

    Only what is reported is re-ranked, the unseen half: it takes some tenths of a second a question.
    """
    place = {(piece.document, piece.text): number for number, piece in enumerate(case.pieces)}
    judge = partial(paid, models, Payer(principal.tenant_id, "dev", datetime.now(UTC))) if models else None
    found, times = [], []
    with tenant_session(principal.tenant_id) as session:
        for number, (question, vector) in enumerate(zip(case.questions, asked, strict=True)):
            rerank = models is not None and case.unseen(number)
            passages = search_explained(
                session, principal.tenant_id, principal.member_id, space, question.question, vector.tolist(),
                top_k=CANDIDATES if rerank else 10, tuning=tuning,
            ).passages  # fmt: skip
            if models is not None and judge is not None and rerank:
                began = time.perf_counter()
                passages = reordered(models, BUNDLED, space, question.question, passages, judge)[:10]
                times.append((time.perf_counter() - began) * 1000)
            found.append([place[p.external_id, p.text] for p in passages])
    return found, times


def ndcg(ranked: Sequence[Sequence[int]], case: Case) -> list[float]:
    """nDCG@10 of every question."""
    return [metrics.ndcg(r, relevant) for r, relevant in zip(ranked, case.relevant, strict=True)]


def report(name: str, values: Sequence[float], best: Sequence[float] | None, unseen: Sequence[bool]) -> str:
    """A line: the fitting half, the unseen half, and there the difference to the better baseline."""
    pairs = list(zip(values, unseen, strict=True))
    halves = [[value for value, other in pairs if other is wanted] for wanted in (False, True)]
    mean = metrics.estimate(halves[1])
    line = f"  {name:22} fitted {sum(halves[0]) / len(halves[0]):.3f}   unseen {mean.mean:.3f}"
    line += f" ({mean.low:.3f}-{mean.high:.3f})   all {sum(values) / len(values):.3f}"
    if best is not None:
        gap = metrics.difference(halves[1], [value for value, other in zip(best, unseen, strict=True) if other])
        low, mid, high = (100 * x for x in (gap.low, gap.mean, gap.high))
        line += f"   {mid:+.1f} ({low:+.1f} to {high:+.1f})"
    return line


def measure(case: Case, number: int, model: str, settings: dict[str, Tuning], models: Models | None) -> None:
    """One set: the baselines, then search with every setting, then re-ranked."""
    passages = vectors([shown(piece) for piece in case.pieces], model)
    asked = vectors([q.question for q in case.questions], model, "query")
    principal, space = new_tenant(f"case-{number}", model, DIMENSIONS[model])
    load(principal, space, case.pieces, passages)
    unseen = [case.unseen(n) for n in range(len(case.questions))]
    scores = {"BM25": ndcg(rankings(bm25(case)), case), "dense": ndcg(rankings(asked @ passages.T), case)}
    best = scores[max(scores, key=lambda name: sum(v for v, other in zip(scores[name], unseen, strict=True) if other))]
    print(f"\n{case.name}: {len(case.pieces)} passages, {len(case.questions)} questions")
    for name, values in scores.items():
        print(report(name, values, None, unseen), flush=True)
    scores_of: dict[str, list[float]] = {}
    for name, tuning in settings.items():
        scores_of[name] = ndcg(hybrid(case, principal, space, asked, tuning)[0], case)
        print(report(name, scores_of[name], best, unseen), flush=True)
    if len(case.pieces) >= INDEXED_FROM:
        _build_index(space)
        exact, (found, _) = scores_of["hybrid"], hybrid(case, principal, space, asked, DEFAULT)
        print(report("by index, against exact", ndcg(found, case), exact, unseen), flush=True)
    if models:
        ranked, times = hybrid(case, principal, space, asked, DEFAULT, models)
        took = f"   re-ranking p50 {np.percentile(times, 50):.0f} ms, p95 {np.percentile(times, 95):.0f} ms"
        print(report("re-ranked", ndcg(ranked, case), best, unseen) + took, flush=True)


def _build_index(space: Space) -> None:
    """The approximate index of every tenant in the space, as index care builds it, whatever its size."""
    with operator_session() as operator:
        found = [corpus for corpus in indexes.corpora(operator) if corpus.space_id == space.space_id]
    with indexes.owner_connection(os.environ["MIGRATION_DATABASE_URL"]) as owner:
        for corpus in found:
            if not corpus.indexed and corpus.vectors >= INDEXED_FROM:
                indexes.build(owner, corpus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=DIMENSIONS, default="use-v3")
    parser.add_argument("--only", default="", help="Only sets whose name contains this.")
    parser.add_argument("--tuning", type=json.loads, action="append", default=[], help="Settings beside the default.")
    parser.add_argument("--rerank", action="store_true", help="Also with the bundled re-ranker behind the proxy.")
    arguments = parser.parse_args()
    data = Path(os.environ.get("NOESIS_SHARED") or CHECKOUT.parent / "shared") / "data"
    settings = {"hybrid": DEFAULT, "by rank": replace(DEFAULT, by_rank=True, lexical_weight=1.0)}
    settings |= {json.dumps(values): replace(DEFAULT, **values) for values in arguments.tuning}
    with database(), model_service() if arguments.rerank else nullcontext() as models:
        for number, case in enumerate(cases(data)):
            if arguments.only in case.name:
                measure(case, number, arguments.model, settings, models)


if __name__ == "__main__":
    main()
