"""How long deleting documents for good takes, and how much of it is the proof: `python -m benchmarks.purging [chunks]`.

One tenant with so many chunks (default 20,000) of 200 words, 10 a document, beside another as large; slices of 1 and 10
documents are purged. Prints seconds a slice, and the proof's part measured alone.
"""

from __future__ import annotations

import os
import random
import sys
import time
from uuid import UUID

from sqlalchemy import text

from benchmarks.retrieval_corpus import Piece, database, load, new_tenant
from shared.database import operator_session
from shared.documents.acting import as_operator
from shared.documents.hard_deletion import purge_documents
from shared.documents.traces import needles_of, search_traces
from shared.fakes import FakeBus, FakeStorage
from shared.messaging import use_bus
from shared.tenants.directory import Principal

CHUNKS, PER_DOCUMENT, WORDS, DIMENSION, SLICE = 20_000, 10, 200, 512, 250


def pieces(count: int, seed: int) -> list[Piece]:
    """Chunks of words of a vocabulary with a long tail."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnoprstu", k=draw.randint(3, 10))) for _ in range(4_000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]
    return [
        Piece(f"doc-{number // PER_DOCUMENT}", "en", " ".join(draw.choices(words, weights, k=WORDS)))
        for number in range(count)
    ]


def fill(slug: str, count: int, seed: int) -> Principal:
    """A tenant with so many chunks."""
    import numpy

    principal, space = new_tenant(slug, "bench", DIMENSION)
    generator = numpy.random.default_rng(seed)
    for start in range(0, count, SLICE):
        part = pieces(min(SLICE, count - start), seed + start)
        part = [Piece(f"{start}-{piece.document}", piece.language, piece.text) for piece in part]
        load(principal, space, part, generator.standard_normal((len(part), DIMENSION), dtype="float32"))
    return principal


def measure(principal: Principal, size: int) -> tuple[float, float]:
    """Seconds for a purge of `size` documents, and for its proof alone."""
    with operator_session() as operator:
        ids = operator.execute(
            text("select document_id from rag.documents where tenant_id = :t order by document_id limit :n"),
            {"t": principal.tenant_id, "n": size},
        )
        documents: list[UUID] = list(ids.scalars())
        needles = needles_of(operator, principal.tenant_id, documents)
        began = time.perf_counter()
        search_traces(operator, principal.tenant_id, needles)
        proof = time.perf_counter() - began
    began = time.perf_counter()
    done = purge_documents(as_operator(principal.tenant_id, "bench"), documents, FakeStorage())
    took = time.perf_counter() - began
    assert done.documents == size
    assert done.rows["chunks"] == done.rows["vectors"] == size * PER_DOCUMENT
    return took, proof


def main() -> None:
    """Fill, purge, print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else int(os.environ.get("PURGING_CHUNKS", CHUNKS))
    use_bus(FakeBus())
    with database():
        principal = fill("purged", count, 1)
        fill("neighbour", count, 2)
        for size in (1, 1, 10, 10):
            took, proof = measure(principal, size)
            print(f"{count} chunks, {size:>2} documents: {took:6.2f} s, of which the proof about {proof:6.2f} s")


if __name__ == "__main__":
    main()
