"""A site's patience: whose turn it is, and what its robots.txt said; one for all tenants and instances."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.fetching.robots import Robots


def take_turn(session: Session, origin: str, key: UUID, delay: float) -> datetime | None:
    """None when `key` may ask the site now, or else when; asking again gives the same moment.

    `delay` in seconds, or the site's own if that is longer. The database's clock decides, for all instances.
    """
    row = session.execute(
        text(
            "select t.turn, t.turn > clock_timestamp() as early from core.take_web_turn(:origin, :key, :delay) t(turn)"
        ),
        {"origin": origin, "key": key, "delay": delay},
    ).one()
    return row.turn if row.early else None


def known_robots(session: Session, origin: str) -> Robots | None:
    """What the site said, unless that is too old or it was never asked."""
    row = session.execute(text("select state, body from core.web_robots(:origin)"), {"origin": origin}).first()
    return None if row is None else Robots(row.state, row.body)


def keep_robots(session: Session, origin: str, robots: Robots) -> None:
    """Remember what the site said, for all tenants."""
    session.execute(
        text("select core.keep_web_robots(:origin, :state, :body, :delay, :kept)"),
        {
            "origin": origin,
            "state": robots.state,
            "body": robots.body,
            "delay": robots.delay(),
            "kept": robots.kept,
        },
    )
