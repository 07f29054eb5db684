"""The part of a subscription's messages that is in memory: what is ready to go out, and what is on its way.

The bodies of at most `_MESSAGES` messages or `_BYTES` are held; everything behind them waits in SQLite, and is read
in the order of ids when the window has run empty.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from local.bus.store import Store

_MESSAGES = 500
_BYTES = 4_000_000


class Holder:
    """Who has leased messages, with the limits of its flow control (0: none)."""

    def __init__(self, messages: int = 0, size: int = 0) -> None:
        self.limit_messages = messages
        self.limit_bytes = size
        self.messages = 0
        self.bytes = 0
        self.closed = False

    def room(self) -> bool:
        """Whether one more message may be leased."""
        return not (
            (self.limit_messages and self.messages >= self.limit_messages)
            or (self.limit_bytes and self.bytes >= self.limit_bytes)
        )


@dataclass(slots=True, eq=False)
class Held:
    """A message the window has seen; `holder` is set while it is leased, `body` only while it is ready."""

    id: int
    failures: int
    published: float
    size: int
    body: bytes | None = None
    holder: Holder | None = None
    deadline: float = 0.0
    gone: bool = False


class Window:
    """Not for use without its backlog's lock. `held` are the messages that are ready, leased or delayed, by id."""

    def __init__(self, key: int, store: Store) -> None:
        self.held: dict[int, Held] = {}
        self._key, self._store = key, store
        self._ready: deque[Held] = deque()
        self._bytes = 0
        # Rows with a larger id than this have not been looked at; `behind` says that there are such rows.
        self._seen = 0
        self._behind = store.count(key) > 0

    def offer(self, id_: int, published: float, body: bytes) -> bool:
        """Take a message that was just committed, if there is room for it; otherwise it is read later."""
        if id_ <= self._seen:
            return False  # read from the store between its COMMIT and this call
        if self._behind or len(self._ready) >= _MESSAGES or self._bytes >= _BYTES:
            self._behind = True
            return False
        self._seen = id_
        held = self.held[id_] = Held(id_, 0, published, len(body))
        self.make_ready(held, body)
        return True

    def make_ready(self, held: Held, body: bytes | None = None) -> None:
        """Put a message at the end of what is ready; without its body, that is read when its turn comes."""
        held.body = body
        if body is not None:
            self._bytes += held.size
        self._ready.append(held)

    def refill(self, now: float) -> list[tuple[float, Held]]:
        """Read on while nothing is ready; what has yet to wait for its backoff is returned with its time."""
        waiting: list[tuple[float, Held]] = []
        while not self._ready and self._behind:
            rows = self._store.messages_after(self._key, self._seen, _MESSAGES, _BYTES)
            self._behind = bool(rows)
            for row in rows:
                self._seen = row.id
                held = self.held[row.id] = Held(row.id, row.failures, row.published, len(row.body))
                if row.due > now:
                    waiting.append((row.due, held))
                else:
                    self.make_ready(held, row.body)
        return waiting

    def take(self) -> tuple[Held, bytes] | None:
        """The next ready message and its body, or None."""
        while self._ready:
            held = self._ready.popleft()
            body, held.body = held.body, None
            if body is not None:
                self._bytes -= held.size
            if held.gone:
                continue
            body = body if body is not None else self._store.body(self._key, held.id)
            if body is not None:
                return held, body
            self.held.pop(held.id, None)
        return None

    def has_ready(self) -> bool:
        """Whether there would probably be something to take."""
        return bool(self._ready) or self._behind
