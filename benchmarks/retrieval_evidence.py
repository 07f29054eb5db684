"""The evidence gate: AUC of “the answer is in the corpus”, fitted on one half of the questions, reported on the other.

`python -m benchmarks.retrieval_evidence [--model use-v3]`. Half of XQuAD's articles are indexed; questions about the
others have no evidence, though they sound alike.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.retrieval_corpus import Piece, database, load, new_tenant
from benchmarks.retrieval_quality import DIMENSIONS
from benchmarks.retrieval_vectors import CHECKOUT, vectors
from shared.database import tenant_session
from shared.retrieval import evidence, golden
from shared.retrieval.search import search_explained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=DIMENSIONS, default="use-v3")
    model = parser.parse_args().model
    folder = Path(os.environ.get("NOESIS_SHARED") or CHECKOUT.parent / "shared") / "data" / "xquad"
    kinds = ("strength", "score", "highest cosine")
    pooled: dict[str, tuple[list[float], list[float]]] = {kind: ([], []) for kind in kinds}
    with database():
        for asked, written in (("de", "de"), ("en", "en"), ("de", "en"), ("en", "de")):
            texts, questions = golden.xquad(
                folder / f"xquad.{asked}.json", folder / f"xquad.{written}.json", asked, written
            )
            # A document is xquad-<article>-<paragraph>; every second article is in.
            inside = [number for number, t in enumerate(texts) if int(t.document.split("-")[1]) % 2 == 0]
            rows = vectors([t.text for t in texts], model)
            queries = vectors([q.question for q in questions], model, "query")
            who, space = new_tenant(f"{asked}-{written}", model, DIMENSIONS[model])
            load(who, space, [Piece(texts[n].document, written, texts[n].text) for n in inside], rows[inside])
            own: dict[str, tuple[list[float], list[float]]] = {kind: ([], []) for kind in kinds}
            with tenant_session(who.tenant_id) as session:
                for question, vector in zip(questions, queries, strict=True):
                    passages = search_explained(
                        session, who.tenant_id, who.member_id, space, question.question, vector.tolist(), top_k=5
                    ).passages
                    answerable = int(question.relevant[0].document.split("-")[1]) % 2 == 0
                    found = (
                        evidence.strength(passages, space),
                        max(p.score for p in passages),
                        max(p.similarity for p in passages),
                    )
                    for kind, value in zip(kinds, found, strict=True):
                        own[kind][not answerable].append(value)
                        pooled[kind][not answerable].append(value)
            for kind, (yes, no) in own.items():
                print(f"{asked}›{written} {kind:18} {evidence.calibrate(yes, no)}", flush=True)
        for kind, (yes, no) in pooled.items():
            print(f"pooled {kind:18} {evidence.calibrate(yes, no)}")


if __name__ == "__main__":
    main()
