"""Official clients of a running bus, and what it says about itself."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import grpc
from google.api_core.exceptions import DeadlineExceeded
from google.cloud import pubsub_v1
from google.pubsub_v1 import PublisherClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from local.bus.trial import OurBus


class Clients:
    """Official clients of one bus; `raw` publishes without batches."""

    def __init__(self, address: str) -> None:
        self.topic, self.subscription = (
            f"projects/p/{kind}/x{uuid.uuid4().hex}" for kind in ("topics", "subscriptions")
        )
        # Channels of their own: shared ones would keep waiting out the backoff of the bus that was killed.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.insecure_channel(address, options=options) for _ in range(2)]
        self.raw: Any = PublisherClient(transport=PublisherGrpcTransport(channel=self._channels[0]))
        self.subscriber: Any = pubsub_v1.SubscriberClient(transport=SubscriberGrpcTransport(channel=self._channels[1]))

    def make(self, **settings: Any) -> None:
        """The topic and the subscription of a test."""
        self.raw.create_topic(name=self.topic)
        self.subscriber.create_subscription(request={"name": self.subscription, "topic": self.topic, **settings})

    def publish(self, *data: bytes, topic: str = "") -> list[str]:
        answer = self.raw.publish(
            topic=topic or self.topic, messages=[{"data": one} for one in data], timeout=20, retry=None
        )
        return list(answer.message_ids)

    def pull(self, wait: float = 5.0, subscription: str = "") -> list[Any]:
        try:
            answer = self.subscriber.pull(
                subscription=subscription or self.subscription, max_messages=1000, timeout=wait, retry=None
            )
        except DeadlineExceeded:
            return []
        return list(answer.received_messages)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


def wait(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Until the condition holds; fails when it does not in time."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


def state(bus: OurBus, subscription: str) -> dict[str, Any]:
    """What the bus says of a subscription: backlog, delivered and so on."""
    state: dict[str, Any] = bus.get("/_status")["subscriptions"][subscription]
    return state
