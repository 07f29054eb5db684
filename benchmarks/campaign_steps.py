"""What a campaign costs the database at size: plan, progress, sending a batch, switch, dropping. No model is asked.

python -m benchmarks.campaign_steps --chunks 100000 --filled 0.9
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID

import numpy as np
from sqlalchemy import text
from sqlalchemy.orm import Session

from benchmarks.retrieval_corpus import Piece, database, load, new_tenant
from functions.maintenance.jobs.campaigns import run
from shared import messaging
from shared.database import operator_session, tenant_session
from shared.documents.storing import Batch
from shared.fakes import FakeBus
from shared.jobs.leases import Lease, Progress
from shared.retrieval import campaigns, estimating, filling, indexes, switching
from shared.retrieval.spaces import Space, ensure_space
from shared.services import Services
from shared.settings import get_settings
from shared.tenants.directory import Principal

DIMENSION = 64
SMALL, LARGE = Batch(16, 100_000), Batch(128, 100_000)
A_DOCUMENT = 20
"""Chunks of a document."""


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--filled", type=float, default=0.9, help="Share of the new space that is there already.")
    given = parser.parse_args()
    messaging.use_bus(FakeBus())
    with database():
        principal, source = _corpus(given.chunks)
        with operator_session() as operator:
            target = ensure_space(operator, "bench-target", DIMENSION)
        _measure(principal.tenant_id, source, target, given.chunks, given.filled)


def _corpus(chunks: int) -> tuple[Principal, Space]:
    principal, source = new_tenant("bench", "bench-source", DIMENSION)
    vectors = np.random.default_rng(7).standard_normal((chunks, DIMENSION), dtype=np.float32)
    pieces = [Piece(f"d{n // A_DOCUMENT}", "de", f"Absatz {n} zum Thema {n % 997}") for n in range(chunks)]
    load(principal, source, pieces, vectors)
    return principal, source


def _measure(tenant: UUID, source: Space, target: Space, chunks: int, filled: float) -> None:
    def plan(operator: Session) -> object:
        return campaigns.plan(operator, tenant, target, budget=None, history=True, estimate={}, actor="bench")

    _time("count what is to be done", lambda o: estimating.load_of(o, tenant, source, target, history=True))
    _time("plan", plan)
    _time(
        "start (first batches)", lambda o: campaigns.start(o, tenant, slots=4, small=SMALL, large=LARGE, actor="bench")
    )
    _copy(tenant, source, target, int(chunks * filled))
    _time("progress", lambda o: filling.progress(o, campaigns.latest(o, tenant).filling))
    with _clock("send a batch from the beginning (90 % filled)"), tenant_session(tenant) as session:
        session.execute(text("delete from rag.campaign_batches"))
        filling.fill_on(session, tenant, target.space_id, SMALL)
    with _clock("send the next batches, 20 times, each"), tenant_session(tenant) as session:
        for _ in range(20):
            session.execute(text("delete from rag.campaign_batches where not arrival"))
            filling.fill_on(session, tenant, target.space_id, SMALL)
    _copy(tenant, source, target, chunks)
    with operator_session() as operator:
        operator.execute(text("delete from rag.campaign_batches"))
        operator.execute(text("update rag.campaigns set state = 'ready'"))
    if chunks >= indexes.BUILD_FROM:
        url = get_settings().migration_database_url
        assert url is not None
        with _clock("build the index"), indexes.owner_connection(url.get_secret_value()) as owner:
            indexes.build_once(owner, indexes.Corpus(tenant, target.space_id, DIMENSION, chunks, indexed=False))
    _time("switch", lambda o: switching.switch(o, tenant, now=datetime.now(UTC), actor="bench"))
    _time("rollback", lambda o: switching.rollback(o, tenant, now=datetime.now(UTC), actor="bench"))
    with operator_session() as operator:
        operator.execute(text("update rag.campaigns set drop_after = now() - interval '1 minute'"))
    with _clock("drop the space"):
        for _ in run(Lease("campaigns", datetime.now(UTC), 1, "bench", Progress()), Services(get_settings())):
            pass


def _copy(tenant: UUID, source: Space, target: Space, most: int) -> None:
    with operator_session() as operator:
        operator.execute(
            text(
                "insert into rag.embeddings (tenant_id, space_id, chunk_id, embedding) "
                "select e.tenant_id, :target, e.chunk_id, e.embedding from rag.embeddings e join rag.chunks c "
                "on c.tenant_id = e.tenant_id and c.chunk_id = e.chunk_id where e.tenant_id = :t "
                "and e.space_id = :source order by c.version_id limit :most on conflict do nothing"
            ),
            {"t": tenant, "source": source.space_id, "target": target.space_id, "most": most},
        )
    with operator_session() as operator:
        operator.execute(text("analyze rag.embeddings"))


def _time(name: str, step: Callable[[Session], object]) -> None:
    with _clock(name), operator_session() as operator:
        step(operator)


@contextmanager
def _clock(name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    print(f"{name:46} {(time.perf_counter() - began) * 1000:10.1f} ms", flush=True)


if __name__ == "__main__":
    main()
