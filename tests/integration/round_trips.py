"""Which statements a piece of work sends to the database: each is a round trip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

from shared.database import application_engine


@contextmanager
def statements() -> Iterator[list[str]]:
    """What the application sends meanwhile, in order; COPY goes past SQLAlchemy and is not among it."""
    found: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: Any) -> None:
        found.append(statement)

    engine = application_engine()
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", note)
