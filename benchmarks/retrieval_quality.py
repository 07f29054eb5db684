"""Quality of search on real questions beside BM25 (bm25s) and brute force with the same embedder, in one run.

`python -m benchmarks.retrieval_quality [--model use-v3|e5-small] [--compare ranks]`. Real PostgreSQL, real vectors
(computed once, kept under build/). nDCG@10 with 95 % bootstrap intervals; the margin is a paired difference against
the better baseline of the set.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import bm25s
import numpy as np
import Stemmer  # type: ignore[import-not-found] # PyStemmer has no types
from numpy.typing import NDArray

from benchmarks.retrieval_corpus import Piece, database, load, new_tenant
from benchmarks.retrieval_vectors import CHECKOUT, Vectors, vectors
from shared.database import tenant_session
from shared.retrieval import golden, metrics
from shared.retrieval.search import DEFAULT, Tuning, search_explained
from shared.retrieval.spaces import Space
from shared.tenants.directory import Principal

DIMENSIONS = {"use-v3": 512, "e5-small": 384}
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A set of questions over a corpus of passages; `relevant` holds indices into `pieces`."""

    name: str
    language: str
    pieces: list[Piece]
    questions: list[golden.Question]
    relevant: list[dict[int, float]]


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


def _shown(piece: Piece) -> str:
    return f"{' › '.join(piece.headings)}\n{piece.text}" if piece.headings else piece.text


def bm25(case: Case) -> Scores:
    """Scores of every passage by bm25s with Snowball stems and its own stop words, its default parameters."""
    stemmer = Stemmer.Stemmer({"de": "german", "en": "english"}[case.language])

    def tokens(texts: list[str]) -> object:
        return bm25s.tokenize(texts, stopwords=case.language, stemmer=stemmer, show_progress=False)

    index = bm25s.BM25()
    index.index(tokens([_shown(piece) for piece in case.pieces]), show_progress=False)
    found, scores = index.retrieve(
        tokens([q.question for q in case.questions]), k=len(case.pieces), show_progress=False
    )
    table = np.zeros((len(case.questions), len(case.pieces)), dtype=np.float32)
    np.put_along_axis(table, found, scores, axis=1)
    return table


def rankings(scores: Scores) -> list[list[int]]:
    order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    return [[int(column) for column in row if scores[number, column] > 0] for number, row in enumerate(order)]


def hybrid(case: Case, principal: Principal, space: Space, asked: Vectors, tuning: Tuning) -> list[list[int]]:
    place = {(piece.document, piece.text): number for number, piece in enumerate(case.pieces)}
    found = []
    with tenant_session(principal.tenant_id) as session:
        for question, vector in zip(case.questions, asked, strict=True):
            result = search_explained(
                session, principal.tenant_id, principal.member_id, space, question.question, vector.tolist(),
                top_k=10, tuning=tuning,
            )  # fmt: skip
            found.append([place[p.external_id, p.text] for p in result.passages])
    return found


def ndcg(ranked: Sequence[Sequence[int]], case: Case) -> list[float]:
    return [metrics.ndcg(r, relevant) for r, relevant in zip(ranked, case.relevant, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=DIMENSIONS, default="use-v3")
    parser.add_argument("--only", default="", help="Only sets whose name contains this.")
    parser.add_argument("--tuning", type=json.loads, action="append", default=[], help="Settings beside the default.")
    arguments = parser.parse_args()
    data = Path(os.environ.get("NOESIS_SHARED") or CHECKOUT.parent / "shared") / "data"
    settings = {"hybrid": DEFAULT, "by rank": replace(DEFAULT, by_rank=True, lexical_weight=1.0)}
    settings |= {json.dumps(values): replace(DEFAULT, **values) for values in arguments.tuning}
    with database():
        for number, case in enumerate(cases(data)):
            if arguments.only not in case.name:
                continue
            passages = vectors([_shown(piece) for piece in case.pieces], arguments.model)
            asked = vectors([q.question for q in case.questions], arguments.model, "query")
            principal, space = new_tenant(f"case-{number}", arguments.model, DIMENSIONS[arguments.model])
            load(principal, space, case.pieces, passages)
            scores = {"BM25": ndcg(rankings(bm25(case)), case), "dense": ndcg(rankings(asked @ passages.T), case)}
            best = max(scores, key=lambda name: sum(scores[name]))
            print(f"\n{case.name}: {len(case.pieces)} passages, {len(case.questions)} questions")
            for name, tuning in settings.items():
                scores[name] = ndcg(hybrid(case, principal, space, asked, tuning), case)
            for name, values in scores.items():
                mean = metrics.estimate(values)
                line = f"  {name:10} nDCG@10 {mean.mean:.3f} ({mean.low:.3f}-{mean.high:.3f})"
                if name in settings:
                    gap = metrics.difference(values, scores[best])
                    low, mid, high = (100 * x for x in (gap.low, gap.mean, gap.high))
                    line += f"   against {best} {mid:+.1f} points ({low:+.1f} to {high:+.1f})"
                print(line, flush=True)


if __name__ == "__main__":
    main()
