"""Run events while a run is worked on, and the transactions of whoever holds it.

Steps and pieces of the draft wait here until the next transaction of the run (`held`) or, for pieces, until a tenth of
a second is over: a step costs no commit of its own, and readers poll every 0.15 s anyway.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.orm import Session

from shared.conversations.runs import Lease, RunEvent, hold
from shared.conversations.steps import Step, keep
from shared.conversations.waiting import still_wanted
from shared.database import tenant_session
from shared.errors import NoesisError

BATCH_SECONDS = 0.1
LOOK_SECONDS = 0.5
"""How often a silent call looks whether the run was cancelled."""


class HandOver(NoesisError):
    """This invocation has worked long enough; a fresh one goes on at the next step."""


class Journal:
    """Numbers and writes events. What writes raises Superseded when the run was taken over or cancelled."""

    def __init__(self, lease: Lease, over: Callable[[], bool] = lambda: False) -> None:
        self._lease = lease
        self._over = over
        self._seq = lease.next_seq
        # An earlier attempt may have sent pieces of a draft.
        self._spoken = lease.epoch > 1
        self._waiting: list[tuple[str, dict[str, Any]]] = []
        self._pieces: list[str] = []
        self._flushed_at = self._looked_at = 0.0
        # LangGraph stores checkpoints from a thread of its own.
        self._lock = threading.RLock()

    @property
    def next_seq(self) -> int:
        """The number of the next event."""
        return self._seq

    @contextmanager
    def held(self) -> Iterator[Session]:
        """A transaction of the run's holder: renews the lease, then writes the events that wait. Commits at the end."""
        with self._lock:
            events = [RunEvent(self._seq + n, *event) for n, event in enumerate(self._waiting)]
            before = self._seq
            try:
                with tenant_session(self._lease.tenant_id) as session:
                    hold(session, self._lease, events)
                    self._seq += len(events)  # inside already: who ends the run here numbers its own event after these
                    yield session
            except BaseException:
                self._seq = before
                raise
            del self._waiting[: len(events)]

    def keep(self, step: Step | None = None) -> None:
        """Write the events that wait and a step, in one round trip. Raises Superseded."""
        with self._lock:
            events = [RunEvent(self._seq + n, *event) for n, event in enumerate(self._waiting)]
            keep(self._lease, events, step)
            self._seq += len(events)
            del self._waiting[: len(events)]

    def begin(self) -> None:
        """A node begins. Raises HandOver when this invocation's time is over: everything before is stored."""
        if self._over():
            raise HandOver("the run goes on in a fresh invocation")

    def step(self, name: str) -> None:
        """Tell readers what is being done; written with the next transaction of the run."""
        with self._lock:
            self._waiting.append(("step", {"name": name}))

    def restart_draft(self) -> None:
        """Tell readers to drop what they have of the draft, if they can have any."""
        with self._lock:
            if self._spoken:
                self._waiting.append(("draft-restarted", {"attempt": self._lease.epoch}))
                self._spoken = False

    def token(self, piece: str) -> None:
        """A piece of the draft."""
        if piece:
            self._pieces.append(piece)
        if time.monotonic() - self._flushed_at >= BATCH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the pieces that wait."""
        self.collect()
        if self._waiting:
            self.keep()
        self._flushed_at = time.monotonic()

    def collect(self) -> None:
        """Put the pieces that wait among the events of the next transaction."""
        with self._lock:
            if self._pieces:
                text, self._pieces = "".join(self._pieces), []
                self._waiting.append(("token", {"text": text, "attempt": self._lease.epoch}))
                self._spoken = True

    def look(self) -> None:
        """While nothing is written: see now and then whether the run is still ours."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            with tenant_session(self._lease.tenant_id) as session:
                still_wanted(session, self._lease)
