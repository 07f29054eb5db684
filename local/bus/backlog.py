"""What one subscription has yet to deliver: leases, deadlines and backoffs over a window of its stored messages.

ready ──lease──▶ leased ──ack──▶ (deleted)
  ▲                 │ nack or deadline
  └──── delayed ◀───┘           after the last attempt ──▶ dead letter
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from local.bus.clock import Clock
from local.bus.policy import Policy
from local.bus.store import Store, delete_messages, record_failure
from local.bus.window import Held, Holder, Window


class Delivery(NamedTuple):
    """One lease: `attempt` counts from 1, `published` is in seconds since the epoch."""

    id: int
    attempt: int
    published: float
    body: bytes


class Backlog:
    """The deliveries of one subscription. Every public method may be called from any thread."""

    def __init__(
        self, key: int, policy: Policy, store: Store, clock: Clock, bury: Callable[[Backlog, int, int], None]
    ) -> None:
        """`bury(backlog, id, attempts)` forwards a message to the dead-letter topic and deletes it here."""
        self.key = key
        self.policy = policy
        self.delivered = 0
        self.dead_lettered = 0
        self._store, self._clock, self._bury = store, clock, bury
        self._changed = threading.Condition()
        self._window = Window(key, store)
        self._delayed: list[tuple[float, int]] = []
        self._deadlines: list[tuple[float, int]] = []
        self._leased = 0
        self._wake = float("inf")
        self._closed = False
        # How many may be leased at once, and from when on: the push side narrows these for a service in trouble.
        self._width: int | None = None
        self._not_before = 0.0
        self._stored = store.count(key)

    # -- what comes in

    def arrived(self, id_: int, published: float, body: bytes) -> None:
        """A message was committed. Called by the store's writer, in the order of ids."""
        with self._changed:
            self._stored += 1
            if self._window.offer(id_, published, body):
                self._wake_waiters()

    def _make_ready(self, held: Held) -> None:
        self._window.make_ready(held)
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        if self.policy.endpoint:
            self._changed.notify()
        else:
            self._changed.notify_all()  # a waiting stream without room would swallow a single wake-up

    # -- what goes out

    def lease(self, holder: Holder, limit: int, *, wait: float = 0.0, seconds: float | None = None) -> list[Delivery]:
        """Up to `limit` deliveries, each to be acknowledged within `seconds` (default: the ack deadline).

        Waits at most `wait` real seconds for the first; returns [] then, and when the holder or the backlog closes.
        """
        until = time.monotonic() + wait
        with self._changed:
            while not self._closed and not holder.closed:
                deliveries = self._take(holder, limit, seconds or self.policy.ack_deadline)
                left = until - time.monotonic()
                if deliveries or left <= 0:
                    return deliveries
                self._changed.wait(left)
        return []

    def _take(self, holder: Holder, limit: int, seconds: float) -> list[Delivery]:
        now = self._clock.now()
        taken: list[Delivery] = []
        while len(taken) < limit and holder.room() and now >= self._not_before:
            if self._width is not None and self._leased >= self._width:
                break
            found = self._next(now)
            if found is None:
                break
            held, body = found
            held.holder, held.deadline = holder, now + seconds
            holder.messages += 1
            holder.bytes += held.size
            self._leased += 1
            heapq.heappush(self._deadlines, (held.deadline, held.id))
            taken.append(Delivery(held.id, held.failures + 1, held.published, body))
        if taken:
            self._wake_at(now + seconds)
            if len(self._deadlines) > 2 * self._leased + 1000:
                # Acknowledged leases leave their deadline behind: at full speed that would be a million of them.
                self._deadlines = [
                    (held.deadline, held.id) for held in self._window.held.values() if held.holder is not None
                ]
                heapq.heapify(self._deadlines)
        return taken

    def _next(self, now: float) -> tuple[Held, bytes] | None:
        """The next deliverable message and its body; what has outlived its retention is forgotten on the way."""
        while True:
            for due, held in self._window.refill(now):
                self._delay(held, due)
            found = self._window.take()
            if found is None and self._window.has_ready():
                continue
            if found is None or now - found[0].published <= self.policy.retention:
                return found
            self._forget(found[0].id)

    def has_ready(self) -> bool:
        """Whether a lease would probably find something."""
        return self._window.has_ready()

    # -- what became of it

    def ack(self, ids: Iterable[int]) -> None:
        """Forget messages for good. A late acknowledgement counts too: the work is done."""
        gone = list(ids)
        if not gone:
            return
        with self._changed:
            for id_ in gone:
                held = self._window.held.pop(id_, None)
                if held is not None:
                    held.gone = True
                    self._release(held)
        self._store.later(delete_messages(self.key, gone), self._acked)

    def _acked(self, rows: int) -> None:
        with self._changed:
            self._stored -= rows
            self.delivered += rows

    def _forget(self, id_: int) -> None:
        self._window.held.pop(id_, None)
        self._store.later(delete_messages(self.key, [id_]), self._dropped)

    def _dropped(self, rows: int) -> None:
        with self._changed:
            self._stored -= rows

    def nack(self, id_: int, attempt: int) -> None:
        """The delivery failed: again after the backoff, or to the dead letters."""
        with self._changed:
            held = self._window.held.get(id_)
            if held is not None and held.holder is not None and held.failures + 1 == attempt:
                self._fail(held)

    def give_back(self, id_: int, attempt: int) -> None:
        """The delivery never reached anyone: no attempt is counted, the message is ready again."""
        with self._changed:
            held = self._window.held.get(id_)
            if held is not None and held.holder is not None and held.failures + 1 == attempt:
                self._release(held)
                self._make_ready(held)

    def extend(self, id_: int, attempt: int, seconds: float) -> bool:
        """Move the deadline of a current lease; False if the lease is over."""
        with self._changed:
            held = self._window.held.get(id_)
            if held is None or held.holder is None or held.failures + 1 != attempt:
                return False
            held.deadline = self._clock.now() + seconds
            heapq.heappush(self._deadlines, (held.deadline, id_))
            self._wake_at(held.deadline)
            return True

    def _release(self, held: Held) -> None:
        holder, held.holder = held.holder, None
        if holder is not None:
            self._leased -= 1
            holder.messages -= 1
            holder.bytes -= held.size
            if holder.limit_messages or holder.limit_bytes:
                self._changed.notify_all()

    def _fail(self, held: Held) -> None:
        self._release(held)
        held.failures += 1
        policy = self.policy
        if policy.dead_letter_topic and held.failures >= policy.attempts:
            self._bury(self, held.id, held.failures)
            return
        due = self._clock.now() + policy.backoff(held.failures)
        self._store.later(record_failure(self.key, held.id, held.failures, due))
        self._delay(held, due)

    def buried(self, id_: int) -> None:
        """The message now lies in the dead-letter topic."""
        with self._changed:
            self.dead_lettered += 1
            self._stored -= 1
            held = self._window.held.pop(id_, None)
            if held is not None:
                held.gone = True

    def try_later(self, id_: int) -> None:
        """The message could not be forwarded: deliver it once more after the backoff, as the cloud does."""
        with self._changed:
            held = self._window.held.get(id_)
            if held is not None:
                self._delay(held, self._clock.now() + max(1.0, self.policy.backoff(held.failures)))

    def _delay(self, held: Held, due: float) -> None:
        if due <= self._clock.now():
            self._make_ready(held)
            return
        heapq.heappush(self._delayed, (due, held.id))
        self._wake_at(due)

    # -- time

    def _wake_at(self, when: float) -> None:
        if when < self._wake:
            self._wake = when
            self._clock.call_at(when, lambda: self._tick(when))

    def _tick(self, scheduled: float) -> None:
        with self._changed:
            if scheduled != self._wake:
                return  # an earlier wake-up took its place
            now = self._clock.now()
            self._wake = float("inf")
            while self._deadlines and self._deadlines[0][0] <= now:
                _, id_ = heapq.heappop(self._deadlines)
                held = self._window.held.get(id_)
                if held is not None and held.holder is not None and held.deadline <= now:
                    self._fail(held)
            while self._delayed and self._delayed[0][0] <= now:
                held = self._window.held.get(heapq.heappop(self._delayed)[1])
                if held is not None:
                    self._make_ready(held)
            for heap in (self._deadlines, self._delayed):
                if heap:
                    self._wake_at(heap[0][0])
            if self._not_before > now:
                self._wake_at(self._not_before)
            self._changed.notify_all()

    # -- for the push side, the doors and the status page

    def throttle(self, width: int | None, pause: float) -> None:
        """Lease nothing for `pause` seconds and then at most `width` at once (None: no limit)."""
        with self._changed:
            self._width = width
            self._not_before = self._clock.now() + pause if pause else 0.0
            if pause:
                self._wake_at(self._not_before)
            else:
                self._changed.notify_all()

    def update(self, policy: Policy) -> None:
        """Follow a changed subscription from the next delivery on."""
        with self._changed:
            self.policy = policy
            self._changed.notify_all()

    def release_waiters(self, holder: Holder) -> None:
        """End the waiting of a holder that is going away; its leases run into their deadlines."""
        with self._changed:
            holder.closed = True
            self._changed.notify_all()

    def close(self) -> None:
        """Deliver nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def expired(self, rows: int) -> None:
        """The store dropped messages that had outlived their retention."""
        self._dropped(rows)

    @property
    def closed(self) -> bool:
        """Whether the subscription is gone."""
        return self._closed

    def status(self) -> dict[str, float | int]:
        """Counts for `GET /_status`; `delivered` and `dead_lettered` since the start of the process."""
        oldest = self._store.oldest(self.key)
        with self._changed:
            return {
                "backlog": self._stored,
                "in_flight": self._leased,
                "oldest_age_seconds": round(max(0.0, self._clock.now() - oldest), 3) if oldest is not None else 0,
                "delivered": self.delivered,
                "dead_lettered": self.dead_lettered,
            }
