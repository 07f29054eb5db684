"""What the bound on a search's postings costs in quality: some thousand passages, searched as in a large tenant.

Words in more chunks than a search may look up only rank what rarer ones found (ADR 0011). In a small corpus hardly any
word is that common. Here the bound, and what counts as common, are scaled to the set's size as if it had `--chunks`.

`python -m benchmarks.retrieval_budget [--chunks 100000] [--postings 1500 --postings 5000] [--only laws]`
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.retrieval_corpus import database, load, new_tenant
from benchmarks.retrieval_quality import DIMENSIONS, Case, cases, hybrid, ndcg, shown
from benchmarks.retrieval_vectors import CHECKOUT, vectors
from schema.rag.r0002_lexical_search import POSTINGS_BUDGET, RARE
from schema.rag.r0012_lexical_edges import search_function_guarded
from shared.database import operator_session
from shared.retrieval import indexes, metrics, statistics
from shared.retrieval.ranking import DEFAULT


def scaled(postings: int, rare: int) -> str:
    """The lexical channel with another bound and another idea of what is rare."""
    function = search_function_guarded()
    changes = {
        f"o.work <= {POSTINGS_BUDGET} ": f"o.work <= {postings} ",
        f"o.work > {POSTINGS_BUDGET} ": f"o.work > {postings} ",
        f"coalesce(t.frequent, {RARE})": f"coalesce(t.frequent, {rare})",
    }
    if [function.count(old) for old in changes] != [1, 1, 2]:
        raise SystemExit("the lexical channel is not the one this benchmark knows")
    for old, new in changes.items():
        function = function.replace(old, new)
    return function


def measure(case: Case, number: int, chunks: int, postings: list[int], model: str = "use-v3") -> None:
    """nDCG@10 of all questions as it is, and for each bound as in a tenant of so many chunks."""
    passages = vectors([shown(piece) for piece in case.pieces], model)
    asked = vectors([question.question for question in case.questions], model, "query")
    principal, space = new_tenant(f"budget-{number}", model, DIMENSIONS[model])
    load(principal, space, case.pieces, passages)
    share = len(case.pieces) / chunks
    rare = max(2, round(RARE * share))
    whole = ndcg(hybrid(case, principal, space, asked, DEFAULT)[0], case)
    print(f"{case.name}: {len(case.pieces)} passages, nDCG@10 {metrics.estimate(whole).mean:.3f}", flush=True)
    statistics.RARE = rare
    with operator_session() as operator:
        statistics.refresh(operator, principal.tenant_id)
    statistics.RARE = RARE
    with indexes.owner_connection(os.environ["MIGRATION_DATABASE_URL"]) as owner:
        for most in postings:
            owner.exec_driver_sql(scaled(max(1, round(most * share)), rare))
            found = ndcg(hybrid(case, principal, space, asked, DEFAULT)[0], case)
            gap = metrics.difference(found, whole)
            low, mid, high = (100 * x for x in (gap.low, gap.mean, gap.high))
            line = f"  as at {chunks:,}, {most:6,} postings: {metrics.estimate(found).mean:.3f}"
            print(f"{line}, {mid:+.1f} ({low:+.1f} to {high:+.1f})", flush=True)
        owner.exec_driver_sql(search_function_guarded())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=100_000, help="Size of the tenant to be searched as.")
    parser.add_argument("--postings", type=int, action="append", help="Bounds to try; default the product's.")
    parser.add_argument("--only", default="", help="Only sets whose name contains this.")
    arguments = parser.parse_args()
    data = Path(os.environ.get("NOESIS_SHARED") or CHECKOUT.parent / "shared") / "data"
    with database():
        for number, case in enumerate(cases(data)):
            if arguments.only in case.name:
                measure(case, number, arguments.chunks, arguments.postings or [POSTINGS_BUDGET])


if __name__ == "__main__":
    main()
