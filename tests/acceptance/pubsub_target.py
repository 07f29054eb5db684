"""One implementation of Pub/Sub, seen by the official clients, and what a probe of it is."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import grpc
from google.api_core.exceptions import DeadlineExceeded
from google.cloud import pubsub_v1
from google.pubsub_v1 import PublisherClient as RawPublisherClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from local.bus.trial import Received, Receiver

PROJECT = "projects/probe"
_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class Target:
    """One implementation of Pub/Sub, seen by official clients; `advance` lets time pass there."""

    def __init__(self, address: str, advance: Callable[[float], None]) -> None:
        self.advance = advance
        self._channels = [grpc.insecure_channel(address, options=_OPTIONS) for _ in range(2)]
        publisher = PublisherGrpcTransport(channel=self._channels[0])
        self.publisher: Any = pubsub_v1.PublisherClient(transport=publisher)
        # Without batches and without the library's own limits.
        self.raw: Any = RawPublisherClient(transport=publisher)
        subscriber = SubscriberGrpcTransport(channel=self._channels[1])
        self.subscriber: Any = pubsub_v1.SubscriberClient(transport=subscriber)
        self._receivers: list[Receiver] = []

    def close(self) -> None:
        self.publisher.stop()
        for channel in self._channels:
            channel.close()
        for receiver in self._receivers:
            receiver.close()

    def topic(self) -> str:
        name = f"{PROJECT}/topics/t{uuid.uuid4().hex}"
        self.publisher.create_topic(name=name)
        return name

    def subscription(self, topic: str, **settings: Any) -> str:
        name = f"{PROJECT}/subscriptions/s{uuid.uuid4().hex}"
        self.subscriber.create_subscription(request={"name": name, "topic": topic, **settings})
        return name

    def receiver(self, answer: Callable[[Received], int] = lambda request: 204) -> Receiver:
        self._receivers.append(Receiver(answer))
        return self._receivers[-1]

    def publish(self, topic: str, data: bytes, **attributes: str) -> str:
        message_id: str = self.publisher.publish(topic, data, **attributes).result(10)
        return message_id

    def pull(self, subscription: str, wait: float = 5.0) -> list[Any]:
        """Up to ten messages, [] if none comes within `wait` seconds."""
        try:
            answer = self.subscriber.pull(subscription=subscription, max_messages=10, timeout=wait, retry=None)
        except DeadlineExceeded:
            return []
        return list(answer.received_messages)

    def nothing(self, subscription: str) -> bool:
        """Whether a pull finds nothing now."""
        return not self.pull(subscription, 0.3)

    def nack(self, subscription: str, received: Any) -> None:
        self.subscriber.modify_ack_deadline(
            subscription=subscription, ack_ids=[received.ack_id], ack_deadline_seconds=0
        )


Probe = Callable[[Target], None]


def listed(probes: list[Probe]) -> Callable[[Probe], Probe]:
    """Puts a promise of Pub/Sub on a list: a function that raises where the target does not hold it."""

    def put(probe: Probe) -> Probe:
        probes.append(probe)
        return probe

    return put
