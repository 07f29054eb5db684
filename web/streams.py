"""A run as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

The stream polls; a connection to the database is borrowed for each poll, not for the stream. It ends by itself after
five minutes, so that reconnecting with Last-Event-ID is the normal path and not the exception.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from shared.conversations.runs import RunEvent

log = logging.getLogger(__name__)

LAST = frozenset({"answer", "failed", "cancelled"})
"""Kinds of events after which nothing comes."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds: between polls, between looks at the run itself, of silence before a heartbeat, until the end."""

    poll: float = 0.15
    look: float = 2.0
    heartbeat: float = 15.0
    limit: float = 300.0


PACE = Pace()


def frame(event: RunEvent) -> str:
    """One event on the wire; its id is the sequence number within the run."""
    # JSON escapes newlines, so the data is one line; U+2028 and lone carriage returns are escaped as well.
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {json.dumps(event.data)}\n\n"


def run_events(
    read: Callable[[int], Sequence[RunEvent]],
    ending: Callable[[int], RunEvent | None],
    after: int,
    *,
    now: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Frames of a run's events after sequence number `after`, until the run or the stream ends.

    `read(seq)` gives the events after `seq`; `ending(seq)` makes the last event of a run that has ended without one
    to read (cancelled, or the client has seen it before). A database that does not answer ends the stream: the
    client comes again with what it has seen.
    """
    yield "retry: 1000\n\n"
    started = spoken = look = now()
    try:
        while now() - started < PACE.limit:
            events = read(after)
            for event in events:
                after, spoken = event.seq, now()
                yield frame(event)
                if event.kind in LAST:
                    return
            if not events and now() >= look:
                look = now() + PACE.look
                if (last := ending(after)) is not None:
                    yield frame(last)
                    return
            if now() - spoken >= PACE.heartbeat:
                spoken = now()
                yield ": alive\n\n"
            wait(PACE.poll)
    except SQLAlchemyError:
        log.warning("a stream ended because the database does not answer", exc_info=True)
