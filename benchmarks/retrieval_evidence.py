"""The evidence gate: AUC of “the answer is in the corpus”, fitted on one half of the questions, reported on the other.

`python -m benchmarks.retrieval_evidence [--model use-v3] [--rerank] [--every 5]`. Half of XQuAD's articles are indexed;
questions about the others have no evidence, though they sound alike. With `--rerank` the bundled re-ranker judges too.
"""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks.retrieval_corpus import Piece, database, load, new_tenant
from benchmarks.retrieval_models import model_service
from benchmarks.retrieval_quality import CANDIDATES, DIMENSIONS
from benchmarks.retrieval_vectors import CHECKOUT, vectors
from shared.database import tenant_session
from shared.llm import Models
from shared.retrieval import evidence, golden
from shared.retrieval.passages import Passage
from shared.retrieval.paying import Payer
from shared.retrieval.reranking import BUNDLED, paid, reordered
from shared.retrieval.search import search_explained
from shared.retrieval.spaces import Space

PAIRS = (("de", "de"), ("en", "en"), ("de", "en"), ("en", "de"))
Values = dict[str, tuple[list[float], list[float]]]
"""By kind of score: of the answerable questions, and of the others."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=DIMENSIONS, default="use-v3")
    parser.add_argument("--rerank", action="store_true", help="Also what the bundled re-ranker says.")
    parser.add_argument("--every", type=int, default=1, help="Ask only every n-th question.")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("NOESIS_SHARED") or CHECKOUT.parent / "shared") / "data" / "xquad"
    pooled: Values = {}
    with database(), model_service() if arguments.rerank else nullcontext() as models:
        for asked, written in PAIRS:
            own = measure(folder, asked, written, arguments.model, arguments.every, models)
            for kind, (yes, no) in own.items():
                print(f"{asked}›{written} {kind:15} {evidence.calibrate(yes, no)}", flush=True)
                both = pooled.setdefault(kind, ([], []))
                both[0].extend(yes)
                both[1].extend(no)
        for kind, (yes, no) in pooled.items():
            print(f"pooled {kind:15} {evidence.calibrate(yes, no)}")


def measure(folder: Path, asked: str, written: str, model: str, every: int, models: Models | None) -> Values:
    """Every kind of score of every question of a language pair."""
    texts, questions = golden.xquad(folder / f"xquad.{asked}.json", folder / f"xquad.{written}.json", asked, written)
    # A document is xquad-<article>-<paragraph>; every second article is in. The weights of the re-ranker were fitted on
    # the even articles, so the odd ones are.
    inside = [number for number, text in enumerate(texts) if _article(text.document) % 2 == 1]
    rows = vectors([text.text for text in texts], model)
    queries = vectors([question.question for question in questions], model, "query")
    who, space = new_tenant(f"{asked}-{written}", model, DIMENSIONS[model])
    load(who, space, [Piece(texts[n].document, written, texts[n].text) for n in inside], rows[inside])
    found: Values = {}
    judge = partial(paid, models, Payer(who.tenant_id, "dev", datetime.now(UTC))) if models else None
    for question, vector in list(zip(questions, queries, strict=True))[::every]:
        with tenant_session(who.tenant_id) as session:
            passages = search_explained(
                session, who.tenant_id, who.member_id, space, question.question, vector.tolist(), top_k=CANDIDATES
            ).passages
        judged = []
        if models is not None and judge is not None:
            judged = reordered(models, BUNDLED, space, question.question, passages, judge)
        answerable = _article(question.relevant[0].document) % 2 == 1
        for kind, value in _scores(passages, judged, space).items():
            found.setdefault(kind, ([], []))[not answerable].append(value)
    return found


def _scores(passages: list[Passage], judged: list[Passage], space: Space) -> dict[str, float]:
    best = passages[: evidence.CONSIDERED]
    scores = {
        "strength": evidence.strength(passages, space),
        "score": max(p.score for p in best),
        "highest cosine": max(p.similarity for p in best),
    }
    relevances = [p.relevance for p in judged[: evidence.CONSIDERED] if p.relevance is not None]
    return scores | ({"relevance": max(relevances)} if relevances else {})


def _article(document: str) -> int:
    return int(document.split("-")[1])


if __name__ == "__main__":
    main()
