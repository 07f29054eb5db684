"""On demand: 1,000 vectors in a scratch schema show whether HNSW and IVFFLAT find here what exact search finds."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence

from sqlalchemy import Connection

from functions.maintenance.jobs.ownership import owner
from shared.errors import PermanentError
from shared.jobs.leases import Lease, Progress
from shared.retrieval.statements import vector_type
from shared.services import Services

log = logging.getLogger(__name__)

NEEDS_OWNER = True
VECTORS, QUERIES, TOP, TOPICS, SEED = 1_000, 50, 10, 20, 1337
FLOOR = 0.95
"""Mean recall@10 below which the database's pgvector is not what was measured (docs/retrieval.md)."""

_TABLE = "index_test.vectors"
# The settings of an approximate search, as large as the product's own need to be (docs/retrieval.md).
_INDEXES = {
    "hnsw": ("with (m = 32, ef_construction = 128)", "set hnsw.ef_search = 200"),
    "ivfflat": ("with (lists = 10)", "set ivfflat.probes = 5"),
}


def run(lease: Lease, services: Services) -> Iterator[Progress]:
    """Exact answers first, then one index a slice; counts recall@10 in percent and whether the plan used the index.

    Raises PermanentError `job-needs-owner`, and `index-test-failed` when an index is not used or recall is below FLOOR.
    The scratch schema is gone afterwards; a schema that a killed run left is replaced.
    """
    dimension = services.settings.embeddings_dim
    kind, vectors = vector_type(dimension), _clusters(dimension)
    queries = random.Random(SEED + 1).sample(vectors, QUERIES)  # noqa: S311 # test data, the same in every run
    counts: dict[str, int] = {"vectors": len(vectors)}
    poor = []
    with owner(services) as connection:
        connection.exec_driver_sql("drop schema if exists index_test cascade")
        connection.exec_driver_sql("create schema index_test")
        try:
            _fill(connection, vectors, f"{kind}({dimension})")
            exact = [_nearest(connection, query) for query in queries]
            yield Progress(1, 1 + len(_INDEXES), dict(counts))
            for done, (method, (options, setting)) in enumerate(_INDEXES.items(), start=2):
                connection.exec_driver_sql(
                    f"create index vectors_near_idx on {_TABLE} using {method} (v {kind}_cosine_ops) {options}"
                )
                connection.exec_driver_sql(setting)
                connection.exec_driver_sql("set enable_seqscan = off")
                found = [_nearest(connection, query) for query in queries]
                used = _uses_index(connection, queries[0])
                recall = sum(len(a & b) for a, b in zip(exact, found, strict=True)) / (TOP * QUERIES)
                counts |= {f"{method}_recall_percent": round(recall * 100), f"{method}_plan_uses_index": int(used)}
                if not used or recall < FLOOR:
                    poor.append(method)
                connection.exec_driver_sql("reset enable_seqscan")
                connection.exec_driver_sql("drop index index_test.vectors_near_idx")
                yield Progress(done, 1 + len(_INDEXES), dict(counts))
        finally:
            connection.exec_driver_sql("drop schema if exists index_test cascade")
    if poor:
        log.error("approximate search is not what it should be", extra={"methods": ",".join(poor), **counts})
        raise PermanentError(
            "index-test-failed",
            f"Approximate search is not what it should be: {', '.join(poor)}.",
            "Compare the version of pgvector with the one in docs/retrieval.md.",
        )


def _clusters(dimension: int) -> list[str]:
    """Vectors around some topics, as texts are; in pgvector's text form. The same in every run."""
    draw = random.Random(SEED)  # noqa: S311
    topics = [[draw.gauss(0, 1) for _ in range(dimension)] for _ in range(TOPICS)]
    return [
        "[" + ",".join(f"{x + draw.gauss(0, 0.7):.4f}" for x in topics[number % TOPICS]) + "]"
        for number in range(VECTORS)
    ]


def _fill(connection: Connection, vectors: Sequence[str], kind: str) -> None:
    connection.exec_driver_sql(f"create table {_TABLE} (id integer primary key, v {kind})")
    for begun in range(0, len(vectors), 100):
        rows = ",".join(f"({begun + n}, '{vector}')" for n, vector in enumerate(vectors[begun : begun + 100]))
        connection.exec_driver_sql(f"insert into {_TABLE} values {rows}")
    connection.exec_driver_sql(f"analyze {_TABLE}")


def _nearest(connection: Connection, query: str) -> set[int]:
    return set(connection.exec_driver_sql(f"select id from {_TABLE} order by v <=> '{query}' limit {TOP}").scalars())


def _uses_index(connection: Connection, query: str) -> bool:
    plan = connection.exec_driver_sql(f"explain select id from {_TABLE} order by v <=> '{query}' limit {TOP}")
    return any("vectors_near_idx" in line for line in plan.scalars())
