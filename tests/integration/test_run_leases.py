"""Whoever lost a run writes nothing any more, whatever it was about to write; whoever holds it is left alone."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.conversations.ending import fail, finish
from shared.conversations.resumption import resume_run
from shared.conversations.runs import Answer, Lease, RunEvent, ask, hold, release, take_lease
from shared.conversations.steps import Step, keep
from shared.conversations.waiting import cancel, hand_over, still_wanted, suspend
from shared.database import tenant_session
from shared.dead_letters.replay import EXHAUSTED
from shared.errors import PermanentError, Superseded
from shared.fakes import FakeBus
from shared.tenants.directory import Principal, memberships


@pytest.fixture
def run_id(tenant: Principal, bus: FakeBus) -> UUID:
    """A question that nobody works on."""
    with tenant_session(tenant.tenant_id) as session:
        return ask(session, tenant, "How many days of leave?")


def taken(tenant: Principal, run_id: UUID) -> Lease:
    """The run's lease, taken as any worker takes it."""
    with tenant_session(tenant.tenant_id) as session:
        return take_lease(session, tenant.tenant_id, run_id)


def expire(tenant: Principal) -> None:
    """The worker is not heard of for longer than its lease."""
    with tenant_session(tenant.tenant_id) as session:
        session.execute(text("update core.runs set lease_until = now() - interval '1 second'"))


def seen(tenant: Principal) -> tuple[object, ...]:
    """How the run stands: state, epoch, whether somebody holds it, what it waits for, how many events it has."""
    with tenant_session(tenant.tenant_id) as session:
        return tuple(
            session.execute(
                text(
                    "select state, epoch, lease_until > now(), waiting_for, "
                    "(select count(*) from core.run_events) from core.runs"
                )
            ).one()
        )


def keep_step(_: Session, lease: Lease) -> None:
    """A step of the graph, in a transaction of its own."""
    keep(lease, [], Step(str(lease.run_id), "", "1", None, "msgpack", b"x", "{}"))


WRITES: dict[str, Callable[[Session, Lease], None]] = {
    "hold": hold,
    "hold and tell": lambda session, lease: hold(session, lease, [RunEvent(1, "token", {"text": "30"})]),
    "wait for a person": lambda session, lease: suspend(session, lease, 1, "approval"),
    "hand over": hand_over,
    "look": still_wanted,
    "answer": lambda session, lease: finish(session, lease, Answer("30 days.", False, (), "m", 1, 1), 1),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_worker_that_lost_its_run_is_refused(tenant: Principal, run_id: UUID, write: str) -> None:
    """Another one works on it by now, in the same state: only the epoch tells them apart."""
    lost = taken(tenant, run_id)
    expire(tenant)
    held = taken(tenant, run_id)
    before = seen(tenant)
    assert before == ("running", held.epoch, True, None, 0)
    with pytest.raises(Superseded), tenant_session(tenant.tenant_id) as session:
        WRITES[write](session, lost)
    assert seen(tenant) == before
    with tenant_session(tenant.tenant_id) as session:
        WRITES[write](session, held)


def test_a_worker_that_lost_its_run_cannot_give_it_back(tenant: Principal, run_id: UUID) -> None:
    """Its failure is its own: the one that works on the run keeps it."""
    lost = taken(tenant, run_id)
    expire(tenant)
    held = taken(tenant, run_id)
    with tenant_session(tenant.tenant_id) as session:
        release(session, lost)
    assert seen(tenant) == ("running", held.epoch, True, None, 0)
    with tenant_session(tenant.tenant_id) as session:
        release(session, held)
    assert seen(tenant) == ("queued", held.epoch, None, None, 0)


ENDS: dict[str, Callable[[Session, Lease], None]] = {
    "gives it back": release,
    "waits for a person": WRITES["wait for a person"],
    "hands it over": hand_over,
    "answers": WRITES["answer"],
}


@pytest.mark.parametrize("end", ENDS)
def test_a_worker_that_has_ended_its_turn_writes_nothing_more(tenant: Principal, run_id: UUID, end: str) -> None:
    """The epoch is still its own: a thread of it that comes late is told apart by the state alone."""
    lease = taken(tenant, run_id)
    with tenant_session(tenant.tenant_id) as session:
        ENDS[end](session, lease)
    before = seen(tenant)
    assert before[1:3] == (lease.epoch, None)
    for write in (*WRITES.values(), keep_step):
        with pytest.raises(Superseded), tenant_session(tenant.tenant_id) as session:
            write(session, lease)
    assert seen(tenant) == before
    with tenant_session(tenant.tenant_id) as session:
        assert session.execute(text("select count(*) from core.checkpoints")).scalar() == 0


def cancel_as_its_member(session: Session, lease: Lease) -> None:
    """Whoever asked does not want to know any more."""
    slug, email = session.execute(
        text("select t.slug, m.email from core.members m join core.tenants t on t.tenant_id = m.tenant_id")
    ).one()
    (member,) = (one for one in memberships(email) if one.tenant_slug == slug)
    cancel(session, member, lease.run_id)


def fail_for_good(session: Session, lease: Lease) -> None:
    """Every delivery of its command has failed."""
    fail(session, lease.tenant_id, lease.run_id, PermanentError(EXHAUSTED, "It failed.", "Ask again."))


def fail_and_resume(session: Session, lease: Lease) -> None:
    """The same, and its dead letter is replayed."""
    fail_for_good(session, lease)
    assert resume_run(session, lease.tenant_id, lease.run_id, EXHAUSTED)


EVERYTHING = {
    **WRITES,
    **ENDS,
    "step": keep_step,
    "cancel": cancel_as_its_member,
    "fail": fail_for_good,
    "fail and resume": fail_and_resume,
}


@pytest.mark.parametrize("write", EVERYTHING)
def test_what_is_written_about_one_run_changes_no_other(tenant: Principal, bus: FakeBus, write: str) -> None:
    """A member has several questions under way, in one conversation or more: each goes its own way."""
    with tenant_session(tenant.tenant_id) as session:
        others = [ask(session, tenant, "And next year?") for _ in range(4)]
        run_id = ask(session, tenant, "How many days of leave?")
    taken(tenant, others[0])
    for other, end in ((others[1], WRITES["wait for a person"]), (others[2], fail_for_good)):
        held = taken(tenant, other)
        with tenant_session(tenant.tenant_id) as session:
            end(session, held)

    def rows() -> list[tuple[object, ...]]:
        with tenant_session(tenant.tenant_id) as session:
            found = session.execute(
                text(
                    "select r.*, (select jsonb_agg(to_jsonb(e) order by e.seq) from core.run_events e "
                    "where e.run_id = r.run_id) from core.runs r where r.run_id <> :run order by r.run_id"
                ),
                {"run": run_id},
            )
            return [tuple(row) for row in found]

    before = rows()
    assert len(before) == 4
    lease = taken(tenant, run_id)
    with tenant_session(tenant.tenant_id) as session:
        EVERYTHING[write](session, lease)
    assert rows() == before


def test_a_run_that_somebody_holds_is_not_taken(tenant: Principal, run_id: UUID) -> None:
    """A second delivery finds the lease alive; only one that ran out counts as a crash, one given back does not."""
    first = taken(tenant, run_id)
    with pytest.raises(Superseded):
        taken(tenant, run_id)
    with tenant_session(tenant.tenant_id) as session:
        release(session, first)
    assert taken(tenant, run_id).crashes == 0
    expire(tenant)
    assert taken(tenant, run_id).crashes == 1
