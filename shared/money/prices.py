"""What a model costs: a price table with dates, in EUR per million tokens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

from sqlalchemy import text
from sqlalchemy.orm import Session

MILLION = 1_000_000
SPECIAL_TOKENS = 8
"""Tokens a model adds to every text (beginning, end, prefix such as `passage: `)."""


def price_of(session: Session, model: str, at: datetime) -> Decimal | None:
    """EUR per million tokens of a model at a moment; None when nobody has entered a price."""
    price: Decimal | None = session.execute(
        text(
            "select eur_per_million from core.prices where model = :model and valid_from <= :at "
            "order by valid_from desc limit 1"
        ),
        {"model": model, "at": at},
    ).scalar()
    return price


def set_price(operator: Session, model: str, eur_per_million: Decimal, valid_from: datetime) -> None:
    """Enter a price from a date on; the same date again replaces it. What was booked before stays as it was."""
    operator.execute(
        text(
            "insert into core.prices (model, valid_from, eur_per_million) values (:model, :valid_from, :price) "
            "on conflict (model, valid_from) do update set eur_per_million = excluded.eur_per_million"
        ),
        {"model": model, "valid_from": valid_from, "price": eur_per_million},
    )


def most_tokens(texts: Sequence[str]) -> int:
    """More tokens than any tokenizer makes of the texts: byte-level and byte-fallback ones make at most one a byte.

    An estimate would now and then be too low, and then a budget would be passed by what it was too low.
    """
    return sum(len(text.encode()) + SPECIAL_TOKENS for text in texts)


def cost(tokens: int, eur_per_million: Decimal) -> Decimal:
    """EUR for so many tokens, exact to the nano euro."""
    return (eur_per_million * tokens / MILLION).quantize(Decimal("1e-9"))
