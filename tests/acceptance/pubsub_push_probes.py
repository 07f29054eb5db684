"""Probes of Pub/Sub: what is pushed, and which answers acknowledge it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest
from google.api_core.exceptions import FailedPrecondition

from local.bus.trial import Received, Receiver
from tests.acceptance.pubsub_target import Probe, Target, listed

PROBES: list[Probe] = []
_probe = listed(PROBES)


@_probe
def a_push_has_the_documented_body(t: Target) -> None:
    receiver, topic = t.receiver(), t.topic()
    subscription = t.subscription(topic, push_config={"push_endpoint": f"{receiver.url}/door?x=1"})
    published = t.publish(topic, b"\x00\xff", colour="blue")
    (request,) = receiver.wait_for(lambda received: len(received) == 1)
    message = request.json["message"]
    assert request.path == "/door?x=1"
    assert request.json["subscription"] == subscription
    assert request.headers["Content-Type"] == "application/json"
    assert message["data"] == "AP8="
    assert message["attributes"] == {"colour": "blue"}
    assert message["messageId"] == message["message_id"] == published
    assert message["publishTime"] == message["publish_time"]
    assert message["publishTime"].endswith("Z")
    assert "deliveryAttempt" not in request.json


@_probe
def a_push_counts_attempts_under_a_dead_letter_policy(t: Target) -> None:
    receiver, topic = t.receiver(_fails(1)), t.topic()
    t.subscription(
        topic,
        push_config={"push_endpoint": receiver.url},
        dead_letter_policy={"dead_letter_topic": t.topic(), "max_delivery_attempts": 5},
        retry_policy={"minimum_backoff": timedelta(seconds=1), "maximum_backoff": timedelta(seconds=10)},
    )
    t.publish(topic, b"x")
    receiver.wait_for(lambda received: len(received) == 1)
    _until(t, receiver, 2)
    assert [request.json.get("deliveryAttempt") for request in receiver.received] == [1, 2]


@_probe
def a_push_carries_the_ordering_key(t: Target) -> None:
    receiver, topic = t.receiver(), t.topic()
    t.subscription(topic, push_config={"push_endpoint": receiver.url}, enable_message_ordering=True)
    t.raw.publish(topic=topic, messages=[{"data": b"x", "ordering_key": "k"}])
    (request,) = receiver.wait_for(lambda received: len(received) == 1)
    assert request.json["message"]["orderingKey"] == "k"


def _fails(times: int, status: int = 503) -> Callable[[Received], int]:
    answers = iter([status] * times)
    return lambda request: next(answers, 204)


def _until(t: Target, receiver: Receiver, count: int) -> None:
    """Let seconds pass until so many requests have arrived."""
    for _ in range(12):
        try:
            receiver.wait_for(lambda received: len(received) >= count, 0.3)
            return
        except TimeoutError:
            t.advance(1)
    raise AssertionError(f"{len(receiver.received)} of {count} requests arrived")


def _holds(data: bytes, received: list[Received]) -> bool:
    return any(request.data == data for request in received)


def _acknowledges(t: Target, status: int) -> bool:
    """Whether an answer with this status acknowledges a push."""
    receiver, topic = t.receiver(), t.topic()
    receiver.answer = lambda request: status if request.data == b"x" else 200
    t.subscription(topic, push_config={"push_endpoint": receiver.url}, ack_deadline_seconds=10)
    t.publish(topic, b"x")
    receiver.wait_for(lambda received: len(received) == 1)
    for mark in (b"mark 1", b"mark 2"):
        t.advance(1)
        t.publish(topic, mark)
        receiver.wait_for(partial(_holds, mark))
    return sum(request.data == b"x" for request in receiver.received) == 1


@_probe
def status_102_acknowledges(t: Target) -> None:
    assert _acknowledges(t, 102)


@_probe
def status_200_acknowledges(t: Target) -> None:
    assert _acknowledges(t, 200)


@_probe
def status_201_acknowledges(t: Target) -> None:
    assert _acknowledges(t, 201)


@_probe
def status_202_acknowledges(t: Target) -> None:
    assert _acknowledges(t, 202)


@_probe
def status_204_acknowledges(t: Target) -> None:
    assert _acknowledges(t, 204)


@_probe
def status_302_400_and_500_do_not_acknowledge(t: Target) -> None:
    for status in (302, 400, 500):
        receiver, topic = t.receiver(_fails(1, status)), t.topic()
        t.subscription(topic, push_config={"push_endpoint": receiver.url}, ack_deadline_seconds=10)
        t.publish(topic, b"x")
        _until(t, receiver, 2)


@_probe
def pushes_run_in_parallel(t: Target) -> None:
    together = threading.Barrier(8)

    def answer(request: Received) -> int:
        try:
            together.wait(20)
        except threading.BrokenBarrierError:
            return 503
        return 204

    receiver, topic = t.receiver(answer), t.topic()
    # No message comes a second time and makes up the number.
    t.subscription(topic, push_config={"push_endpoint": receiver.url}, ack_deadline_seconds=60)
    for number in range(8):
        t.publisher.publish(topic, str(number).encode())
    received = receiver.wait_for(lambda received: len(received) >= 8, 20)
    assert not together.broken
    assert len({request.data for request in received}) == 8


@_probe
def push_and_pull_are_exchanged_by_the_push_config(t: Target) -> None:
    receiver, topic = t.receiver(), t.topic()
    name = t.subscription(topic)
    t.subscriber.modify_push_config(subscription=name, push_config={"push_endpoint": receiver.url})
    t.publish(topic, b"pushed")
    receiver.wait_for(lambda received: len(received) == 1)
    t.subscriber.modify_push_config(subscription=name, push_config={})
    t.publish(topic, b"pulled")
    assert [one.message.data for one in t.pull(name)] == [b"pulled"]


@_probe
def a_push_subscription_is_not_pulled(t: Target) -> None:
    name = t.subscription(t.topic(), push_config={"push_endpoint": "http://127.0.0.1:9/x"})
    with pytest.raises(FailedPrecondition):
        t.subscriber.pull(subscription=name, max_messages=1, timeout=2)
