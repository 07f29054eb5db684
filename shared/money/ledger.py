"""The ledger: reserve before a call, settle with what the provider counted, release what was not spent.

A row is one call, keyed (tenant, call key), however often it is tried. Who wants to make the call locks its row first
and then looks whether there is anything left to do, so a repeat finds nothing and books nothing; while a paid call is
under way its lease keeps a second delivery from paying for the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import often
from shared.errors import Postponed
from shared.money.budgets import OverBudget, add, counters, take
from shared.money.prices import Price, cost, most_tokens, prices_of

LEASE = timedelta(minutes=6)
"""Longer than a call can take (shared.llm), shorter than the service's timeout (540 s)."""

PRICE_WAIT = timedelta(hours=1)


class NoPrice(OverBudget):
    """A model without a price, where a cap must hold: nobody could say what the call would cost."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call to be paid for: `key` names it for ever; it is for a document's version or for a run."""

    tenant_id: UUID
    key: UUID
    model: str
    document_id: UUID | None = None
    version_id: UUID | None = None
    run_id: UUID | None = None


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
    most_output: int = 0
    output_price: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class Spent:
    """What is booked for a run so far: tokens in and out, EUR; `calls` that were tried."""

    calls: int
    tokens: int
    output_tokens: int
    eur: Decimal


@dataclass(frozen=True, slots=True)
class Left:
    """What earlier attempts left in the row of a call that is locked now."""

    state: str
    reserved: Decimal
    booked_at: datetime


_LOCK_CALL = text(
    "insert into core.ledger (tenant_id, call_key, model, document_id, version_id, run_id, state) "
    "values (:tenant, :key, :model, :document, :version, :run, 'released') on conflict (tenant_id, call_key) "
    # Changes nothing: a row that is there is locked as `for update` would, and returned as it is after the wait.
    "do update set call_key = excluded.call_key returning state, lease_until, reserved_eur, booked_at"
)


def lock_call(session: Session, call: Call, now: datetime, *, sole: bool = False) -> Left:
    """Lock the call's row until the transaction ends. Raises Postponed while somebody else is paying for it.

    `sole`: the caller holds the run, so a reservation it finds is a dead worker's and nothing to wait for.
    """
    values = {
        "tenant": call.tenant_id,
        "key": call.key,
        "model": call.model,
        "document": call.document_id,
        "version": call.version_id,
        "run": call.run_id,
    }
    row = session.execute(_LOCK_CALL, values).one()
    if not sole and row.state == "reserved" and row.reserved_eur > 0 and row.lease_until > now:
        raise Postponed(row.lease_until, "another delivery is making this call")
    return Left(row.state, row.reserved_eur, row.booked_at)


def forget_call(session: Session, call: Call) -> None:
    """Take the row of a call that was never needed out again."""
    session.execute(
        text("delete from core.ledger where tenant_id = :tenant and call_key = :key and attempts = 0"),
        {"tenant": call.tenant_id, "key": call.key},
    )


def reserve(
    session: Session, call: Call, left: Left, texts: Sequence[str], stage: str, now: datetime, *, most_output: int = 0
) -> Reservation:
    """Reserve what a call may cost at most, `left` by `lock_call`; `most_output` tokens of a model that writes.

    Raises OverBudget or NoPrice: roll the session back then.
    """
    price = prices_of(session, call.model, now)
    return reserve_at(session, price, call, left, texts, stage, now, most_output=most_output)


def reserve_at(
    session: Session,
    price: Price | None,
    call: Call,
    left: Left,
    texts: Sequence[str],
    stage: str,
    now: datetime,
    *,
    most_output: int = 0,
) -> Reservation:
    """As `reserve`, for a caller that has read the price."""
    wanted = _priced(call, price, texts, stage, now, most_output)
    if left.state == "reserved":
        _count(session, call.tenant_id, stage, left.booked_at, -left.reserved, Decimal(0))
    if wanted.amount > 0:
        take(session, call.tenant_id, stage, wanted.amount, now)
    attempt = session.execute(
        text(
            "update core.ledger set state = 'reserved', attempts = attempts + 1, reserved_eur = :amount, "
            "booked_at = :now, lease_until = :lease where tenant_id = :tenant and call_key = :key returning attempts"
        ),
        {"tenant": call.tenant_id, "key": call.key, "amount": wanted.amount, "now": now, "lease": now + LEASE},
    ).scalar_one()
    return replace(wanted, attempt=attempt)


_RESERVE_NEW = often(
    "insert into core.ledger (tenant_id, call_key, model, document_id, version_id, run_id, state, attempts, "
    "reserved_eur, booked_at, lease_until) values (:tenant, :key, :model, :document, :version, :run, 'reserved', 1, "
    ":amount, :now, :lease) on conflict do nothing"
)


def reserve_alone(
    session: Session,
    call: Call,
    price: Price | None,
    texts: Sequence[str],
    stage: str,
    now: datetime,
    *,
    most_output: int = 0,
) -> Reservation:
    """As `lock_call` with `sole` and then `reserve`, for a caller that holds the run and has read the price.

    Nearly every call of a run is made for the first time: that is one statement.
    """
    wanted = _priced(call, price, texts, stage, now, most_output)
    new = session.execute(
        _RESERVE_NEW,
        {
            "tenant": call.tenant_id,
            "key": call.key,
            "model": call.model,
            "document": call.document_id,
            "version": call.version_id,
            "run": call.run_id,
            "amount": wanted.amount,
            "now": now,
            "lease": now + LEASE,
        },
    ).rowcount  # type: ignore[attr-defined]
    if not new:
        left = lock_call(session, call, now, sole=True)
        return reserve(session, call, left, texts, stage, now, most_output=most_output)
    if wanted.amount > 0:
        take(session, call.tenant_id, stage, wanted.amount, now)
    return wanted


def _priced(
    call: Call, found: Price | None, texts: Sequence[str], stage: str, now: datetime, most_output: int
) -> Reservation:
    """The first attempt at a call at its most. Raises NoPrice where one is needed."""
    found = priced(found, call.model, stage, now, writes=bool(most_output))
    price, output_price = found.input, found.output or Decimal(0)
    tokens = most_tokens(texts)
    amount = cost(tokens, price) + cost(most_output, output_price)
    return Reservation(call, 1, tokens, price, amount, now, stage, most_output, output_price)


def priced(found: Price | None, model: str, stage: str, now: datetime, *, writes: bool = False) -> Price:
    """The price a call is reserved at; of a model that `writes` also that of its output. Raises NoPrice."""
    if found is not None and not (writes and found.output is None):
        return found
    if stage != "dev":
        raise NoPrice(now + PRICE_WAIT, f"waiting for a price of {model}")
    # On a laptop a model of one's own counts as free until somebody enters a price.
    return Price(found.input if found else Decimal(0), Decimal(0))


def settle(
    session: Session, reservation: Reservation, tokens: int, output_tokens: int = 0, *, wrote: bool = False
) -> Decimal:
    """Book what the call has cost, in the transaction that stores what it bought; returns EUR.

    What a provider does not count is booked at the most it can have been, never less than the truth: all of it where
    `tokens` is 0, the output where it counted none and yet `wrote` something.
    """
    output = output_tokens or (reservation.most_output if wrote or not tokens else 0)
    return _close(session, reservation, "settled", tokens or reservation.most, output)


def release(session: Session, reservation: Reservation, tokens: int = 0, output_tokens: int = 0) -> Decimal:
    """Give back what was not spent. Tokens of an answer that came but was unusable are paid all the same."""
    return _close(session, reservation, "released", tokens, output_tokens)


def spent_on(session: Session, tenant_id: UUID, run_id: UUID) -> Spent:
    """What a run's calls have cost so far, in all attempts."""
    row = session.execute(
        often(
            "select count(*), coalesce(sum(tokens), 0), coalesce(sum(output_tokens), 0), coalesce(sum(cost_eur), 0) "
            "from core.ledger where tenant_id = :tenant and run_id = :run"
        ),
        {"tenant": tenant_id, "run": run_id},
    ).one()
    return Spent(row[0], int(row[1]), int(row[2]), row[3])


def _close(session: Session, reservation: Reservation, state: str, tokens: int, output_tokens: int) -> Decimal:
    spent = cost(tokens, reservation.price) + cost(output_tokens, reservation.output_price)
    call = reservation.call
    values = {
        "tenant": call.tenant_id,
        "key": call.key,
        "attempt": reservation.attempt,
        "tokens": tokens,
        "output": output_tokens,
        "cost": spent,
        "state": state,
    }
    mine = session.execute(
        often(
            "update core.ledger set state = :state, reserved_eur = 0, tokens = tokens + :tokens, "
            "output_tokens = output_tokens + :output, cost_eur = cost_eur + :cost where tenant_id = :tenant "
            "and call_key = :key and attempts = :attempt and state = 'reserved'"
        ),
        values,
    ).rowcount  # type: ignore[attr-defined]
    if not mine and (tokens or output_tokens):
        # The lease ran out and the reservation is somebody else's or gone; paid is paid.
        session.execute(
            text(
                "update core.ledger set tokens = tokens + :tokens, output_tokens = output_tokens + :output, "
                "cost_eur = cost_eur + :cost "
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
