"""A word that was given stays given: a worker that begins its step again asks for nothing anew."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from shared.conversations.runs import Lease
from shared.conversations.waiting import suspend
from shared.database import operator_session, tenant_session
from shared.errors import PermanentError
from shared.fakes import FakeBus
from shared.tenants.directory import Principal
from shared.tools.approvals import Kind, decide, decision_of, expire, pending_approvals, request_approval
from tests.integration.tool_material import allow, call, member, running

CLOSED = {"case_number": "4711", "status": "closed", "note": ""}
WAITING = CLOSED | {"status": "waiting"}


@pytest.fixture
def asker(tenant: Principal, bus: FakeBus) -> Principal:
    """A plain member of a tenant with a tool that needs a person's word."""
    allow(tenant, "update_case")
    return member(tenant)


def asked(who: Principal, lease: Lease, arguments: dict[str, Any]) -> UUID:
    """The step asks for a word about its call, always under the same key."""
    with tenant_session(who.tenant_id) as session:
        return request_approval(session, lease, call("update_case", **arguments), "k")


def kept(approval_id: UUID) -> tuple[object, ...]:
    """The approval as it is stored: state, arguments, when it was asked for and decided."""
    with operator_session() as session:
        return tuple(
            session.execute(
                text(
                    "select state, arguments, created_at, expires_at, decided_at from core.approvals "
                    "where approval_id = :approval"
                ),
                {"approval": approval_id},
            ).one()
        )


@pytest.mark.parametrize("kind", ["approved", "refused", "edited"])
def test_a_decision_outlives_a_step_that_begins_again(tenant: Principal, asker: Principal, kind: Kind) -> None:
    """Even with other arguments: what was refused does not come back to the list under a friendlier face."""
    lease = running(asker)
    approval_id = asked(asker, lease, CLOSED)
    with tenant_session(tenant.tenant_id) as session:
        suspend(session, lease, lease.next_seq, "approval")
        decide(session, tenant, approval_id, kind, CLOSED if kind == "edited" else None)
    before = kept(approval_id)
    assert asked(asker, lease, WAITING) == approval_id
    assert kept(approval_id) == before
    with tenant_session(tenant.tenant_id) as session:
        assert pending_approvals(session, tenant) == []
        decision = decision_of(session, tenant.tenant_id, lease.run_id, "k")
    assert decision is not None
    assert decision.kind == kind


def test_what_expired_is_not_asked_again(tenant: Principal, asker: Principal) -> None:
    """Nobody agreed in time, and the model has been told so."""
    lease = running(asker)
    approval_id = asked(asker, lease, CLOSED)
    with tenant_session(tenant.tenant_id) as session:
        assert not expire(session, tenant.tenant_id, approval_id)  # its time is not over
    with operator_session() as session:
        session.execute(
            text("update core.approvals set expires_at = now() - interval '1 second' where approval_id = :approval"),
            {"approval": approval_id},
        )
    with tenant_session(tenant.tenant_id) as session:
        assert expire(session, tenant.tenant_id, approval_id)
    asked(asker, lease, CLOSED)
    assert kept(approval_id)[0] == "expired"


def test_asking_again_gives_nobody_more_time(tenant: Principal, asker: Principal) -> None:
    """While it is pending it stays as it was: a run that is taken up again and again would wait for ever."""
    lease = running(asker)
    approval_id = asked(asker, lease, CLOSED)
    before = kept(approval_id)
    assert isinstance(before[3], datetime)
    asked(asker, lease, WAITING)
    assert kept(approval_id) == before


@pytest.mark.parametrize("first", ["approved", "refused", "edited"])
@pytest.mark.parametrize("second", ["approved", "refused", "edited"])
def test_a_second_person_cannot_overrule_the_first(
    tenant: Principal, asker: Principal, first: Kind, second: Kind
) -> None:
    """Whichever way it went: the run may have acted on it by now."""
    lease = running(asker)
    approval_id = asked(asker, lease, CLOSED)
    with tenant_session(tenant.tenant_id) as session:
        suspend(session, lease, lease.next_seq, "approval")
        decide(session, tenant, approval_id, first, CLOSED if first == "edited" else None)
    before = kept(approval_id)
    other = member(tenant, role="admin")
    with pytest.raises(PermanentError) as refused, tenant_session(tenant.tenant_id) as session:
        decide(session, other, approval_id, second, WAITING if second == "edited" else None)
    assert refused.value.reason == "already-decided"
    assert kept(approval_id) == before


@pytest.mark.parametrize("expires", [False, True])
def test_a_word_about_one_question_sets_no_other_going(tenant: Principal, asker: Principal, expires: bool) -> None:
    """Two questions of a member wait, each for its own word."""
    leases = [running(asker) for _ in range(2)]
    approvals = [asked(asker, lease, CLOSED) for lease in leases]
    with tenant_session(tenant.tenant_id) as session:
        for lease in leases:
            suspend(session, lease, lease.next_seq, "approval")
    before = kept(approvals[1])
    with tenant_session(tenant.tenant_id) as session:
        if expires:
            session.execute(
                text("update core.approvals set expires_at = now() where approval_id = :a"), {"a": approvals[0]}
            )
            assert expire(session, tenant.tenant_id, approvals[0])
        else:
            decide(session, tenant, approvals[0], "approved")
        states = session.execute(
            text("select run_id, state from core.runs where run_id in (:one, :two)"),
            {"one": leases[0].run_id, "two": leases[1].run_id},
        )
        assert {row.run_id: row.state for row in states} == {leases[0].run_id: "queued", leases[1].run_id: "waiting"}
    assert kept(approvals[1]) == before
