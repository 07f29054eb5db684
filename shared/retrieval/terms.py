"""On what terms a vector space's model may be asked: whether its provider takes calls, and for what price."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.money.prices import Price
from shared.retrieval.spaces import COLUMNS, Space

_TERMS = text(
    f"select {COLUMNS}, (select closed_until from core.provider_gates where model = s.model "
    "and closed_until > :now) as closed_until, p.eur_per_million, p.eur_per_million_output from rag.vector_spaces s "
    "left join lateral (select eur_per_million, eur_per_million_output from core.prices where model = s.model "
    "and valid_from <= :now order by valid_from desc limit 1) p on true where s.space_id = :space"
)
_SPACE = len(fields(Space))


@dataclass(frozen=True, slots=True)
class Terms:
    """`closed_until`: the provider wants to be left alone until then. `price` None: nobody has entered one."""

    space: Space
    closed_until: datetime | None
    price: Price | None


def terms_of(session: Session, space_id: UUID, now: datetime) -> Terms | None:
    """Space, gate and price in one round trip: `space_by_id`, `closed_until` and `prices_of`; None without a space."""
    row = session.execute(_TERMS, {"space": space_id, "now": now}).first()
    if row is None:
        return None
    closed_until, paid_in, paid_out = row[_SPACE:]
    price = None if paid_in is None else Price(paid_in, paid_out)
    return Terms(Space(*row[:_SPACE]), closed_until, price)
