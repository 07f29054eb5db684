"""What a worker of the delivery test does: its share of the deliveries, in random order, into the real doors.

What the doors publish is delivered several times too, at random places of what is left.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from shared import messaging
from shared.messaging import Outgoing
from tests.chaos.crash_points import CrashPoints
from tests.chaos.ingestion_work import APPS
from tests.chaos.wire import PUSHES, Kept

COPIES = 3
"""How often a command of ours is delivered at most."""


class _Carrier:
    """Keeps what the doors publish until it is mixed into what is left."""

    def __init__(self) -> None:
        self.fresh: list[Kept] = []
        self.later: list[Kept] = []
        self.heard: list[str] = []

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """Take messages."""
        for message in messages:
            if message.topic in PUSHES:
                self.fresh.append(_kept(message))
            else:
                self.heard.append(message.data)

    def publish_later(self, message: Outgoing) -> None:
        """Take a message for the next round."""
        self.later.append(_kept(message))


def _kept(message: Outgoing) -> Kept:
    return Kept(str(message.event_id), message.topic, message.data, message.attributes)


def deliver_all(job: dict[str, Any], _points: CrashPoints) -> dict[str, Any]:
    """Push `job["messages"]` by the indices of `job["order"]`; returns what was heard, postponed, and the statuses."""
    carrier, chance = _Carrier(), random.Random(job["seed"])
    messaging.use_bus(carrier)
    messages = [Kept(**message) for message in job["messages"]]
    left = [messages[index] for index in reversed(job["order"])]
    statuses: dict[str, int] = {}
    delivered = 0
    while left:
        kept = left.pop()
        status = str(_push(kept, job["bearers"][kept.topic]))
        delivered += 1
        statuses[status] = statuses.get(status, 0) + 1
        if status != "204":
            assert statuses[status] <= len(messages), "nothing but refusals"
            left.insert(chance.randrange(len(left) + 1), kept)
        for fresh in carrier.fresh:
            for _ in range(chance.randint(1, COPIES)):
                left.insert(chance.randrange(len(left) + 1), fresh)
        carrier.fresh.clear()
    later = [
        {"name": one.name, "topic": one.topic, "data": one.data, "attributes": one.attributes} for one in carrier.later
    ]
    return {"heard": carrier.heard, "later": later, "statuses": statuses, "delivered": delivered}


def _push(kept: Kept, bearer: str) -> int:
    service, path, _ = PUSHES[kept.topic]
    with APPS[service].test_client() as client:
        return client.post(path, json=kept.push(), headers={"Authorization": bearer}).status_code
