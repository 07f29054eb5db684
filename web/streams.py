"""A run as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

The stream polls; a connection to the database is borrowed for each poll, not for the stream, and the longer a run is
silent the rarer the polls. It ends by itself after five minutes, so that reconnecting with Last-Event-ID is the normal
path and not the exception. A stream takes a thread of the instance as long as it is open, so only so many stay open;
the others say what there is and end, and their clients come again: slower, but nothing else waits for a thread.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import Lock
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from shared.conversations.runs import RunEvent

log = logging.getLogger(__name__)

LAST = frozenset({"answer", "failed", "cancelled"})
"""Kinds of events after which nothing comes."""


OPEN, OPEN_PER_TENANT = 20, 10
"""Streams that an instance keeps open at once, and those of one tenant. Below the requests that it takes at once
(terraform/topology.yaml), so that people with many waiting pages leave threads for what answers at once."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds: between looks at the run itself, of silence before a heartbeat, until the end, until a client that was
    not kept comes again; and between polls, by how long the run has been silent."""

    look: float = 2.0
    heartbeat: float = 15.0
    limit: float = 300.0
    again: float = 2.0

    def poll(self, silent: float) -> float:
        """While words come a poll is what they wait for; a run that waits for a person may do so for days."""
        return 0.15 if silent < 5 else 0.5 if silent < 30 else 2.0


PACE = Pace()


@dataclass(slots=True)
class Places:
    """Who has a stream open in this process."""

    most: int = OPEN
    most_of_one: int = OPEN_PER_TENANT
    _taken: Counter[UUID] = field(default_factory=Counter)
    _lock: Lock = field(default_factory=Lock)

    @contextmanager
    def one(self, tenant_id: UUID) -> Iterator[bool]:
        """A place until the end of the block; False where there is none left."""
        with self._lock:
            free = self._taken.total() < self.most and self._taken[tenant_id] < self.most_of_one
            if free:
                self._taken[tenant_id] += 1
        try:
            yield free
        finally:
            if free:
                with self._lock:
                    self._taken[tenant_id] -= 1
                    if not self._taken[tenant_id]:
                        del self._taken[tenant_id]


PLACES = Places()


def frame(event: RunEvent) -> str:
    """One event on the wire; its id is the sequence number within the run."""
    # JSON escapes newlines, so the data is one line; U+2028 and lone carriage returns are escaped as well.
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {json.dumps(event.data)}\n\n"


def run_events(
    read: Callable[[int], Sequence[RunEvent]],
    ending: Callable[[int], RunEvent | None],
    after: int,
    *,
    place: AbstractContextManager[bool] | None = None,
    now: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Frames of a run's events after sequence number `after`, until the run or the stream ends.

    `read(seq)` gives the events after `seq`; `ending(seq)` makes the last event of a run that has ended without one
    to read (cancelled, or the client has seen it before). Without a `place` (it gives False) the stream ends after
    the first read. A database that does not answer ends the stream: the client comes again with what it has seen.
    """
    with place or nullcontext(True) as kept:
        yield f"retry: {1000 if kept else int(1000 * PACE.again)}\n\n"
        started = spoken = heard = look = now()
        try:
            while True:
                events = read(after)
                for event in events:
                    after, spoken = event.seq, now()
                    heard = spoken
                    yield frame(event)
                    if event.kind in LAST:
                        return
                if not events and now() >= look:
                    look = now() + PACE.look
                    if (last := ending(after)) is not None:
                        yield frame(last)
                        return
                if not kept or now() - started >= PACE.limit:
                    return
                if now() - spoken >= PACE.heartbeat:
                    spoken = now()
                    yield ": alive\n\n"
                wait(PACE.poll(now() - heard))
        except SQLAlchemyError:
            log.warning("a stream ended because the database does not answer", exc_info=True)
