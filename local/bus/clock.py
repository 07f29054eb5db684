"""The bus's notion of now, and the one thread that wakes whatever waits for a moment."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

# A laptop that was asleep does not wake a waiting thread at the right moment: look at the wall clock this often.
_LONGEST_NAP = 15.0


class Clock:
    """Wall clock plus what tests have added; `call_at` runs short callbacks, one at a time, when their time has come.

    Times are seconds since the epoch (UTC).
    """

    def __init__(self) -> None:
        self._offset = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._idle = True
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)

    def start(self) -> None:
        """Begin to run callbacks."""
        self._thread.start()

    def stop(self) -> None:
        """Run no further callback."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def now(self) -> float:
        """Seconds since the epoch, on the bus's clock."""
        return time.time() + self._offset

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        """Run `callback` on the clock's thread once `when` has come; it may come a little late, never early."""
        with self._changed:
            heapq.heappush(self._heap, (when, next(self._order), callback))
            if self._heap[0][0] == when:
                self._changed.notify_all()

    def advance(self, seconds: float) -> None:
        """Move now forward and return when everything that was due by then has run."""
        with self._changed:
            self._offset += seconds
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped or (self._idle and not self._due()), timeout=10)

    def _due(self) -> bool:
        return bool(self._heap) and self._heap[0][0] <= self.now()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle = True
                while not self._stopped and not self._due():
                    self._changed.notify_all()
                    nap = min(self._heap[0][0] - self.now(), _LONGEST_NAP) if self._heap else None
                    self._changed.wait(nap)
                if self._stopped:
                    return
                self._idle = False
                _, _, callback = heapq.heappop(self._heap)
            try:
                callback()
            except (RuntimeError, ValueError, KeyError, OSError):
                # One broken timer must not stop every retry, deadline and schedule of the process.
                log.exception("a timer failed")
