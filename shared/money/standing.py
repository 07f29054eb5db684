"""What must be known before a call of a run: may its provider be asked, what does it cost, what has the run spent."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy.orm import Session

from shared.database import often
from shared.money.ledger import Spent
from shared.money.prices import Price

_STANDING = often(
    "select (select closed_until from core.provider_gates where model = :model and closed_until > :now), "
    "p.eur_per_million, p.eur_per_million_output, s.* from (select count(*), coalesce(sum(tokens), 0), "
    "coalesce(sum(output_tokens), 0), coalesce(sum(cost_eur), 0) from core.ledger where tenant_id = :tenant "
    "and run_id = :run) s left join lateral (select eur_per_million, eur_per_million_output from core.prices "
    "where model = :model and valid_from <= :now order by valid_from desc limit 1) p on true"
)


@dataclass(frozen=True, slots=True)
class Standing:
    """`closed_until`: the provider wants to be left alone until then. `price` None: nobody has entered one."""

    closed_until: datetime | None
    price: Price | None
    spent: Spent


def standing_of(session: Session, tenant_id: UUID, run_id: UUID, model: str, now: datetime) -> Standing:
    """Gate, price and what is booked for the run, in one round trip: `closed_until`, `prices_of` and `spent_on`."""
    values = {"tenant": tenant_id, "run": run_id, "model": model, "now": now}
    closed, paid_in, paid_out, calls, tokens, output, eur = session.execute(_STANDING, values).one()
    price = None if paid_in is None else Price(paid_in, paid_out)
    return Standing(closed, price, Spent(calls, int(tokens), int(output), eur))
