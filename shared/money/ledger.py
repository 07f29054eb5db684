"""The ledger: reserve before a call, settle with what the provider counted, release what was not spent.

A row is one call, keyed (tenant, call key), however often it is tried. Who wants to make the call locks its row first
and then looks whether there is anything left to do, so a repeat finds nothing and books nothing; while a paid call is
under way its lease keeps a second delivery from paying for the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.errors import Postponed
from shared.money.budgets import OverBudget, add, counters, take
from shared.money.prices import cost, most_tokens, price_of

LEASE = timedelta(minutes=6)
"""Longer than a call can take (shared.llm), shorter than the service's timeout (540 s)."""

PRICE_WAIT = timedelta(hours=1)


class NoPrice(OverBudget):
    """A model without a price, where a cap must hold: nobody could say what the call would cost."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call to be paid for: `key` names it for ever, the document is who it is for."""

    tenant_id: UUID
    key: UUID
    model: str
    document_id: UUID
    version_id: UUID


@dataclass(frozen=True, slots=True)
class Reservation:
    """An attempt at a call: what it may cost at most, and the price it is settled at."""

    call: Call
    attempt: int
    most: int
    """Tokens it can have at most."""
    price: Decimal
    """EUR per million tokens."""
    amount: Decimal
    booked_at: datetime
    stage: str


def lock_call(session: Session, call: Call, now: datetime) -> None:
    """Lock the call's row until the transaction ends. Raises Postponed while somebody else is paying for it."""
    values = {
        "tenant": call.tenant_id,
        "key": call.key,
        "model": call.model,
        "document": call.document_id,
        "version": call.version_id,
    }
    session.execute(
        text(
            "insert into core.ledger (tenant_id, call_key, model, document_id, version_id, state) "
            "values (:tenant, :key, :model, :document, :version, 'released') on conflict do nothing"
        ),
        values,
    )
    row = session.execute(
        text(
            "select state, lease_until, reserved_eur from core.ledger "
            "where tenant_id = :tenant and call_key = :key for update"
        ),
        values,
    ).one()
    if row.state == "reserved" and row.reserved_eur > 0 and row.lease_until > now:
        raise Postponed(row.lease_until, "another delivery is making this call")


def forget_call(session: Session, call: Call) -> None:
    """Take the row of a call that was never needed out again."""
    session.execute(
        text("delete from core.ledger where tenant_id = :tenant and call_key = :key and attempts = 0"),
        {"tenant": call.tenant_id, "key": call.key},
    )


def reserve(session: Session, call: Call, texts: list[str], stage: str, now: datetime) -> Reservation:
    """Reserve what a locked call may cost at most. Raises OverBudget or NoPrice: roll the session back then."""
    price = price_of(session, call.model, now)
    if price is None:
        if stage != "dev":
            raise NoPrice(now + PRICE_WAIT, f"waiting for a price of {call.model}")
        price = Decimal(0)  # on a laptop a model of one's own counts as free until somebody enters a price
    tokens = most_tokens(texts)
    amount = cost(tokens, price)
    left = session.execute(
        text("select state, reserved_eur, booked_at from core.ledger where tenant_id = :tenant and call_key = :key"),
        {"tenant": call.tenant_id, "key": call.key},
    ).one()
    if left.state == "reserved":
        _count(session, call.tenant_id, stage, left.booked_at, -left.reserved_eur, Decimal(0))
    if amount > 0:
        take(session, call.tenant_id, stage, amount, now)
    attempt = session.execute(
        text(
            "update core.ledger set state = 'reserved', attempts = attempts + 1, reserved_eur = :amount, "
            "booked_at = :now, lease_until = :lease where tenant_id = :tenant and call_key = :key returning attempts"
        ),
        {"tenant": call.tenant_id, "key": call.key, "amount": amount, "now": now, "lease": now + LEASE},
    ).scalar_one()
    return Reservation(call, attempt, tokens, price, amount, now, stage)


def settle(session: Session, reservation: Reservation, tokens: int) -> Decimal:
    """Book what the call has cost, in the transaction that stores what it bought; returns EUR.

    A provider that counts nothing (`tokens` 0) is booked at the most it can have been: never less than the truth.
    """
    return _close(session, reservation, "settled", tokens or reservation.most)


def release(session: Session, reservation: Reservation, tokens: int = 0) -> None:
    """Give back what was not spent. `tokens` of an answer that came but was unusable are paid all the same."""
    _close(session, reservation, "released", tokens)


def _close(session: Session, reservation: Reservation, state: str, tokens: int) -> Decimal:
    call, spent = reservation.call, cost(tokens, reservation.price)
    values = {
        "tenant": call.tenant_id,
        "key": call.key,
        "attempt": reservation.attempt,
        "tokens": tokens,
        "cost": spent,
        "state": state,
    }
    mine = session.execute(
        text(
            "update core.ledger set state = :state, reserved_eur = 0, tokens = tokens + :tokens, "
            "cost_eur = cost_eur + :cost where tenant_id = :tenant and call_key = :key and attempts = :attempt "
            "and state = 'reserved'"
        ),
        values,
    ).rowcount  # type: ignore[attr-defined]
    if not mine and tokens:
        # The lease ran out and the reservation is somebody else's or gone; paid is paid.
        session.execute(
            text(
                "update core.ledger set tokens = tokens + :tokens, cost_eur = cost_eur + :cost "
                "where tenant_id = :tenant and call_key = :key"
            ),
            values,
        )
    given_back = -reservation.amount if mine else Decimal(0)
    _count(session, call.tenant_id, reservation.stage, reservation.booked_at, given_back, spent)
    return spent


def _count(
    session: Session, tenant_id: UUID, stage: str, booked_at: datetime, reserved: Decimal, spent: Decimal
) -> None:
    if reserved or spent:
        for counter in counters(tenant_id, stage, booked_at):
            add(session, counter, reserved, spent)


def release_expired(operator: Session, stage: str, now: datetime) -> int:
    """Give back what dead workers had reserved; returns how many calls. For the sweep."""
    rows = operator.execute(
        text(
            "update core.ledger l set state = 'released', reserved_eur = 0 from (select tenant_id, call_key, "
            "reserved_eur, booked_at from core.ledger where state = 'reserved' and lease_until < :now "
            "order by tenant_id, call_key for update skip locked) dead "
            "where l.tenant_id = dead.tenant_id and l.call_key = dead.call_key "
            "returning l.tenant_id, dead.reserved_eur, dead.booked_at"
        ),
        {"now": now},
    ).all()
    for row in sorted(rows):
        _count(operator, row.tenant_id, stage, row.booked_at, -row.reserved_eur, Decimal(0))
    return len(rows)
