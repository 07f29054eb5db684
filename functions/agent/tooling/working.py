"""What a tool works with: whose run it is, how long it may take, and how what it found is told."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import event
from sqlalchemy.orm import ORMExecuteState, Session

from functions.agent.state import PassageState
from shared.database import tenant_session
from shared.errors import PermanentError
from shared.retrieval.spaces import Space
from shared.services import Services
from shared.tenants.directory import Principal

TOOL_SECONDS = 30.0
"""The longest a tool may take (REQUIREMENTS section 2)."""


class TooSlow(PermanentError):
    """A tool has used up its time."""

    def __init__(self) -> None:
        super().__init__("tool-too-slow", "The tool took longer than it may.", "Ask for less at once.")


class Deadline:
    """When a tool has to be done; handed down to every statement and request it makes."""

    def __init__(self, seconds: float = TOOL_SECONDS) -> None:
        self._end = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() >= self._end

    def left(self) -> float:
        """Seconds that are left. Raises TooSlow when there are none."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise TooSlow
        return seconds


@dataclass(frozen=True, slots=True)
class Work:
    """One tool at work, for one member, until its deadline; `embed` gives the vector of a question in a space."""

    principal: Principal
    services: Services
    deadline: Deadline
    embed: Callable[[str, Space], list[float]]

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session of the tenant whose statements end at the deadline."""
        with tenant_session(self.principal.tenant_id) as session:
            bound(session, self.deadline)
            yield session


def bound(session: Session, deadline: Deadline) -> None:
    """Have the server stop every statement of this session when the time is over.

    PostgreSQL 16 counts for each statement anew, so what is left is told again as it shrinks.
    """
    told = math.inf

    def tell(state: ORMExecuteState) -> None:
        nonlocal told
        left = deadline.left()
        if told - left > 0.5:
            told = left
            connection = state.session.connection()
            connection.exec_driver_sql(f"set local statement_timeout = {math.ceil(left * 1000)}")

    event.listen(session, "do_orm_execute", tell)


@dataclass(frozen=True, slots=True)
class Found:
    """What a tool found: text for the model (neither escaped nor capped yet) and passages that may be cited."""

    text: str
    passages: list[PassageState] = field(default_factory=list)
