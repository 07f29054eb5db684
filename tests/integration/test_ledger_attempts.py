"""A call that is tried more than once: each attempt books for itself, and a free one keeps nobody waiting."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import pytest
from sqlalchemy import text

from shared.database import operator_session, tenant_session
from shared.errors import Postponed
from shared.money.ledger import (
    LEASE,
    Call,
    Reservation,
    lock_call,
    release,
    release_expired,
    reserve,
    reserve_alone,
    settle,
)
from shared.money.prices import prices_of, set_price
from shared.tenants.directory import Principal

NOW = datetime(2034, 3, 4, 12, 30, tzinfo=UTC)
TEXT = "four"
MOST = Decimal(4 + 8)
"""EUR that a call with this text costs at most, at a euro a token."""


@pytest.fixture
def call(tenant: Principal) -> Call:
    """A call of a model that costs a euro a token."""
    model = f"paid-{uuid4().hex}"
    with operator_session() as operator:
        set_price(operator, model, Decimal(1_000_000), NOW - timedelta(days=1))
    return Call(tenant.tenant_id, uuid4(), model)


def attempt(call: Call, now: datetime) -> Reservation:
    """Reserve the call as a delivery does."""
    with tenant_session(call.tenant_id) as session:
        return reserve(session, call, lock_call(session, call, now), [TEXT], "dev", now)


def row(call: Call) -> tuple[object, ...]:
    """State, reserved, tokens and cost of the call, and what the tenant's day has reserved and spent."""
    with tenant_session(call.tenant_id) as session:
        return tuple(
            session.execute(
                text(
                    "select l.state, l.reserved_eur, l.tokens, l.cost_eur, s.reserved_eur, s.spent_eur "
                    "from core.ledger l left join core.spending s on s.tenant_id = l.tenant_id and s.period = 'day' "
                    "where l.tenant_id = :tenant and l.call_key = :key"
                ),
                {"tenant": call.tenant_id, "key": call.key},
            ).one()
        )


@pytest.mark.parametrize("close", ["settle", "release"])
def test_an_attempt_that_comes_back_late_does_not_close_the_next_one(call: Call, close: str) -> None:
    """What it cost is booked; what the attempt under way has reserved stays reserved until that one ends."""
    late = attempt(call, NOW)
    second = attempt(call, NOW + LEASE + timedelta(seconds=1))
    assert (late.attempt, second.attempt) == (1, 2)
    with tenant_session(call.tenant_id) as session:
        (settle if close == "settle" else release)(session, late, 4)
    assert row(call) == ("reserved", MOST, 4, Decimal(4), MOST, Decimal(4))
    with tenant_session(call.tenant_id) as session:
        settle(session, second, 5)
    assert row(call) == ("settled", Decimal(0), 9, Decimal(9), Decimal(0), Decimal(9))


def test_a_second_delivery_waits_for_a_paid_call_and_not_for_a_free_one(call: Call) -> None:
    """Paying twice is what it waits for; a worker that died with a free call costs nobody six minutes."""
    attempt(call, NOW)
    with pytest.raises(Postponed) as caught:
        attempt(call, NOW)
    assert caught.value.until == NOW + LEASE
    free = Call(call.tenant_id, uuid4(), f"free-{uuid4().hex}")
    assert [attempt(free, NOW).attempt, attempt(free, NOW).attempt] == [1, 2]


@pytest.mark.parametrize("alone", [False, True], ids=["a batch", "a run's call"])
def test_what_has_expired_is_given_back_and_what_is_under_way_is_not(call: Call, alone: bool) -> None:
    """At the very end of the lease it still holds."""
    if alone:
        with tenant_session(call.tenant_id) as session:
            reserve_alone(session, call, prices_of(session, call.model, NOW), [TEXT], "dev", NOW)
    else:
        attempt(call, NOW)
    with operator_session() as operator:
        release_expired(operator, "dev", NOW + LEASE)
    assert row(call)[:2] == ("reserved", MOST)
    with operator_session() as operator:
        release_expired(operator, "dev", NOW + LEASE + timedelta(seconds=1))
    assert row(call) == ("released", Decimal(0), 0, Decimal(0), Decimal(0), Decimal(0))


@pytest.mark.parametrize("late", [False, True], ids=["in time", "too late"])
@pytest.mark.parametrize("close", ["settle", "release"])
def test_what_one_call_cost_is_booked_on_no_other(call: Call, close: str, late: bool) -> None:
    """Two batches of a tenant are under way at once, both at their first attempt."""
    other = replace(call, key=uuid4())
    reservation = attempt(call, NOW)
    attempt(other, NOW)
    if late:
        attempt(call, NOW + LEASE + timedelta(seconds=1))
    before = row(other)[:4]
    assert before == ("reserved", MOST, 0, Decimal(0))
    with tenant_session(call.tenant_id) as session:
        (settle if close == "settle" else release)(session, reservation, 4)
    assert row(other)[:4] == before
