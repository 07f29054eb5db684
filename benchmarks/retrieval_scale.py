"""Search at size: Zipf-sized tenants, recall, latency, row-level security against a literal filter, isolation.

`python -m benchmarks.retrieval_scale [--tenants 20] [--largest 100000]`.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics as stats
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.orm import Session

from benchmarks.retrieval_corpus import Piece, database, load, new_tenant
from benchmarks.retrieval_vectors import CHECKOUT, Vectors, vectors
from shared.database import operator_session, tenant_session
from shared.retrieval import golden, indexes, probing, statistics
from shared.retrieval.planning import pin_plans
from shared.retrieval.questions import Filters
from shared.retrieval.ranking import DEFAULT
from shared.retrieval.search import search_explained, search_parameters
from shared.retrieval.spaces import Space
from shared.retrieval.statements import search_sql
from shared.settings import get_settings
from shared.tenants.directory import Principal

COMMON = [
    "Gesetz und Verordnung",
    "Wie ist es in der Stadt?",
    "What is the number of the flow?",
    "results of the theory",
]
"""Questions of nothing but common words: the worst case of lexical search."""


def synthetic(pieces: list[Piece], known: Vectors, count: int, seed: int) -> tuple[list[Piece], Vectors]:
    """Chunks made of halves of two real ones each, with the middle of their vectors plus noise: as spread as real text.

    Five chunks a document. The noise (a tenth of the vector's length) keeps equal pairs apart.
    """
    dice = random.Random(seed)
    noise = np.random.default_rng(seed)
    made, rows = [], np.empty((count, known.shape[1]), dtype=np.float32)
    for number in range(count):
        one, two = dice.randrange(len(pieces)), dice.randrange(len(pieces))
        share = dice.uniform(0.5, 0.9)
        first, second = pieces[one].text.split(), pieces[two].text.split()
        words = _part(first, int(120 * share), dice) + _part(second, int(120 * (1 - share)), dice)
        made.append(Piece(f"{seed}-{number // 5}", pieces[one].language, " ".join(words)))
        row = share * known[one] + (1 - share) * known[two]
        row = row / np.linalg.norm(row) + 0.1 * noise.standard_normal(known.shape[1]) / known.shape[1] ** 0.5
        rows[number] = row / np.linalg.norm(row)
    return made, rows


def _part(words: list[str], length: int, dice: random.Random) -> list[str]:
    start = dice.randrange(max(len(words) - length, 0) + 1)
    return words[start : start + length]


def real(data: Path) -> tuple[list[Piece], Vectors, list[str], Vectors]:
    """Real passages and questions in both languages, with their vectors."""
    pieces: list[Piece] = []
    questions: list[str] = []
    for language in ("de", "en"):
        file = data / f"xquad/xquad.{language}.json"
        texts, asked = golden.xquad(file, file, language, language)
        pieces += [Piece(t.document, t.language, t.text) for t in texts]
        questions += [q.question for q in asked[::7]]
    texts, _ = golden.cranfield(data / "cranfield")
    pieces += [Piece(t.document, t.language, t.text) for t in texts]
    questions += COMMON
    return pieces, vectors([p.text for p in pieces]), questions, vectors(questions, input_type="query")


def ask(session: Session, who: Principal, space: Space, questions: Sequence[str], asked: Vectors) -> str:
    """How long searches take, and what they cost the server, which a busy machine falsifies less."""
    server = psutil.Process(session.execute(text("select pg_backend_pid()")).scalar_one())
    before = server.cpu_times()
    times = []
    for question, vector in zip(questions, asked, strict=True):
        found = search_explained(session, who.tenant_id, who.member_id, space, question, vector.tolist(), top_k=10)
        times.append(found.diagnostics.milliseconds)
    after = server.cpu_times()
    cost = (after.user + after.system - before.user - before.system) * 1000 / len(times)
    ordered = sorted(times)
    p95 = ordered[int(len(ordered) * 0.95)]
    return f"p50 {stats.median(ordered):.1f} ms, p95 {p95:.1f} ms, {cost:.1f} ms of the server's processor"


def without_rls(
    server: Any, who: Principal, space: Space, questions: Sequence[str], asked: Vectors
) -> tuple[float, float]:
    """Median milliseconds of the same statement as the application and as the superuser, whom no policy binds.

    Both run turn by turn, so that what else the machine does hits them alike.
    """
    url = make_url(server.admin_dsn).set(database="noesis2")
    bypassing = create_engine(url)
    bound: list[float] = []
    free: list[float] = []
    with tenant_session(who.tenant_id) as session, Session(bypassing) as superuser:
        superuser.execute(text("select set_config('app.tenant_id', :t, false)"), {"t": str(who.tenant_id)})
        for question, vector in zip(questions, asked, strict=True):
            values = search_parameters(
                who.tenant_id, who.member_id, space, question, vector.tolist(), Filters(), DEFAULT
            )
            # In turns: whoever comes second finds the pages in memory.
            for times, one in ((bound, session), (free, superuser))[:: 1 if len(bound) % 2 else -1]:
                started = time.perf_counter()
                pin_plans(one)
                one.execute(search_sql(space.dimension), values | {"top_k": 10}).all()
                times.append((time.perf_counter() - started) * 1000)
    bypassing.dispose()
    return stats.median(bound), stats.median(free)


def probes(who: Principal, space: Space, questions: Sequence[str], asked: Vectors) -> list[object]:
    """Everything a tenant can see of its searches except times: passages, scores, counts, and the plan's shape."""
    seen: list[object] = []
    with tenant_session(who.tenant_id) as session:
        for question, vector in zip(questions, asked, strict=True):
            found = search_explained(session, who.tenant_id, who.member_id, space, question, vector.tolist(), top_k=10)
            counts = [getattr(found.diagnostics, name) for name in found.diagnostics.__slots__[:-1]]
            seen.append((found.passages, counts))
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=20)
    parser.add_argument("--largest", type=int, default=100_000)
    parser.add_argument("--build-from", type=int, default=indexes.BUILD_FROM)
    arguments = parser.parse_args()
    data = Path(os.environ.get("NOESIS_SHARED") or CHECKOUT.parent / "shared") / "data"
    pieces, known, questions, asked = real(data)
    sizes = [max(arguments.largest // rank, 50) for rank in range(1, arguments.tenants + 1)]
    with database() as server:
        made: list[tuple[Principal, Space]] = []
        before: list[object] = []
        for rank in reversed(range(arguments.tenants)):  # the smallest first: it is probed alone, then among the others
            who, space = new_tenant(f"zipf-{rank}")
            made.append((who, space))
            for part in range(0, sizes[rank], 10_000):
                load(who, space, *synthetic(pieces, known, min(10_000, sizes[rank] - part), rank * 1000 + part))
            if not before:
                before = probes(who, space, questions, asked)
        care(arguments.build_from)
        smallest = made[0]
        same = sum(a == b for a, b in zip(before, probes(*smallest, questions, asked), strict=True))
        print(
            f"isolation: {same} of {len(before)} probes identical with and without {arguments.tenants - 1} neighbours"
        )
        recalls(arguments.build_from)
        for (who, space), size in zip(reversed(made), sizes, strict=True):
            with tenant_session(who.tenant_id) as session:
                ask(session, who, space, questions[:5], asked[:5])
                print(f"{size:7} chunks: {ask(session, who, space, questions, asked)}", flush=True)
        bound, free = without_rls(server, *made[-1], questions, asked)
        print(f"row-level security: {bound:.1f} ms, without {free:.1f} ms, throughput ratio {free / bound:.2f}")


def care(build_from: int) -> None:
    """What the job index-care does, timed."""
    url = get_settings().migration_database_url
    assert url is not None
    with operator_session() as session:
        for tenant_id in statistics.stale(session):
            statistics.refresh(session, tenant_id)
        plan = indexes.plan(indexes.corpora(session), build_from=build_from)
    with indexes.owner_connection(url.get_secret_value()) as owner:
        for corpus in plan.build:
            timed(f"index over {corpus.vectors}", partial(indexes.build, owner, corpus))
        owner.exec_driver_sql("analyze")


def timed(what: str, work: Callable[[], object]) -> None:
    started = time.perf_counter()
    work()
    print(f"{what}: {time.perf_counter() - started:.1f} s", flush=True)


def recalls(build_from: int) -> None:
    """The recall triple: on average, worst tenant, worst query; tenants below the size are exact."""
    with operator_session() as session:
        found = [(c, probing.measure(session, c, queries=50) if c.indexed else None) for c in indexes.corpora(session)]
    measured = [recall for _, recall in found if recall]
    means = [recall.mean if recall else 1.0 for _, recall in found]
    worst = min((recall.worst for recall in measured), default=1.0)
    print(
        f"recall@10: mean {stats.mean(means):.4f}, worst tenant {min(means):.4f}, worst query {worst:.2f} "
        f"({len(measured)} tenants by index, {len(found) - len(measured)} exact)"
    )


if __name__ == "__main__":
    main()
