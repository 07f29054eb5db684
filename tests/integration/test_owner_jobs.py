"""Jobs of the tables' owner: they do what they say beside everybody else, and go on where they were stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.pool import NullPool

from functions.maintenance.jobs import index_test, reindex, vacuum
from functions.maintenance.running import run_job
from schema import migrate
from shared import audit
from shared.database import operator_session
from shared.errors import PermanentError
from shared.events import RunJob
from shared.jobs.leases import Lease, Progress
from shared.services import Services
from tests.conftest import Database


@pytest.fixture
def owner(database: Database) -> Iterator[Connection]:
    """The owner's connection without transactions."""
    engine = create_engine(database.owner_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def run(services: Services, job: str) -> Any:
    with operator_session() as session:
        session.execute(text("delete from core.job_runs where job = :job"), {"job": job})
    return run_job(RunJob(job=job, slot=datetime.now(UTC)), services, actor="operator:test")


def lease(job: str, before: Progress) -> Lease:
    return Lease(job, datetime.now(UTC), 1, "operator:test", before)


def indexes(owner: Connection) -> dict[str, int]:
    rows = owner.exec_driver_sql(
        "select r.relname, r.relfilenode from pg_class r join pg_namespace n on n.oid = r.relnamespace "
        "where n.nspname in ('core', 'rag') and r.relkind = 'i'"
    )
    return {row.relname: row.relfilenode for row in rows}


def test_vacuum_reaches_every_table(fake_services: Services, owner: Connection) -> None:
    """Afterwards every table of ours has been analysed, and the row of the job says how many there were."""
    counts = run(fake_services, "vacuum")
    missed = owner.exec_driver_sql(
        "select relname from pg_stat_user_tables where schemaname in ('core', 'rag') and last_vacuum is null"
    ).all()
    assert missed == []
    assert counts["tables"] > 20
    assert counts["invalid_indexes"] == 0


def test_vacuum_goes_on_after_the_table_it_ended_at(fake_services: Services) -> None:
    """The cursor is the last table done: a further turn begins behind it."""
    whole = [step.cursor for step in vacuum.run(lease("vacuum", Progress()), fake_services)]
    rest = [step.cursor for step in vacuum.run(lease("vacuum", Progress(cursor=whole[-3])), fake_services)]
    assert rest == whole[-2:]


def test_reindex_rebuilds_every_index_and_removes_what_a_killed_one_left(
    fake_services: Services, owner: Connection
) -> None:
    """Each index lies in a new file; an invalid `_ccnew` is gone."""
    # Only a build that fails leaves an invalid index without a superuser's help.
    for _ in range(2):
        with operator_session() as session:
            audit.record(session, actor="t", action="t", subject="t")
    with pytest.raises(IntegrityError, match="could not create unique index"):
        owner.exec_driver_sql(
            "create unique index concurrently audit_left_idx_ccnew on core.audit (actor) where actor = 't'"
        )
    before = indexes(owner)
    assert before.pop("audit_left_idx_ccnew")
    counts = run(fake_services, "reindex")
    after = indexes(owner)
    assert after.keys() == before.keys()
    assert [name for name in before if before[name] == after[name]] == []
    assert counts == {"rebuilt": len(before), "removed": 1}


def test_reindex_goes_on_after_the_index_it_ended_at(fake_services: Services, owner: Connection) -> None:
    """The cursor is the last index done: only those behind it are rebuilt."""
    names = sorted(indexes(owner))
    before = indexes(owner)
    steps = list(reindex.run(lease("reindex", Progress(cursor="rag.vocabulary")), fake_services))
    after = indexes(owner)
    assert {name for name in names if before[name] != after[name]} == {n for n in names if n.startswith("vocabulary")}
    assert steps[-1].counts["rebuilt"] == len([n for n in names if n.startswith("vocabulary")])


def test_the_index_test_measures_and_leaves_nothing(fake_services: Services, owner: Connection) -> None:
    """Both kinds of index find what exact search finds, their plans use them, and the scratch schema is gone."""
    counts = run(fake_services, "index-test")
    assert counts["hnsw_recall_percent"] >= index_test.FLOOR * 100
    assert counts["ivfflat_recall_percent"] >= index_test.FLOOR * 100
    assert (counts["hnsw_plan_uses_index"], counts["ivfflat_plan_uses_index"]) == (1, 1)
    assert owner.exec_driver_sql("select 1 from pg_namespace where nspname = 'index_test'").all() == []


def test_an_index_that_finds_too_little_is_an_error(
    fake_services: Services, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A floor that is not reached ends the job with its reason; the scratch schema is gone all the same."""
    monkeypatch.setattr(index_test, "FLOOR", 1.01)
    with pytest.raises(PermanentError) as refused:
        run(fake_services, "index-test")
    assert refused.value.reason == "index-test-failed"
    assert owner.exec_driver_sql("select 1 from pg_namespace where nspname = 'index_test'").all() == []


def test_the_schema_check_finds_what_is_pending(fake_services: Services, owner: Connection) -> None:
    """Nothing is pending after `migrate`; a migration that would not apply ends the job with its error."""
    assert run(fake_services, "schema-check") == {"pending": 0}
    script = ScriptDirectory.from_config(migrate.config())
    (newest,) = (head for head in script.get_heads() if head.startswith("r"))
    move = "update alembic_version set version_num = '{}' where version_num = '{}'"
    # A database that says it is at the first release, and is not: the second release's tables are there already.
    owner.exec_driver_sql(move.format("r0002", newest))
    try:
        with pytest.raises(ProgrammingError, match="already exists"):
            run(fake_services, "schema-check")
    finally:
        owner.exec_driver_sql(move.format(newest, "r0002"))


def test_a_process_without_the_owners_url_says_what_to_do(fake_services: Services) -> None:
    """In the cloud the function of maintenance has none: the job ends with a reason and the command to run."""
    poor = dataclasses.replace(
        fake_services, settings=fake_services.settings.model_copy(update={"migration_database_url": None})
    )
    for job in ("vacuum", "reindex", "schema-check", "index-test"):
        with pytest.raises(PermanentError) as refused:
            run(poor, job)
        assert refused.value.reason == "job-needs-owner", job
        assert "noesis jobs run" in refused.value.next_action


def test_the_jobs_are_audited_by_who_started_them(fake_services: Services) -> None:
    """A run by hand leaves a record with its actor."""
    marker = f"operator:{uuid4().hex[:8]}"
    with operator_session() as session:
        session.execute(text("delete from core.job_runs where job = 'schema-check'"))
    run_job(RunJob(job="schema-check", slot=datetime.now(UTC)), fake_services, actor=marker)
    with operator_session() as session:
        found = session.execute(text("select action from core.audit where actor = :actor"), {"actor": marker}).scalars()
        assert list(found) == ["job-done"]
