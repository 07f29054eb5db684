"""Providers that asked for time: remembered for all instances, so that nobody asks again before it is over."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import text
from sqlalchemy.orm import Session


def closed_until(session: Session, model: str, now: datetime) -> datetime | None:
    """Until when a model's provider wants to be left alone; None when it may be asked."""
    until: datetime | None = session.execute(
        text("select closed_until from core.provider_gates where model = :model and closed_until > :now"),
        {"model": model, "now": now},
    ).scalar()
    return until


def close_gate(session: Session, model: str, until: datetime) -> None:
    """Leave a model's provider alone until a moment; a later moment already known stays."""
    session.execute(
        text(
            "insert into core.provider_gates as g (model, closed_until) values (:model, :until) "
            "on conflict (model) do update set closed_until = greatest(g.closed_until, excluded.closed_until)"
        ),
        {"model": model, "until": until},
    )
