"""A lease of a job at its edges: two slots at one moment, a death without a word, a slot that has ended."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from shared.database import operator_session
from shared.errors import Superseded
from shared.jobs.leases import Lease, abandoned, fail, fenced, finish, hand_over, release, take
from tests.conftest import Database
from tests.integration.lifecycle_material import until_somebody_waits

SLOT = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_runs(database: object) -> None:
    """Job runs belong to no tenant: every test begins without any."""
    with operator_session() as session:
        session.execute(text("delete from core.job_runs"))


def taken(slot: datetime = SLOT) -> Lease:
    """A turn at a slot, as any process takes it."""
    with operator_session() as session:
        return take(session, "count", slot)


def column(name: str) -> object:
    """A column of the row of the slot."""
    with operator_session() as session:
        return session.execute(text(f"select {name} from core.job_runs where slot = :slot"), {"slot": SLOT}).scalar()


def release_it(session: Session, lease: Lease) -> None:
    """The turn ended badly."""
    release(session, lease, "boom")


def fail_it(session: Session, lease: Lease) -> None:
    """The slot is given up."""
    assert fail(session, lease.job, lease.slot, "attempts-exhausted")


def test_of_two_slots_that_are_taken_at_the_same_moment_one_is_refused(database: Database) -> None:
    """The second waits until the first is there for all to see, and finds the job running."""
    # A connection of its own: the pool of operators has two, for who waits and for who looks.
    engine = create_engine(database.operator_url, poolclass=NullPool)
    with ThreadPoolExecutor(1) as other:
        with Session(engine) as session, session.begin():
            take(session, "count", SLOT)
            second = other.submit(taken, SLOT + timedelta(hours=1))
            until_somebody_waits(operator_session)
        with pytest.raises(Superseded, match="running already"):
            second.result(timeout=20)


def test_a_turn_that_dies_without_a_word_counts_as_a_failure(database: object) -> None:
    """Nobody released it: whoever takes the slot next sees a lease that ran out, and one day the slot is given up."""
    for deaths in range(3):
        taken()
        assert column("failures") == deaths
        with operator_session() as session:
            session.execute(text("update core.job_runs set lease_until = now() - interval '1 second'"))


def test_a_turn_that_hands_over_is_no_failure_and_is_missed_at_once(database: object) -> None:
    """The next turn is due now, not when the lease of this one would have ended: its message may be lost."""
    lease = taken()
    with fenced(lease) as session:
        hand_over(session, lease)
    with operator_session() as session:
        assert abandoned(session, timedelta(0)) == [("count", SLOT, lease.epoch, 0, lease.actor)]
    taken()
    assert column("failures") == 0


def test_a_slot_that_has_ended_cannot_fail_any_more(database: object) -> None:
    """The last delivery of its message becomes a dead letter after another one has done the work."""
    lease = taken()
    with fenced(lease) as session:
        finish(session, lease)
    with operator_session() as session:
        assert fail(session, "count", SLOT, "attempts-exhausted") is False
    assert (column("state"), column("error")) == ("done", None)


@pytest.mark.parametrize("end", [finish, hand_over, release_it, fail_it])
def test_what_becomes_of_one_slot_is_not_said_of_another(
    database: object, end: Callable[[Session, Lease], object]
) -> None:
    """The same job at another time, another job at the same time: both stay as they are."""
    for job, slot in (("count", SLOT + timedelta(hours=1)), ("measure", SLOT)):
        with operator_session() as session:
            take(session, job, slot)
            session.execute(text("update core.job_runs set lease_until = now() where job = :job"), {"job": job})
    lease = taken()

    def others() -> list[tuple[object, ...]]:
        with operator_session() as session:
            found = session.execute(
                text("select * from core.job_runs where (job, slot) <> (:job, :slot) order by job"),
                {"job": lease.job, "slot": lease.slot},
            )
            return [tuple(row) for row in found]

    before = others()
    assert len(before) == 2
    with fenced(lease) as session:
        end(session, lease)
    assert others() == before
