"""Statistics of lexical search at size: counted in segments, and again after a change, beside one statement for all.

python -m benchmarks.corpus_statistics --chunks 1000000 [--whole]

The corpus is made up: 200 words a chunk, drawn from two a chunk and two million at most, the n-th with probability 1/n.
Real texts have fewer rare words, so that segments and sums are smaller. A million chunks take 15 minutes to make and
6 GB of disk.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psutil
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from benchmarks.retrieval_corpus import database, new_tenant
from local.postgres import Server
from shared.database import operator_session, patiently
from shared.retrieval import statistics

WORDS = 2_000_000
A_VERSION = 10
"""Chunks of a version."""

_CHUNKS = """
insert into rag.chunk_terms (tenant_id, chunk_id, document_id, version_id, language, length, terms, markers)
select cast(:t as uuid), cast(md5('c' || n) as uuid), cast(md5('d' || n / :v) as uuid),
       cast(md5('v' || n / :v) as uuid), 'de', 200,
       array(select distinct rag.term(:t, 1, 'de', 'w' || cast(exp(random() * ln(:words)) as integer))
             from generate_series(1, 200) g where n is not null), '{}'
from generate_series(0, :chunks - 1) n
"""
_VOCABULARY = """
insert into rag.vocabulary (tenant_id, language, stem, spellings)
select cast(:t as uuid), 'de', 'w' || n, array[n] from generate_series(1, :words) n
"""
_WHOLE = """
select count(*) from (select t.term from rag.chunk_terms c cross join lateral unnest(c.terms) t(term)
where c.tenant_id = :t group by t.term having count(*) >= 100) common
"""


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--whole", action="store_true", help="Also count in one statement, as before ADR 0026.")
    given = parser.parse_args()
    with database() as server, _superuser(server) as admin:
        principal, _ = new_tenant("bench")
        tenant = principal.tenant_id
        with _clock(server, "make the corpus"):
            _make(admin, tenant, given.chunks)
        _steps(server, "all segments", lambda: statistics.refreshing(tenant))
        _steps(server, "nothing has changed", lambda: statistics.refreshing(tenant))
        admin.execute(text("delete from rag.chunk_terms where version_id = cast(md5('v7') as uuid)"))
        _steps(server, "a version less", lambda: statistics.refreshing(tenant))
        _steps(server, "forget words", lambda: statistics.forgetting(tenant))
        if given.whole:
            with _clock(server, "one statement"), operator_session() as session, patiently(session, 3_600):
                session.execute(text(_WHOLE), {"t": tenant})


def _make(admin: Connection, tenant: UUID, chunks: int) -> None:
    # Without their chunks: nothing here reads those.
    admin.execute(text("set session_replication_role = replica"))
    for index in ("chunk_terms_terms_idx", "vocabulary_spellings_idx", "vocabulary_backwards_idx"):
        admin.execute(text(f"drop index rag.{index}"))
    words = min(WORDS, 2 * chunks)
    admin.execute(text(_CHUNKS), {"t": tenant, "chunks": chunks, "words": words, "v": A_VERSION})
    admin.execute(text(_VOCABULARY), {"t": tenant, "words": words})
    admin.execute(text("set maintenance_work_mem = '1GB'"))
    admin.execute(
        text("create index chunk_terms_terms_idx on rag.chunk_terms using gin (terms) with (fastupdate = off)")
    )
    admin.execute(text("vacuum analyze"))


@contextmanager
def _superuser(server: Server) -> Iterator[Connection]:
    url = make_url(server.admin_dsn).set(database="noesis2")
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool, connect_args={"timeout": None})
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def _steps(server: Server, name: str, work: Callable[[], Iterator[Any]]) -> None:
    """Time a piece of work and its longest step."""
    steps, longest = 0, 0.0
    with _clock(server, name):
        last = time.perf_counter()
        for _ in work():
            now = time.perf_counter()
            steps, longest, last = steps + 1, max(longest, now - last), now
    print(f"{'':24} {steps} steps, the longest {longest:.1f} s", flush=True)


@contextmanager
def _clock(server: Server, name: str) -> Iterator[None]:
    began, before = time.perf_counter(), _processor(server)
    yield
    # Parallel workers that have ended are not in it.
    spent = sum(after - before.get(pid, 0.0) for pid, after in _processor(server).items())
    print(f"{name:24} {time.perf_counter() - began:8.1f} s, {spent:8.1f} s of the server's processor", flush=True)


def _processor(server: Server) -> dict[int, float]:
    found = {}
    for child in psutil.Process(server.pid).children():
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        found[child.pid] = times.user + times.system
    return found


if __name__ == "__main__":
    main()
