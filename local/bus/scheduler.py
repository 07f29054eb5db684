"""Cloud Scheduler: the topology's schedules publish run-job commands. A slot fires at most once, a missed one too."""

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import NAMESPACE_URL, uuid5

from cronsim import CronSim

from local.bus.broker import Broker
from local.bus.clock import Clock
from local.bus.refusal import Refused
from local.bus.store import Store
from local.bus.wire import Pb, PubsubMessage

log = logging.getLogger(__name__)

# The wire name and version of the command (docs: event reference); the bus knows no other message of the product.
_COMMAND, _VERSION = "run-job", 1


@dataclass(frozen=True)
class Schedule:
    """One line of the topology; `cron` is in UTC, `topic` a full name."""

    job: str
    cron: str
    topic: str

    def slot_after(self, moment: float) -> float:
        """The first slot later than `moment`, in seconds since the epoch."""
        return next(CronSim(self.cron, datetime.fromtimestamp(moment, UTC))).timestamp()

    def slot_until(self, moment: float) -> float:
        """The latest slot not later than `moment`."""
        # Backwards iteration excludes its start: step over the running second.
        start = datetime.fromtimestamp(int(moment) + 1, UTC)
        return next(CronSim(self.cron, start, reverse=True)).timestamp()


class Scheduler:
    """Runs the schedules on the clock's thread; the last slot of each is stored with the messages."""

    def __init__(self, schedules: Sequence[Schedule], broker: Broker, store: Store, clock: Clock) -> None:
        """Raises cronsim.CronSimError for an expression that is none."""
        self._broker, self._store, self._clock = broker, store, clock
        self._lock = threading.Lock()
        self._last: dict[str, float] = dict(store.rows("SELECT job, last FROM schedules"))
        self._schedules = list(schedules)
        for schedule in schedules:
            schedule.slot_after(clock.now())

    def start(self) -> None:
        """Fire what was missed while the bus was away, once each, and wait for the next slots."""
        now = self._clock.now()
        for schedule in self._schedules:
            # A schedule never seen before begins with its next slot.
            if schedule.job not in self._last:
                self._remember(schedule, schedule.slot_until(now))
            self._fire(schedule)

    def _fire(self, schedule: Schedule) -> None:
        now = self._clock.now()
        slot = schedule.slot_until(now)
        if slot > self._last[schedule.job]:
            # Published first, remembered second: a kill in between publishes the slot again, with the same event id
            # and idempotency key. The other order could lose it.
            try:
                self._broker.publish(schedule.topic, [run_job(schedule.job, slot, now)])
            except Refused as refusal:
                log.error("schedule %s: %s", schedule.job, refusal.message)
            self._remember(schedule, slot)
        self._clock.call_at(schedule.slot_after(now), lambda: self._fire(schedule))

    def _remember(self, schedule: Schedule, slot: float) -> None:
        with self._lock:
            self._last[schedule.job] = slot

        def operation(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO schedules (job, last) VALUES (?, ?)", (schedule.job, slot))

        self._store.submit(operation).result()

    def status(self) -> dict[str, dict[str, str]]:
        """The last and the next slot of each schedule."""
        now = self._clock.now()
        with self._lock:
            return {
                one.job: {"last": _iso(self._last.get(one.job, 0.0)), "next": _iso(one.slot_after(now))}
                for one in self._schedules
            }


def run_job(job: str, slot: float, now: float) -> Pb:
    """The run-job command of one slot. The same slot always has the same event id and idempotency key."""
    at = _iso(slot)
    key = f"{job}@{at}"
    attributes = {
        "name": _COMMAND,
        "version": str(_VERSION),
        "event_id": str(uuid5(NAMESPACE_URL, f"noesis2:run-job:{key}")),
        "traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01",
    }
    data = {
        **attributes,
        "version": _VERSION,
        "occurred_at": _iso(now),
        "idempotency_key": key,
        "job": job,
        "slot": at,
    }
    return PubsubMessage(data=json.dumps(data).encode(), attributes=attributes)


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
