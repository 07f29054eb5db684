"""Care for approximate indexes beside everything else that goes on in the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from functions.maintenance.jobs import index_care, recall_probe
from shared.database import operator_session, tenant_session
from shared.fakes import FakeBus
from shared.jobs.leases import Lease, Progress
from shared.retrieval import indexes, probing
from shared.retrieval.indexes import Corpus
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.search_material import index
from tests.integration.test_search_indexes import corpus_of, fill
from tests.integration.test_term_segments import wait_until


@pytest.fixture(autouse=True)
def _bus(bus: FakeBus) -> None:
    """What is published goes nowhere."""


@pytest.fixture
def care(fake_services: Services, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, int]]:
    """Runs the daily job for the indexes of these tenants alone, however small they are; what it counted."""
    plan = indexes.plan

    def run(*tenants: Principal) -> dict[str, int]:
        mine = {tenant.tenant_id for tenant in tenants}

        def plan_of_mine(found: Sequence[Corpus]) -> indexes.Plan:
            return plan([corpus for corpus in found if corpus.tenant_id in mine], build_from=1, drop_below=0)

        monkeypatch.setattr(indexes, "plan", plan_of_mine)
        lease = Lease("index-care", datetime.now(UTC), 1, "schedule", Progress())
        return [dict(progress.counts) for progress in index_care.run(lease, fake_services)][-1]

    return run


def name_and_number(owner: Connection, corpus: Corpus) -> int | None:
    """The index's number in the catalogue: another one when it was built anew."""
    number: int | None = owner.exec_driver_sql(f"select to_regclass('rag.{corpus.index}')::oid").scalar()
    return number


def test_a_build_outlasts_transactions_that_began_before_it(
    make_tenant: Callable[..., Principal], owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CONCURRENTLY waits for everybody who is at work already; it holds nobody up, so it has time for that."""
    tenant, other = make_tenant(), make_tenant()
    fill(tenant, 50)
    corpus = corpus_of(tenant.tenant_id)
    monkeypatch.setattr(indexes, "IMPATIENCE", "50ms")
    owner.exec_driver_sql("set lock_timeout = '50ms'")
    builder = {"pid": owner.exec_driver_sql("select pg_backend_pid()").scalar()}
    waits = text(
        "select exists (select from pg_locks where not granted and pid = :pid "
        "and waitstart < clock_timestamp() - interval '200 ms')"
    )
    with ThreadPoolExecutor(1) as pool:
        with tenant_session(other.tenant_id) as writer:
            writer.execute(text("lock table rag.embeddings in row exclusive mode"))
            built = pool.submit(indexes.build_once, owner, corpus)

            def waiting() -> bool:
                if built.done():
                    built.result()
                with operator_session() as operator:
                    return bool(operator.execute(waits, builder).scalar())

            wait_until(waiting)
        assert built.result(timeout=60)
    assert corpus_of(tenant.tenant_id).indexed


def test_an_index_that_cannot_be_built_keeps_no_other_waiting(
    make_tenant: Callable[..., Principal], owner: Connection, care: Callable[..., dict[str, int]]
) -> None:
    """One tenant's trouble is counted; the next one gets its index the same day."""
    first, second = make_tenant(), make_tenant()
    fill(first, 60)  # the largest is first in line
    fill(second, 50)
    in_the_way = f"rag.{corpus_of(first.tenant_id).index}"
    owner.exec_driver_sql(f"create table {in_the_way} ()")
    try:
        counts = care(first, second)
    finally:
        owner.exec_driver_sql(f"drop table {in_the_way}")
    assert (counts["built"], counts["failed"]) == (1, 1)
    assert corpus_of(second.tenant_id).indexed


def test_care_goes_by_what_is_there_when_it_comes_to_indexes(
    tenant: Principal,
    owner: Connection,
    care: Callable[..., dict[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An index that a campaign built while statistics were counted is no orphan, and is not built twice."""
    made: list[int | None] = []

    def statistics_for_hours(_tenants: Sequence[UUID], _counts: dict[str, int]) -> Iterator[tuple[int, int]]:
        fill(tenant, 50)
        indexes.build_once(owner, corpus_of(tenant.tenant_id))
        made.append(name_and_number(owner, corpus_of(tenant.tenant_id)))
        yield 1, 1

    monkeypatch.setattr(index_care, "_in_turns", statistics_for_hours)
    assert care(tenant)["built"] == 0
    corpus = corpus_of(tenant.tenant_id)
    assert corpus.indexed
    assert made == [name_and_number(owner, corpus)]
    assert not indexes.build_missing(owner, corpus)


def test_equal_chunks_are_no_loss_of_recall(tenant: Principal, owner: Connection) -> None:
    """Versions share texts and forms share paragraphs: which of them the index gives first is all the same."""
    index(tenant, "forms", *(f"Kapitel {number % 8}" for number in range(400)))
    indexes.build(owner, corpus_of(tenant.tenant_id))
    measure = partial(probing.measure, corpus=corpus_of(tenant.tenant_id), queries=20)
    with operator_session() as session:
        found = measure(session)
    assert (found.mean, found.worst) == (1, 1)
    with operator_session() as session:
        assert measure(session, effort=1).mean < 0.9, "what the index does not give is missed as before"


def test_a_tenant_that_cannot_be_probed_keeps_no_other_waiting(
    make_tenant: Callable[..., Principal], fake_services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest comes first, and its statements may take too long: those behind it are probed all the same."""
    first, second = make_tenant(), make_tenant()
    fill(first, 60)
    fill(second, 50)
    probe = probing.probe

    def too_long_for_one(operator: Session, corpus: Corpus) -> probing.Recall:
        if corpus.tenant_id == first.tenant_id:
            operator.execute(text("set local statement_timeout = 20"))
            operator.execute(text("select pg_sleep(5)"))
        return probe(operator, corpus)

    monkeypatch.setattr(probing, "probe", too_long_for_one)
    lease = Lease("recall-probe", datetime.now(UTC), 1, "schedule", Progress())
    counts = [progress.counts for progress in recall_probe.run(lease, fake_services)][-1]
    assert counts["failed"] >= 1
    stored = text("select count(*) from rag.recall_probes where tenant_id = :t")
    with operator_session() as session:
        assert session.execute(stored, {"t": first.tenant_id}).scalar() == 0
        assert session.execute(stored, {"t": second.tenant_id}).scalar() == 1
