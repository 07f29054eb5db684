"""Probes of Pub/Sub: topics and subscriptions are made, changed, listed and deleted, and what is wrong is refused."""

from __future__ import annotations

import pytest
from google.api_core.exceptions import AlreadyExists, InvalidArgument, NotFound

from tests.acceptance.pubsub_target import PROJECT, Probe, Target, listed

PROBES: list[Probe] = []
_probe = listed(PROBES)


@_probe
def wrong_filters_are_refused(t: Target) -> None:
    topic = t.topic()
    for text in ("attributes.name == 'x'", "attributes:a AND attributes:b OR attributes:c", "name = 1"):
        with pytest.raises(InvalidArgument):
            t.subscription(topic, filter=text)


@_probe
def what_does_not_exist_is_not_found(t: Target) -> None:
    absent = f"{PROJECT}/topics/absent"
    with pytest.raises(NotFound):
        t.publish(absent, b"x")
    with pytest.raises(NotFound):
        t.subscription(absent)
    with pytest.raises(NotFound):
        t.subscriber.get_subscription(subscription=f"{PROJECT}/subscriptions/absent")
    with pytest.raises(NotFound):
        t.subscriber.pull(subscription=f"{PROJECT}/subscriptions/absent", max_messages=1)
    with pytest.raises(NotFound):
        t.publisher.delete_topic(topic=absent)


@_probe
def names_are_taken_once(t: Target) -> None:
    topic = t.topic()
    subscription = t.subscription(topic)
    with pytest.raises(AlreadyExists):
        t.publisher.create_topic(name=topic)
    with pytest.raises(AlreadyExists):
        t.subscriber.create_subscription(name=subscription, topic=topic)


@_probe
def bad_names_and_limits_are_refused(t: Target) -> None:
    topic = t.topic()
    with pytest.raises(InvalidArgument):
        t.publisher.create_topic(name=f"{PROJECT}/topics/1x")
    with pytest.raises(InvalidArgument):
        t.subscription(topic, ack_deadline_seconds=5)
    with pytest.raises(InvalidArgument):
        t.subscription(topic, dead_letter_policy={"dead_letter_topic": topic, "max_delivery_attempts": 4})
    with pytest.raises(InvalidArgument):
        t.subscriber.pull(subscription=t.subscription(topic), max_messages=0)


@_probe
def unknown_ack_ids_are_refused(t: Target) -> None:
    with pytest.raises(InvalidArgument):
        t.subscriber.acknowledge(subscription=t.subscription(t.topic()), ack_ids=["nonsense"])


@_probe
def an_empty_message_is_refused(t: Target) -> None:
    with pytest.raises(InvalidArgument):
        t.publish(t.topic(), b"")


@_probe
def attribute_limits_are_kept(t: Target) -> None:
    topic = t.topic()
    t.publish(topic, b"x", **{"k" * 256: "v" * 1024})
    for attributes in ({"k" * 257: "v"}, {"k": "v" * 1025}, {f"k{n}": "v" for n in range(101)}, {"googly": "v"}):
        with pytest.raises(InvalidArgument):
            t.publish(topic, b"x", **attributes)


@_probe
def more_than_ten_megabytes_are_refused(t: Target) -> None:
    topic = t.topic()
    subscription = t.subscription(topic)
    t.raw.publish(topic=topic, messages=[{"data": b"x" * 9_900_000}])
    assert len(t.pull(subscription)[0].message.data) == 9_900_000
    with pytest.raises(InvalidArgument):
        t.raw.publish(topic=topic, messages=[{"data": b"x" * 10_000_001}])


@_probe
def subscriptions_are_updated_by_mask(t: Target) -> None:
    topic = t.topic()
    name = t.subscription(topic, ack_deadline_seconds=20)
    changed = {"name": name, "topic": topic, "ack_deadline_seconds": 77, "labels": {"a": "b"}}
    answer = t.subscriber.update_subscription(
        request={"subscription": changed, "update_mask": {"paths": ["ack_deadline_seconds"]}}
    )
    assert answer.ack_deadline_seconds == 77
    assert not answer.labels
    assert t.subscriber.get_subscription(subscription=name).ack_deadline_seconds == 77
    with pytest.raises(InvalidArgument):
        t.subscriber.update_subscription(request={"subscription": changed, "update_mask": {"paths": ["topic"]}})


@_probe
def resources_are_listed_and_deleted(t: Target) -> None:
    topic = t.topic()
    name = t.subscription(topic)
    assert topic in [one.name for one in t.publisher.list_topics(project=PROJECT)]
    assert name in [one.name for one in t.subscriber.list_subscriptions(project=PROJECT)]
    assert list(t.publisher.list_topic_subscriptions(topic=topic)) == [name]
    t.publisher.delete_topic(topic=topic)
    assert t.subscriber.get_subscription(subscription=name).topic == "_deleted-topic_"
    t.subscriber.delete_subscription(subscription=name)
    with pytest.raises(NotFound):
        t.subscriber.get_subscription(subscription=name)
