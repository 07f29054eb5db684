"""Budgets of tenants and caps of stages: counters that a reservation must fit into before anything is spent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.errors import Postponed
from shared.events import BudgetNearlySpent
from shared.messaging import publish

Period = Literal["hour", "day", "month"]
Limited = Literal["run", "day", "month"]
"""What a tenant's limit holds for: one question's answer, a day, a month (UTC)."""

SOFT = Decimal("0.8")
"""From this share of a limit on the tenant is told, once a period and limit (REQUIREMENTS section 11: 80 %)."""

STAGE_CAPS: dict[str, tuple[Period, Decimal]] = {
    "staging": ("day", Decimal(5)),
    "prod": ("hour", Decimal(30)),
}
"""EUR that embeddings of all tenants together stay below (REQUIREMENTS section 11)."""

LONGEST_WAIT = timedelta(days=1)
"""A month's budget is looked at again every day: Cloud Tasks keeps a task for 30 days, a month may have 31."""


class OverBudget(Postponed):
    """The call does not fit into what the tenant or the stage may still spend; asked again at `until`."""


@dataclass(frozen=True, slots=True)
class Counter:
    """A row of the counters: a tenant's (`tenant_id`) or the stage's (None), of one period."""

    tenant_id: UUID | None
    period: Period
    starts_at: datetime


@dataclass(frozen=True, slots=True)
class Budget:
    """A tenant's limit in EUR for a period, and what of the present one is gone; `limit` None: no limit."""

    period: Period
    limit: Decimal | None
    spent: Decimal
    reserved: Decimal


def start_of(period: Period, at: datetime) -> datetime:
    """When the period around a moment began (UTC)."""
    hour = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    if period == "hour":
        return hour
    return hour.replace(hour=0) if period == "day" else hour.replace(hour=0, day=1)


def end_of(period: Period, at: datetime) -> datetime:
    """When the period around a moment ends (UTC)."""
    start = start_of(period, at)
    if period == "month":
        return start_of("month", start + timedelta(days=32))
    return start + (timedelta(hours=1) if period == "hour" else timedelta(days=1))


def counters(tenant_id: UUID, stage: str, at: datetime) -> list[Counter]:
    """What a spending at a moment counts for, in the order in which everybody locks them."""
    of_tenant = [Counter(tenant_id, "day", start_of("day", at)), Counter(tenant_id, "month", start_of("month", at))]
    return of_tenant + counters_of_stage(stage, at)


def counters_of_stage(stage: str, at: datetime) -> list[Counter]:
    """What a spending of the platform itself counts for; nothing where the stage has no cap."""
    if stage not in STAGE_CAPS:
        return []
    period = STAGE_CAPS[stage][0]
    return [Counter(None, period, start_of(period, at))]


def take(session: Session, tenant_id: UUID, stage: str, amount: Decimal, now: datetime) -> None:
    """Reserve an amount in every counter, each by one guarded update. Raises OverBudget: roll the session back then.

    The update locks the row, so two reservations can never both take the rest.
    """
    limits = _limits(session, tenant_id)
    for counter in counters(tenant_id, stage, now):
        mine = counter.tenant_id is not None
        limit = limits.get(counter.period) if mine else STAGE_CAPS[stage][1]
        _take(session, counter, amount, limit, now)
        if mine and limit is not None:
            _warn(session, counter, limit)


def take_for_platform(session: Session, stage: str, amount: Decimal, now: datetime) -> None:
    """Reserve what no tenant pays under the cap of the stage. Raises OverBudget: roll the session back then."""
    for counter in counters_of_stage(stage, now):
        _take(session, counter, amount, STAGE_CAPS[stage][1], now)


def _take(session: Session, counter: Counter, amount: Decimal, limit: Decimal | None, now: datetime) -> None:
    if _fitted(session, counter, amount, limit):
        return
    # Too much, or the first of its period: then the counter is made and asked again.
    add(session, counter, Decimal(0), Decimal(0))
    if not _fitted(session, counter, amount, limit):
        raise OverBudget(min(end_of(counter.period, now), now + LONGEST_WAIT), "waiting for budget")


def _fitted(session: Session, counter: Counter, amount: Decimal, limit: Decimal | None) -> bool:
    """Reserve an amount if it stays within the limit: up to a tenant's, below a stage's."""
    fits = "<= :limit" if counter.tenant_id is not None else "< :limit"
    reserved = session.execute(
        text(
            f"update {_table(counter)} set reserved_eur = reserved_eur + :amount where {_key(counter)} "
            f"and (cast(:limit as numeric) is null or spent_eur + reserved_eur + :amount {fits})"
        ),
        _values(counter) | {"amount": amount, "limit": limit},
    )
    return bool(reserved.rowcount)  # type: ignore[attr-defined]


def _warn(session: Session, counter: Counter, limit: Decimal) -> None:
    """Tell once that little is left of a limit; a changed limit is told anew."""
    assert counter.tenant_id is not None
    row = session.execute(
        text(
            f"update core.spending set warned_limit = :limit where {_key(counter)} "
            "and warned_limit is distinct from :limit and spent_eur + reserved_eur >= :soft "
            "returning spent_eur + reserved_eur as used"
        ),
        _values(counter) | {"limit": limit, "soft": limit * SOFT},
    ).first()
    if row is not None:
        publish(
            session,
            BudgetNearlySpent(
                event_id=uuid5(counter.tenant_id, f"{counter.period}:{counter.starts_at:%Y-%m-%d}:{limit.normalize()}"),
                tenant_id=counter.tenant_id,
                period=counter.period,
                starts_at=counter.starts_at,
                limit_eur=str(limit.normalize()),
                used_eur=str(row.used.normalize()),
            ),
        )


def add(session: Session, counter: Counter, reserved: Decimal, spent: Decimal) -> None:
    """Change a counter, made when it is missing."""
    names = "tenant_id, period, starts_at" if counter.tenant_id is not None else "period, starts_at"
    binds = ", ".join(f":{name}" for name in names.split(", "))
    table = _table(counter)
    session.execute(
        text(
            f"insert into {table} as c ({names}, reserved_eur, spent_eur) values ({binds}, :reserved, :spent) "
            f"on conflict ({names}) do update set reserved_eur = c.reserved_eur + excluded.reserved_eur, "
            "spent_eur = c.spent_eur + excluded.spent_eur"
        ),
        _values(counter) | {"reserved": reserved, "spent": spent},
    )


def _table(counter: Counter) -> str:
    return "core.stage_spending" if counter.tenant_id is None else "core.spending"


def _key(counter: Counter) -> str:
    key = "period = :period and starts_at = :starts_at"
    return key if counter.tenant_id is None else f"tenant_id = :tenant_id and {key}"


def _values(counter: Counter) -> dict[str, object]:
    values: dict[str, object] = {"period": counter.period, "starts_at": counter.starts_at}
    return values if counter.tenant_id is None else values | {"tenant_id": counter.tenant_id}


def _limits(session: Session, tenant_id: UUID) -> dict[str, Decimal]:
    rows = session.execute(
        text("select period, limit_eur from core.budgets where tenant_id = :tenant"), {"tenant": tenant_id}
    )
    return {row.period: row.limit_eur for row in rows}


def run_limit(session: Session, tenant_id: UUID) -> Decimal | None:
    """EUR that the answer of one of the tenant's questions may cost; None: no limit."""
    limit: Decimal | None = session.execute(
        text("select limit_eur from core.budgets where tenant_id = :tenant and period = 'run'"), {"tenant": tenant_id}
    ).scalar()
    return limit


def set_budget(operator: Session, tenant_id: UUID, period: Limited, limit: Decimal | None) -> None:
    """Set or, with None, lift a tenant's limit.

    What waits for budget is woken by `shared.documents.waiting.wake` and `shared.conversations.waiting.wake_runs`.
    """
    values = {"tenant": tenant_id, "period": period, "limit": limit}
    if limit is None:
        operator.execute(text("delete from core.budgets where tenant_id = :tenant and period = :period"), values)
        return
    operator.execute(
        text(
            "insert into core.budgets (tenant_id, period, limit_eur) values (:tenant, :period, :limit) "
            "on conflict (tenant_id, period) do update set limit_eur = excluded.limit_eur"
        ),
        values,
    )


def read_budgets(session: Session, tenant_id: UUID, now: datetime) -> Iterator[Budget]:
    """A tenant's day and month: limit, spent, reserved."""
    limits = _limits(session, tenant_id)
    periods: tuple[Period, ...] = ("day", "month")
    for period in periods:
        row = session.execute(
            text(
                "select spent_eur, reserved_eur from core.spending "
                "where tenant_id = :tenant and period = :period and starts_at = :start"
            ),
            {"tenant": tenant_id, "period": period, "start": start_of(period, now)},
        ).first()
        spent, reserved = row or (Decimal(0), Decimal(0))
        yield Budget(period, limits.get(period), spent, reserved)
