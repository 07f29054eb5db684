"""Push: as many workers per subscription as its service takes at once, each with a connection of its own.

A service in trouble is not hammered: when everything in flight fails in a row, or nobody listens, the subscription
pauses, tries one message, and doubles the pause until one succeeds. Other subscriptions do not notice.
"""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from datetime import UTC, datetime

from local.bus.backlog import Backlog, Delivery
from local.bus.outbound import Broken, Sender, Unreachable
from local.bus.tokens import Tokens
from local.bus.window import Holder
from local.bus.wire import PubsubMessage

log = logging.getLogger(__name__)

# "Push subscriptions": any of these acknowledges; everything else, and no answer, is a negative acknowledgement.
ACKNOWLEDGED = frozenset({102, 200, 201, 202, 204})
# Workers of a subscription that a client made: the bus knows nothing of the service behind it.
PARALLEL = 16
# Real seconds a worker without work stays; the first one always does.
_IDLE = 10.0
# Seconds: the first and the longest pause for a service that does not listen, or fails at everything.
_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
# select(), and a service on a laptop, take only so many connections.
_MOST = 100


class Pusher:
    """Pushes one subscription's messages to its endpoint until the subscription closes."""

    def __init__(self, backlog: Backlog, tokens: Tokens, parallel: int = PARALLEL) -> None:
        self._backlog = backlog
        self._tokens = tokens
        self._parallel = max(1, min(parallel, _MOST))
        self._holder = Holder()
        self._lock = threading.Lock()
        self._workers = 0
        self._failures = 0
        self._judged = 0.0
        backlog.throttle(None, 0)
        self._hire()

    def stop(self) -> None:
        """Take no further message; a push under way may still acknowledge."""
        self._backlog.release_waiters(self._holder)

    def _hire(self) -> None:
        with self._lock:
            if self._workers >= self._parallel or self._holder.closed:
                return
            self._workers += 1
        threading.Thread(target=self._work, name=f"push {self._backlog.policy.name}", daemon=True).start()

    def _work(self) -> None:
        sender: Sender | None = None
        endpoint = ""
        while not self._holder.closed and not self._backlog.closed:
            deliveries = self._backlog.lease(self._holder, 1, wait=_IDLE)
            if not deliveries:
                if self._dismissed():
                    break
                continue
            if self._backlog.has_ready() and not self._failures:
                self._hire()
            if sender is None or endpoint != self._backlog.policy.endpoint:
                endpoint = self._backlog.policy.endpoint
                sender = Sender(endpoint)
            self._push(sender, deliveries[0])
        if sender is not None:
            sender.close()

    def _dismissed(self) -> bool:
        """Whether this worker is one too many while there is nothing to do."""
        with self._lock:
            if self._workers > 1:
                self._workers -= 1
                return True
            return False

    def _push(self, sender: Sender, delivery: Delivery) -> None:
        backlog, policy = self._backlog, self._backlog.policy
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": "CloudPubSub-Google",
            "From": "noreply@google.com",
            "Authorization": self._tokens.bearer(policy.audience, policy.service_account),
        }
        body = push_body(delivery, policy.name, attempts=bool(policy.dead_letter_topic))
        started = time.monotonic()
        try:
            answer = sender.send("POST", headers, body, policy.ack_deadline)
        except Unreachable as error:
            self._failed(started, f"nobody listens ({error})", at_once=True)
            backlog.give_back(delivery.id, delivery.attempt)
        except Broken as error:
            self._failed(started, str(error))
            backlog.nack(delivery.id, delivery.attempt)
        else:
            if answer.status in ACKNOWLEDGED:
                backlog.ack([delivery.id])
                self._succeeded()
            else:
                self._failed(started, f"answered {answer.status}")
                backlog.nack(delivery.id, delivery.attempt)

    def _succeeded(self) -> None:
        if not self._failures:
            return
        with self._lock:
            self._failures = 0
        self._backlog.throttle(None, 0)

    def _failed(self, started: float, why: str, *, at_once: bool = False) -> None:
        with self._lock:
            if started < self._judged:
                return  # it was in flight when the pause began: what fails together is one failure of the service
            self._failures = max(self._failures, self._parallel if at_once else 0) + 1
            excess = self._failures - self._parallel
            if excess <= 0:
                return
            self._judged = time.monotonic()
        self._backlog.throttle(1, min(_LONGEST_PAUSE, _PAUSE * 2.0 ** min(excess - 1, 20)))
        if excess == 1:
            log.warning("%s: %s; the subscription waits for the service", self._backlog.policy.name, why)


def push_body(delivery: Delivery, subscription: str, *, attempts: bool) -> bytes:
    """The wrapped push request of the Pub/Sub documentation, both spellings of id and time as the cloud sends them.

    `deliveryAttempt` is there only when the subscription has a dead-letter policy.
    """
    message = PubsubMessage.FromString(delivery.body)
    id_, published = str(delivery.id), timestamp(delivery.published)
    content: dict[str, object] = {
        "data": base64.b64encode(message.data).decode(),
        "messageId": id_,
        "message_id": id_,
        "publishTime": published,
        "publish_time": published,
    }
    if message.attributes:
        content["attributes"] = dict(message.attributes)
    if message.ordering_key:
        content["orderingKey"] = message.ordering_key
    body: dict[str, object] = {"message": content, "subscription": subscription}
    if attempts:
        body["deliveryAttempt"] = delivery.attempt
    return json.dumps(body, separators=(",", ":")).encode()


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC with milliseconds, as in a push body."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
