"""How long statements and transactions may take: ordinary ones a little, work on all that a tenant has its own time."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import DBAPIError

from functions.maintenance.running import run_job
from shared import database as db
from shared.database import (
    application_engine,
    is_shared_failure,
    operator_engine,
    operator_session,
    patiently,
    sqlstate,
    tenant_session,
)
from shared.documents.acting import Actor
from shared.documents.hard_deletion import purge_documents
from shared.events import RunJob
from shared.fakes import FakeBus, FakeModels, FakeStorage
from shared.jobs.leases import fenced, take
from shared.retrieval import estimating, filling, statistics
from shared.retrieval.spaces import active_space
from shared.services import Services
from shared.settings import Settings, get_settings
from shared.tenants.directory import Principal
from shared.tenants.erasure import close_tenant, erase_tenant
from shared.tenants.export import export_tenant
from tests.integration.tenant_life import live
from tests.integration.web_browser import signed_in
from web import authentication, create_app

LIMIT, SLOW = 2.0, 2.5
"""Seconds: what an ordinary statement may take here, and how long the slow ones sleep."""


@pytest.fixture
def limited(database: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Engines whose statements may take LIMIT."""
    monkeypatch.setenv("DATABASE_STATEMENT_SECONDS", str(LIMIT))
    get_settings.cache_clear()
    db.forget_engines()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()
    db.forget_engines()


@contextmanager
def slow(engine: Engine, pattern: str) -> Iterator[list[str]]:
    """The first statement that matches takes SLOW longer, on its own connection and under its own limits."""
    slowed: list[str] = []

    def before(_: Any, cursor: Any, statement: str, *__: Any) -> None:
        if not slowed and re.search(pattern, statement):
            slowed.append(statement)
            cursor.execute(f"select pg_sleep({SLOW})")

    event.listen(engine, "before_cursor_execute", before)
    try:
        yield slowed
    finally:
        event.remove(engine, "before_cursor_execute", before)


def test_an_ordinary_statement_that_takes_too_long_is_ended_by_the_server(limited: None, tenant: Principal) -> None:
    """So that nothing goes on behind our back with its locks; the failure is nobody's document's, and the connection
    serves the next one."""
    with pytest.raises(DBAPIError) as ended, tenant_session(tenant.tenant_id) as session:
        session.execute(text(f"select pg_sleep({SLOW})"))
    assert sqlstate(ended.value) == "57014"
    assert is_shared_failure(ended.value)
    assert application_engine().pool.checkedin() == 1  # type: ignore[attr-defined]
    with tenant_session(tenant.tenant_id) as session:
        assert session.execute(text("select count(*) from core.members")).scalar() == 1


def test_patience_is_for_one_transaction(limited: None, tenant: Principal) -> None:
    """What needs longer gets it, from server and driver; afterwards the connection is as impatient as before, also
    when it ended badly."""
    with tenant_session(tenant.tenant_id) as session, patiently(session, 60):
        session.execute(text(f"select pg_sleep({SLOW})"))
        session.commit()
        assert session.execute(text("show statement_timeout")).scalar() == f"{LIMIT * db.SERVER_FIRST * 1000:.0f}ms"
    with pytest.raises(ZeroDivisionError), tenant_session(tenant.tenant_id) as session, patiently(session, 60):
        _ = 1 // 0
    with tenant_session(tenant.tenant_id) as session:
        driver = session.connection().connection.driver_connection
        assert driver is not None
        assert driver._usock.gettimeout() == LIMIT
    with pytest.raises(DBAPIError), tenant_session(tenant.tenant_id) as session:
        session.execute(text(f"select pg_sleep({SLOW})"))


def _export(tenant: Principal, services: Services, folder: Path) -> None:
    list(export_tenant(tenant.tenant_id, services.storage, folder / "export.zip", actor="operator:test"))


def _erase(tenant: Principal, services: Services, _: Path) -> None:
    with operator_session() as session:
        close_tenant(session, tenant.tenant_id, tenant.tenant_slug, "operator:test")
    steps = erase_tenant(
        tenant.tenant_id, services.storage, secret="a-key-for-these-tests-only-0123456789abcdef", stage="dev"
    )
    assert ("closed", 0) in list(steps)


def _purge(tenant: Principal, services: Services, _: Path) -> None:
    with tenant_session(tenant.tenant_id) as session:
        ids = session.execute(text("select document_id from rag.documents where external_id = 'doc-0'")).scalars().all()
    done = purge_documents(Actor(tenant.tenant_id, "operator:test", None, may_overrule=True), ids, services.storage)
    assert done.documents == 1


def _refresh(tenant: Principal, services: Services, _: Path) -> None:
    with operator_session() as session:
        session.execute(
            text(
                "insert into rag.corpus_statistics values (:t, 99, 1, now()) "
                "on conflict (tenant_id) do update set chunks = 99"
            ),
            {"t": tenant.tenant_id},
        )
        assert tenant.tenant_id in statistics.stale(session)
    assert run_job(RunJob(job="index-care", slot=datetime.now(UTC)), services) is not None


def _count(tenant: Principal, _: Services, __: Path) -> None:
    with tenant_session(tenant.tenant_id) as session:
        space = active_space(session, tenant.tenant_id)
    ids = (tenant.tenant_id, tenant.tenant_id, space.space_id, space.space_id)
    with operator_session() as session:
        assert filling.progress(session, filling.Filling(*ids, "filling", True, None, None, 1)).total > 0
    with operator_session() as session:
        assert estimating.load_of(session, tenant.tenant_id, space, space, history=True).there > 0


def _slice(_: Principal, services: Services, __: Path) -> None:
    with operator_session() as session:
        session.execute(text("delete from core.job_runs where job = 'purge'"))
        lease = take(session, "purge", datetime.now(UTC))
    with fenced(lease) as session:
        session.execute(text("select 'a rule'"))


@pytest.mark.parametrize(
    ("work", "pattern"),
    [
        (_export, r"^declare export .*rag\.chunks"),
        (_export, r"^fetch \d+ from export"),
        (_erase, r"^select count\(\*\) from rag\.embeddings"),
        (_erase, r"^delete from rag\.chunks .*ctid"),
        (_erase, r"count\(\*\) filter .*rag\.chunk"),
        (_purge, r"^delete from rag\.embeddings"),
        (_purge, r"^select count\(\*\) from core\.run_events"),
        (_refresh, r"^insert into rag\.term_statistics"),
        (_count, r"where x.refused"),
        (_count, r"x.state = 'superseded'"),
        (_slice, r"a rule"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_work_on_all_that_a_tenant_has_survives_a_long_statement(
    work: Callable[[Principal, Services, Path], None],
    pattern: str,
    tenant: Principal,
    fake_services: Services,
    bus: FakeBus,
    tmp_path: Path,
    limited: None,
) -> None:
    """At more than 100,000 chunks its sorts, counts, proofs and slices take longer than an ordinary statement may."""
    live(tenant, fake_services, bus, documents=1)
    with slow(operator_engine(), pattern) as slowed:
        work(tenant, fake_services, tmp_path)
    assert slowed, "the statement that should be slow is called otherwise now"


class Watched(FakeStorage):
    """A store that may be slow: whoever calls it must not hold a connection meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in ("put", "put_file", "get", "read", "find", "refresh", "delete", "erase", "tidy", "sign_upload"):
            for engine in (application_engine(), operator_engine()):
                held = engine.pool.checkedout()  # type: ignore[attr-defined]
                assert held == 0, f"storage.{name} while {held} connections are borrowed"
            self.calls.add(name)
        return found


def test_nobody_holds_a_connection_while_the_object_store_works(
    tenant: Principal, settings: Settings, bus: FakeBus, tmp_path: Path
) -> None:
    """A store that takes a minute ends no transaction as idle, and no connection waits for it: uploads, ingestion,
    export, purge, collection and erasure."""
    authentication.forget_memberships()
    storage = Watched()
    known = settings.model_copy(update={"secret_key": SecretStr("k" * 40), "local_sign_in": True})
    services = Services(known, _storage=storage, _models=FakeModels())
    client = signed_in(create_app(services=services), tenant)
    sent = client.post("/documents", data={"file": (io.BytesIO(b"# Pumpe\n\nText."), "pumpe.md", "text/markdown")})
    assert sent.status_code == 201, sent.text
    live(tenant, services, bus, documents=2)
    _export(tenant, services, tmp_path)
    _purge(tenant, services, tmp_path)
    assert run_job(RunJob(job="collect-blobs", slot=datetime.now(UTC)), services) is not None
    _erase(tenant, services, tmp_path)
    assert {"put", "read", "erase", "tidy"} <= storage.calls
