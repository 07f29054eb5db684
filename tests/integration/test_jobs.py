"""Jobs run once for each slot, in slices, fenced against the dead who come back; what they did is on record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from cli.jobs import jobs
from functions.maintenance import running
from functions.maintenance.jobs.purge import RULES
from functions.maintenance.running import run_job
from shared.conversations.runs import ask
from shared.database import operator_session, tenant_session
from shared.errors import PermanentError, Superseded, TransientError
from shared.events import RunJob, decode
from shared.fakes import FakeBus, FakeClock
from shared.jobs.leases import MAX_FAILURES, Lease, Progress, fenced, next_turn, record_progress, release, take
from shared.messaging import Outgoing
from shared.services import Services
from shared.tenants.directory import Principal

SLOT = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
Job = Callable[[Lease, Services], Iterator[Progress]]


@pytest.fixture(autouse=True)
def _no_runs(database: object) -> None:
    """Job runs belong to no tenant: every test begins without any."""
    with operator_session() as session:
        for table in ("core.job_runs", "core.outbox", "core.dead_letters"):
            session.execute(text(f"delete from {table}"))


@pytest.fixture
def working(fake_services: Services) -> Services:
    """Services with a clock that is moved by hand."""
    fake_services.clock = FakeClock()
    return fake_services


def register(monkeypatch: pytest.MonkeyPatch, job: Job, name: str = "count") -> RunJob:
    monkeypatch.setitem(running.JOBS, name, job)
    return RunJob(job=name, slot=SLOT)


def sql(statement: str, **values: object) -> list[Any]:
    """Run a statement as an operator."""
    with operator_session() as session:
        result = session.execute(text(statement), values)
        return list(result) if result.returns_rows else []  # type: ignore[attr-defined]


def row(job: str = "count", slot: datetime = SLOT) -> Any:
    with operator_session() as session:
        return session.execute(
            text("select * from core.job_runs where job = :job and slot = :slot"), {"job": job, "slot": slot}
        ).one()


def expire(job: str = "count", by: str = "1 second") -> None:
    """Let the lease of a job's runs end."""
    with operator_session() as session:
        session.execute(
            text("update core.job_runs set lease_until = now() - cast(:by as interval) where job = :job"),
            {"job": job, "by": by},
        )


def counting(upto: int) -> Job:
    """A job that counts to a number, one a slice, and goes on where it was."""

    def job(lease: Lease, services: Services) -> Iterator[Progress]:
        for done in range((lease.before.cursor or 0) + 1, upto + 1):
            yield Progress(done, upto, {"counted": done}, cursor=done)

    return job


def test_a_job_shows_its_progress_and_leaves_a_record(monkeypatch: pytest.MonkeyPatch, working: Services) -> None:
    """done/total grow slice by slice; the end is in the row and, because something was done, in the audit."""
    seen: list[tuple[int, int, str]] = []

    def watch(progress: Progress) -> None:
        seen.append((row().done, row().total, row().state))

    command = register(monkeypatch, counting(3))
    assert run_job(command, working, watch=watch) == {"counted": 3}
    assert seen == [(1, 3, "running"), (2, 3, "running"), (3, 3, "running")]
    assert (row().state, row().result, row().finished_at is not None) == ("done", {"counted": 3}, True)
    with operator_session() as session:
        details = session.execute(
            text("select details from core.audit where action = 'job-done' and subject = 'count' order by at desc")
        ).scalars().first()  # fmt: skip
    assert details is not None
    assert (details["result"], details["turns"], details["done"]) == ({"counted": 3}, 1, 3)


def test_a_slot_runs_once(monkeypatch: pytest.MonkeyPatch, working: Services) -> None:
    """The scheduler fires at least once, Pub/Sub delivers at least once: the second finds it done."""
    command = register(monkeypatch, counting(1))
    run_job(command, working)
    with pytest.raises(Superseded):
        run_job(command, working)


def test_slots_of_a_job_never_overlap(monkeypatch: pytest.MonkeyPatch, working: Services) -> None:
    """While one slot runs, the next is refused, also when it is started by hand; other jobs go on."""
    nested: list[str] = []

    def job(lease: Lease, services: Services) -> Iterator[Progress]:
        for name, slot in (("count", SLOT + timedelta(minutes=1)), ("other", SLOT)):
            try:
                run_job(RunJob(job=name, slot=slot), services, actor="operator:x")
                nested.append(name)
            except Superseded as reason:
                nested.append(str(reason))
        yield Progress(1, 1, {})

    register(monkeypatch, counting(1), "other")
    run_job(register(monkeypatch, job), working)
    assert nested == ["the job is running already", "other"]


def test_a_long_job_hands_over_before_its_deadline(
    monkeypatch: pytest.MonkeyPatch, working: Services, bus: FakeBus
) -> None:
    """After 480 s a fresh message goes out, the next turn goes on at the cursor, nothing is done twice."""
    worked: list[int] = []

    def job(lease: Lease, services: Services) -> Iterator[Progress]:
        for progress in counting(5)(lease, services):
            assert isinstance(services.clock, FakeClock)
            services.clock.advance(timedelta(seconds=200))
            worked.append(progress.done)
            yield progress

    command = register(monkeypatch, job)
    assert run_job(command, working) is None
    assert (worked, row().state, row().done) == ([1, 2, 3], "queued", 3)
    (message,) = bus.published
    again = decode(message.data.encode(), message.attributes)
    assert isinstance(again, RunJob)
    assert (message.topic, again.job, again.slot) == ("run-job", "count", SLOT)
    assert run_job(again, working) == {"counted": 5}
    assert (worked, row().state, row().epoch, row().failures) == ([1, 2, 3, 4, 5], "done", 2, 0)


def test_a_zombie_writes_nothing(monkeypatch: pytest.MonkeyPatch, working: Services) -> None:
    """A process that stopped for longer than its lease finds a newer epoch: its slice is rolled back, its end too."""
    with operator_session() as session:
        zombie = take(session, "count", SLOT)
    expire()
    with operator_session() as session:
        other = take(session, "count", SLOT)
    assert (zombie.epoch, other.epoch) == (1, 2)
    marker = str(uuid4())
    with pytest.raises(Superseded), fenced(zombie) as session:
        session.execute(text("insert into core.audit values (gen_random_uuid(), now(), :m, 'x', 'x')"), {"m": marker})
    with pytest.raises(Superseded), operator_session() as session:
        record_progress(session, zombie, Progress(9, 9))
    with operator_session() as session:
        release(session, zombie, "late")
    with operator_session() as session:
        assert session.execute(text("select count(*) from core.audit where actor = :m"), {"m": marker}).scalar() == 0
    assert (row().state, row().done, row().epoch) == ("running", 0, 2)
    with fenced(other) as session:
        record_progress(session, other, Progress(1, 2))
    assert row().done == 1


STOPPED = """
import sys
from datetime import datetime
from functions.maintenance import running
from shared.errors import Superseded
from shared.events import RunJob
from shared.jobs.leases import Progress, fenced
from shared.services import services
from sqlalchemy import text

def job(lease, services):
    print("working", flush=True)
    sys.stdin.readline()  # here the process is stopped
    with fenced(lease) as session:
        insert = text("insert into core.audit values (gen_random_uuid(), now(), :m, 'x', 'x')")
        session.execute(insert, {"m": sys.argv[1]})
    yield Progress(1, 1, {"counted": 1})

running.JOBS["count"] = job
try:
    running.run_job(RunJob(job="count", slot=datetime.fromisoformat(sys.argv[2])), services())
except Superseded:
    print("superseded", flush=True)
"""


def test_a_stopped_process_that_resumes_late_is_refused(monkeypatch: pytest.MonkeyPatch, working: Services) -> None:
    """A real process: SIGSTOP in its slice, another one finishes the slot, SIGCONT: nothing is written."""
    marker = str(uuid4())
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, marker, SLOT.isoformat()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ.copy(),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        process.send_signal(signal.SIGSTOP)
        expire()
        run_job(register(monkeypatch, counting(2)), working)
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate("go\n", timeout=60)
    finally:
        process.kill()
        process.wait()
    assert out == "superseded\n"
    with operator_session() as session:
        assert session.execute(text("select count(*) from core.audit where actor = :m"), {"m": marker}).scalar() == 0
    assert (row().state, row().result, row().failures) == ("done", {"counted": 2}, 1)


def test_a_turn_that_fails_gives_its_slot_back(monkeypatch: pytest.MonkeyPatch, working: Services) -> None:
    """The redelivery takes it at once and goes on at the cursor; the kind of error is in the row, its text is not."""
    fail = [ValueError("Gehalt von Eva"), TransientError("the bus is down")]

    def job(lease: Lease, services: Services) -> Iterator[Progress]:
        for progress in counting(3)(lease, services):
            yield progress
            if fail:
                raise fail.pop(0)

    command = register(monkeypatch, job)
    with pytest.raises(ValueError, match="Gehalt"):
        run_job(command, working)
    assert (row().state, row().done, row().failures, row().error) == ("queued", 1, 1, "ValueError")
    with pytest.raises(TransientError):
        run_job(command, working)
    assert run_job(command, working) == {"counted": 3}
    assert (row().epoch, row().failures, row().error) == (3, 2, None)


def test_an_unknown_job_is_refused_for_good(working: Services) -> None:
    """Its message becomes a dead letter at once."""
    with pytest.raises(PermanentError) as refusal:
        run_job(RunJob(job="nothing", slot=SLOT), working)
    assert refusal.value.reason == "unknown-job"


# ---- sweep and jobs --------------------------------------------------------------------------------------------------


def sweep(services: Services) -> Any:
    clock = services.clock
    assert isinstance(clock, FakeClock)
    clock.advance(timedelta(minutes=1))
    return run_job(RunJob(job="sweep", slot=clock.now()), services)


def commands(bus: FakeBus) -> list[Outgoing]:
    """Commands to run a job; the sweep also finds what other tests of this database left."""
    return [message for message in bus.published if message.topic == "run-job"]


def test_the_sweep_sends_the_command_of_a_slot_that_lost_its_message(
    monkeypatch: pytest.MonkeyPatch, working: Services, bus: FakeBus
) -> None:
    """A worker was killed, or a hand-over was not published: after five minutes the next turn is asked for."""
    with operator_session() as session:
        take(session, "count", SLOT)
    expire(by="1 minute")
    assert sweep(working)["jobs"] == 0
    expire(by="6 minutes")
    assert sweep(working)["jobs"] == 1
    (message,) = commands(bus)
    assert message.event_id == next_turn("count", SLOT, 1).event_id
    register(monkeypatch, counting(1))
    command = decode(message.data.encode(), message.attributes)
    assert isinstance(command, RunJob)
    assert run_job(command, working) == {"counted": 1}


@pytest.mark.parametrize(("failures", "actor"), [(MAX_FAILURES, "schedule"), (0, "operator:eva")])
def test_the_sweep_gives_up_what_failed_often_and_what_people_started(
    failures: int, actor: str, working: Services, bus: FakeBus
) -> None:
    """Such a slot ends as failed, on record, and its worker is fenced off."""
    with operator_session() as session:
        lease = take(session, "count", SLOT, actor)
        session.execute(text("update core.job_runs set failures = :f where job = 'count'"), {"f": failures})
    expire(by="6 minutes")
    sweep(working)
    assert row().state == "failed"
    assert commands(bus) == []
    with pytest.raises(Superseded), fenced(lease):
        pass
    assert sql("select count(*) from core.audit where action = 'job-failed' and actor = :a", a=actor)[0].count >= 1


def test_the_sweep_sets_questions_without_a_worker_going(tenant: Principal, working: Services, bus: FakeBus) -> None:
    """A queued run whose message is lost, and the outbox a dead process left behind."""
    bus.down = True
    with tenant_session(tenant.tenant_id) as session:
        run_id = ask(session, tenant, "Was kostet die Pumpe?")
    bus.down = False
    sql("update core.outbox set created_at = now() - interval '1 minute'")
    sql("update core.runs set created_at = now() - interval '3 minutes' where run_id = :r", r=run_id)
    counts = sweep(working)
    assert counts["flushed"] >= 1
    assert counts["runs"] >= 1
    ours = [json.loads(m.data)["run_id"] for m in bus.published if m.tenant_id == tenant.tenant_id]
    assert ours == [str(run_id)] * 2


# ---- purge -----------------------------------------------------------------------------------------------------------


def old_traces(tenant: Principal, days: int) -> UUID:
    """A run that ended some days ago, with an event, a checkpoint, a write and a part."""
    with tenant_session(tenant.tenant_id) as session:
        run_id = ask(session, tenant, "Was kostet die Pumpe?")
    values = {"t": tenant.tenant_id, "r": run_id, "thread": str(run_id)}
    sql(
        "update core.runs set state = 'answered', answer = 'x', finished_at = now() - make_interval(days => :days) "
        "where run_id = :r",
        r=run_id,
        days=days,
    )
    sql("insert into core.run_events (tenant_id, run_id, seq, kind, data) values (:t, :r, 1, 'answer', '{}')", **values)
    sql(
        "insert into core.checkpoints (tenant_id, thread_id, checkpoint_ns, checkpoint_id, kind, checkpoint, metadata) "
        "values (:t, :thread, '', '1', 'msgpack', '', '{}')",
        **values,
    )
    sql(
        "insert into core.checkpoint_writes (tenant_id, thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, "
        "position, channel, kind, value) values (:t, :thread, '', '1', '1', '', 0, 'x', 'msgpack', '')",
        **values,
    )
    sql(
        "insert into core.checkpoint_parts (tenant_id, thread_id, checkpoint_ns, channel, first, kind, value) "
        "values (:t, :thread, '', 'x', 0, 'msgpack', '')",
        **values,
    )
    sql(
        "insert into core.approvals (tenant_id, approval_id, run_id, call_key, tool, arguments, asked_for, approvers, "
        "four_eyes, state, note, expires_at) select tenant_id, gen_random_uuid(), run_id, 'x', 'x', "
        "'{\"iban\": \"DE1\"}', member_id, '{}', false, 'approved', 'yes', now() from core.runs "
        "where tenant_id = :t and cast(run_id as text) = :thread",
        **values,
    )
    return run_id


def told(run_id: UUID) -> list[tuple[Any, ...]]:
    """What approvals of the run still say."""
    found = "select state, arguments, note from core.approvals where cast(run_id as text) = :r"
    return [tuple(row) for row in sql(found, r=str(run_id))]


def left(run_id: UUID) -> list[int]:
    """Rows of the run itself, its events, checkpoints, their writes and parts."""
    tables = {"runs": "run_id", "run_events": "run_id"}
    tables |= dict.fromkeys(("checkpoints", "checkpoint_writes", "checkpoint_parts"), "thread_id")
    return [
        sql(f"select count(*) from core.{table} where cast({column} as text) = :r", r=str(run_id))[0][0]
        for table, column in tables.items()
    ]


def test_purge_deletes_what_is_old_and_keeps_what_counts(tenant: Principal, working: Services, bus: FakeBus) -> None:
    """Traces of runs that ended a month ago and letters dealt with go; answers, open letters and young things stay."""
    old, young = old_traces(tenant, 31), old_traces(tenant, 29)
    for name, dealt in (("open", None), ("replayed", 31), ("recent", 29)):
        sql(
            "insert into core.dead_letters (letter_id, origin, message_id, class, reason, message, attempts, "
            "attributes, data, archived_at, replayed_at) values (gen_random_uuid(), :n, :n, 'poison', 'x', 'x', 1, "
            "'{}', '', now() - interval '90 days', now() - make_interval(days => cast(:d as integer)))",
            n=name,
            d=dealt,
        )
    sql(
        "insert into core.job_runs (job, slot, state, lease_until, finished_at) "
        "values ('count', now() - interval '9 days', 'done', now(), now() - interval '8 days')"
    )
    counts = run_job(RunJob(job="purge", slot=working.clock.now()), working)
    gone = {"job_runs": 1, "dead_letters": 1, "run_events": 1, "checkpoint_writes": 1, "checkpoints": 1}
    gone |= {"checkpoint_parts": 1, "approvals": 1}
    assert counts == dict.fromkeys(RULES, 0) | gone
    assert left(old) == [1, 0, 0, 0, 0]
    assert left(young) == [1, 1, 1, 1, 1]
    assert told(old) == [("approved", {}, "")]
    assert told(young) == [("approved", {"iban": "DE1"}, "yes")]
    assert {letter.origin for letter in sql("select origin from core.dead_letters")} == {"open", "recent"}
    tomorrow = RunJob(job="purge", slot=working.clock.now() + timedelta(days=1))
    assert run_job(tomorrow, working) == dict.fromkeys(RULES, 0)


# ---- the command line ------------------------------------------------------------------------------------------------


def test_operators_run_a_job_by_hand_with_the_same_lease(
    monkeypatch: pytest.MonkeyPatch, working: Services, bus: FakeBus
) -> None:
    """It runs to its end, is on record under who started it, and refuses while the job runs elsewhere."""
    monkeypatch.setattr("cli.jobs.services", lambda: working)
    monkeypatch.setattr("cli.jobs.configure_logging", lambda style: None)
    ran = CliRunner().invoke(jobs, ["run", "purge"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout) == dict.fromkeys(RULES, 0)
    with operator_session() as session:
        actor = session.execute(text("select actor from core.job_runs where job = 'purge' and state = 'done'")).scalar()
        assert str(actor).startswith("operator:")
        take(session, "purge", SLOT)
    refused = CliRunner().invoke(jobs, ["run", "purge"])
    assert refused.exit_code == 1
    assert "running already" in refused.output
    listed = CliRunner().invoke(jobs, ["list", "--history", "5"])
    assert listed.exit_code == 0
    assert all(word in listed.output for word in ("purge", "sweep", "dead-letter-check", "never", "running"))
