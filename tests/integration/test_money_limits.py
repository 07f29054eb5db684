"""Where a limit begins to hold: to the cent, to the second, in whatever time zone the moment is written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from sqlalchemy import text

from shared.database import operator_session, tenant_session
from shared.events import BudgetNearlySpent
from shared.fakes import FakeBus
from shared.money.budgets import OverBudget, Period, end_of, set_budget, start_of, take, take_for_platform
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import events

NOW = datetime(2033, 12, 1, 12, 30, tzinfo=UTC)
"""A moment of our own: the counters of a stage are everybody's."""

NANO = Decimal("1e-9")
"""The smallest amount that the books know."""


def spend(tenant: Principal, amount: Decimal, now: datetime = NOW) -> None:
    """Reserve an amount of a tenant where no stage has a cap."""
    with tenant_session(tenant.tenant_id) as session:
        take(session, tenant.tenant_id, "dev", amount, now)


@pytest.mark.parametrize(("stage", "cap"), [("staging", Decimal(5)), ("prod", Decimal(30))])
def test_all_tenants_together_stay_below_the_cap_of_a_stage(database: object, stage: str, cap: Decimal) -> None:
    """Below, not at: REQUIREMENTS say < 5 EUR a day and < 30 EUR an hour."""
    with operator_session() as operator:
        operator.execute(text("delete from core.stage_spending where starts_at >= :day"), {"day": start_of("day", NOW)})
    with pytest.raises(OverBudget), operator_session() as operator:
        take_for_platform(operator, stage, cap, NOW)
    with operator_session() as operator:
        take_for_platform(operator, stage, cap - NANO, NOW)


def test_a_tenant_is_warned_at_four_fifths_of_its_limit_and_not_before(tenant: Principal, bus: FakeBus) -> None:
    """A nano euro below is silence; at 80 % the event says which limit it is."""
    with operator_session() as operator:
        set_budget(operator, tenant.tenant_id, "day", Decimal(10))
    spend(tenant, Decimal(8) - NANO)
    assert events(bus, BudgetNearlySpent) == []
    spend(tenant, NANO)
    (told,) = events(bus, BudgetNearlySpent)
    assert isinstance(told, BudgetNearlySpent)
    assert told.period == "day"


@pytest.mark.parametrize(
    ("now", "until"),
    [
        (NOW, NOW + timedelta(days=1)),
        (datetime(2033, 12, 31, 22, 0, tzinfo=UTC), datetime(2034, 1, 1, tzinfo=UTC)),
    ],
    ids=["a month to go", "two hours to go"],
)
def test_a_spent_month_is_looked_at_again_every_day(tenant: Principal, now: datetime, until: datetime) -> None:
    """A task is kept for 30 days and a month may have 31; on its last day nobody waits longer than the month."""
    with operator_session() as operator:
        set_budget(operator, tenant.tenant_id, "month", Decimal(1))
    with pytest.raises(OverBudget) as caught:
        spend(tenant, Decimal(2), now)
    assert caught.value.until == until


@pytest.mark.parametrize("period", ["hour", "day", "month"])
def test_a_period_is_the_same_in_every_time_zone(period: Period) -> None:
    """Half past midnight of the first in Berlin is still the month before."""
    here = datetime(2034, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=1)))
    there = here.astimezone(UTC)
    assert start_of(period, here) == start_of(period, there)
    assert end_of(period, here) == end_of(period, there)
    assert start_of("month", here) == datetime(2033, 12, 1, tzinfo=UTC)
