"""What a model costs: a price table with dates, in EUR per million tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import text
from sqlalchemy.orm import Session

MILLION = 1_000_000
SPECIAL_TOKENS = 8
"""Tokens a model adds to every text (beginning, end, prefix such as `passage: `)."""


@dataclass(frozen=True, slots=True)
class Price:
    """EUR per million tokens in and out; `output` None: nobody has entered one, as for models that write nothing."""

    input: Decimal
    output: Decimal | None


def prices_of(session: Session, model: str, at: datetime) -> Price | None:
    """A model's prices at a moment; None when nobody has entered any."""
    row = session.execute(
        text(
            "select eur_per_million, eur_per_million_output from core.prices where model = :model "
            "and valid_from <= :at order by valid_from desc limit 1"
        ),
        {"model": model, "at": at},
    ).first()
    return Price(*row) if row else None


def price_of(session: Session, model: str, at: datetime) -> Decimal | None:
    """EUR per million input tokens of a model at a moment; None when nobody has entered a price."""
    found = prices_of(session, model, at)
    return found.input if found else None


def set_price(
    operator: Session, model: str, eur_per_million: Decimal, valid_from: datetime, output: Decimal | None = None
) -> None:
    """Enter prices from a date on, `output` for a chat model; the same date again replaces them.

    What was booked before stays as it was.
    """
    operator.execute(
        text(
            "insert into core.prices (model, valid_from, eur_per_million, eur_per_million_output) "
            "values (:model, :valid_from, :price, :output) on conflict (model, valid_from) do update "
            "set eur_per_million = excluded.eur_per_million, eur_per_million_output = excluded.eur_per_million_output"
        ),
        {"model": model, "valid_from": valid_from, "price": eur_per_million, "output": output},
    )


def most_tokens(texts: Sequence[str]) -> int:
    """More tokens than any tokenizer makes of the texts: byte-level and byte-fallback ones make at most one a byte.

    An estimate would now and then be too low, and then a budget would be passed by what it was too low.
    """
    return sum(len(text.encode()) + SPECIAL_TOKENS for text in texts)


def cost(tokens: int, eur_per_million: Decimal) -> Decimal:
    """EUR for so many tokens, exact to the nano euro."""
    return (eur_per_million * tokens / MILLION).quantize(Decimal("1e-9"))
