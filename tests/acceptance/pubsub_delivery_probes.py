"""Probes of Pub/Sub: what is pulled, streamed, tried again, filtered, given up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from tests.acceptance.pubsub_target import Probe, Target, listed

PROBES: list[Probe] = []
_probe = listed(PROBES)


@_probe
def a_message_is_pulled_once_and_gone_after_its_ack(t: Target) -> None:
    topic = t.topic()
    subscription = t.subscription(topic)
    published = t.publish(topic, b"data", colour="blue")
    (received,) = t.pull(subscription)
    assert received.message.data == b"data"
    assert dict(received.message.attributes) == {"colour": "blue"}
    assert received.message.message_id == published
    assert received.message.publish_time.timestamp() > 1_600_000_000
    t.subscriber.acknowledge(subscription=subscription, ack_ids=[received.ack_id])
    t.advance(11)
    assert t.nothing(subscription)


@_probe
def a_waiting_pull_gets_what_is_published_meanwhile(t: Target) -> None:
    topic = t.topic()
    subscription = t.subscription(topic)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(t.pull, subscription, 8.0)
        t.publish(topic, b"late")
        assert [received.message.data for received in waiting.result()] == [b"late"]


@_probe
def a_pull_that_gave_up_takes_nothing_away(t: Target) -> None:
    topic = t.topic()
    subscription = t.subscription(topic)
    assert t.pull(subscription, 0.2) == []
    t.publish(topic, b"x")
    assert len(t.pull(subscription)) == 1


@_probe
def every_subscription_gets_its_own_copy_from_its_creation_on(t: Target) -> None:
    topic = t.topic()
    first = t.subscription(topic)
    t.publish(topic, b"one")
    second = t.subscription(topic)
    t.publish(topic, b"two")
    seen = [sorted(_pull_all(t, subscription, count)) for subscription, count in ((first, 2), (second, 1))]
    assert seen == [[b"one", b"two"], [b"two"]]


def _pull_all(t: Target, subscription: str, count: int) -> list[bytes]:
    data: list[bytes] = []
    while len(data) < count:
        received = t.pull(subscription)
        assert received, f"only {data} arrived"
        data += [one.message.data for one in received]
        t.subscriber.acknowledge(subscription=subscription, ack_ids=[one.ack_id for one in received])
    assert t.nothing(subscription)
    return data


@_probe
def an_unacknowledged_message_comes_again_after_its_deadline(t: Target) -> None:
    topic = t.topic()
    subscription = t.subscription(topic, ack_deadline_seconds=10)
    t.publish(topic, b"x")
    assert t.pull(subscription)
    assert t.nothing(subscription)
    t.advance(10.5)
    assert t.pull(subscription)


@_probe
def a_longer_deadline_keeps_a_message_away(t: Target) -> None:
    topic = t.topic()
    subscription = t.subscription(topic, ack_deadline_seconds=10)
    t.publish(topic, b"x")
    (received,) = t.pull(subscription)
    t.subscriber.modify_ack_deadline(subscription=subscription, ack_ids=[received.ack_id], ack_deadline_seconds=60)
    t.advance(11)
    assert t.nothing(subscription)


@_probe
def a_nack_brings_a_message_back_at_once(t: Target) -> None:
    topic = t.topic()
    subscription = t.subscription(topic, ack_deadline_seconds=60)
    t.publish(topic, b"x")
    t.nack(subscription, t.pull(subscription)[0])
    assert t.pull(subscription)


@_probe
def a_late_ack_still_counts(t: Target) -> None:
    topic = t.topic()
    subscription = t.subscription(topic, ack_deadline_seconds=10)
    t.publish(topic, b"x")
    (received,) = t.pull(subscription)
    t.advance(10.5)
    t.subscriber.acknowledge(subscription=subscription, ack_ids=[received.ack_id])
    assert t.nothing(subscription)


@_probe
def a_stream_delivers_and_acknowledges(t: Target) -> None:
    topic = t.topic()
    subscription = t.subscription(topic, ack_deadline_seconds=10)
    seen: list[bytes] = []
    done = threading.Event()

    def take(message: Any) -> None:
        seen.append(message.data)
        message.ack()
        if len(set(seen)) == 50:
            done.set()

    stream = t.subscriber.subscribe(subscription, take)
    for number in range(50):
        t.publisher.publish(topic, str(number).encode())
    assert done.wait(10)
    stream.cancel()
    stream.result(10)
    t.advance(11)
    assert len(seen) == 50
    assert t.nothing(subscription)


@_probe
def a_stream_leases_no_more_than_its_flow_control_allows(t: Target) -> None:
    topic = t.topic()
    subscription = t.subscription(topic, ack_deadline_seconds=60)
    requests: Any = iter([{"subscription": subscription, "stream_ack_deadline_seconds": 60}])
    for number in range(20):
        t.publish(topic, str(number).encode())
    hold = threading.Event()

    def talk() -> Iterator[dict[str, Any]]:
        yield {**next(requests), "max_outstanding_messages": 4, "client_id": "probe"}
        hold.wait(10)

    stream = t.subscriber.streaming_pull(requests=talk(), timeout=15)
    leased: list[Any] = []
    try:
        while len(leased) < 4:
            leased += next(stream).received_messages
        assert len(leased) == 4
        rest: list[Any] = []
        while len(rest) < 16 and (more := t.pull(subscription)):
            rest += more
        assert len(rest) == 16
    finally:
        hold.set()
        stream.cancel()


@_probe
def the_retry_backoff_doubles_up_to_its_maximum(t: Target) -> None:
    topic = t.topic()
    policy = {"minimum_backoff": timedelta(seconds=20), "maximum_backoff": timedelta(seconds=40)}
    subscription = t.subscription(topic, retry_policy=policy, ack_deadline_seconds=60)
    t.publish(topic, b"x")
    for backoff in (20, 40, 40):
        t.nack(subscription, t.pull(subscription)[0])
        t.advance(backoff - 9)  # what is left is time for a busy machine to look
        assert t.nothing(subscription)
        t.advance(9)


@_probe
def a_message_moves_to_the_dead_letters_after_its_attempts(t: Target) -> None:
    topic, graves = t.topic(), t.topic()
    policy = {"dead_letter_topic": graves, "max_delivery_attempts": 5}
    subscription, buried = t.subscription(topic, dead_letter_policy=policy), t.subscription(graves)
    t.publish(topic, b"poison", colour="green")
    for attempt in range(1, 6):
        (received,) = t.pull(subscription)
        assert received.delivery_attempt == attempt
        t.nack(subscription, received)
    (grave,) = t.pull(buried)
    assert t.nothing(subscription)
    attributes = dict(grave.message.attributes)
    assert grave.message.data == b"poison"
    assert attributes["colour"] == "green"
    assert attributes["CloudPubSubDeadLetterSourceDeliveryCount"] == "5"
    assert attributes["CloudPubSubDeadLetterSourceSubscription"] == subscription.rpartition("/")[2]
    assert attributes["CloudPubSubDeadLetterSourceSubscriptionProject"] == "probe"
    assert attributes["CloudPubSubDeadLetterSourceTopicPublishTime"]


@_probe
def filters_choose_messages(t: Target) -> None:
    topic = t.topic()
    wanted = 'attributes.name = "embed" AND (attributes:lane OR NOT hasPrefix(attributes.tenant, "big-"))'
    subscription = t.subscription(topic, filter=wanted)
    t.publish(topic, b"no", name="embed", tenant="big-one")
    t.publish(topic, b"no", name="ingest", tenant="small")
    t.publish(topic, b"lane", name="embed", tenant="big-one", lane="fast")
    t.publish(topic, b"small", name="embed", tenant="small")
    assert sorted(_pull_all(t, subscription, 2)) == [b"lane", b"small"]
