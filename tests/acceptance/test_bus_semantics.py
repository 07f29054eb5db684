"""Probes of Pub/Sub's semantics through the official client: our bus must pass, Google's emulator is compared."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api_core.exceptions import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    GoogleAPICallError,
    InvalidArgument,
    NotFound,
)
from google.cloud import pubsub_v1
from google.pubsub_v1 import PublisherClient as RawPublisherClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from local.bus.trial import Received, Receiver, emulator_jar, running_bus, running_emulator

_PROJECT = "projects/probe"
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
        name = f"{_PROJECT}/topics/t{uuid.uuid4().hex}"
        self.publisher.create_topic(name=name)
        return name

    def subscription(self, topic: str, **settings: Any) -> str:
        name = f"{_PROJECT}/subscriptions/s{uuid.uuid4().hex}"
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
_PROBES: list[Probe] = []


def _probe(probe: Probe) -> Probe:
    """A promise of Pub/Sub: a function that raises where the target does not hold it."""
    _PROBES.append(probe)
    return probe


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


@_probe
def wrong_filters_are_refused(t: Target) -> None:
    topic = t.topic()
    for text in ("attributes.name == 'x'", "attributes:a AND attributes:b OR attributes:c", "name = 1"):
        with pytest.raises(InvalidArgument):
            t.subscription(topic, filter=text)


@_probe
def what_does_not_exist_is_not_found(t: Target) -> None:
    absent = f"{_PROJECT}/topics/absent"
    with pytest.raises(NotFound):
        t.publish(absent, b"x")
    with pytest.raises(NotFound):
        t.subscription(absent)
    with pytest.raises(NotFound):
        t.subscriber.get_subscription(subscription=f"{_PROJECT}/subscriptions/absent")
    with pytest.raises(NotFound):
        t.subscriber.pull(subscription=f"{_PROJECT}/subscriptions/absent", max_messages=1)
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
        t.publisher.create_topic(name=f"{_PROJECT}/topics/1x")
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


@_probe
def resources_are_listed_and_deleted(t: Target) -> None:
    topic = t.topic()
    name = t.subscription(topic)
    assert topic in [one.name for one in t.publisher.list_topics(project=_PROJECT)]
    assert name in [one.name for one in t.subscriber.list_subscriptions(project=_PROJECT)]
    assert list(t.publisher.list_topic_subscriptions(topic=topic)) == [name]
    t.publisher.delete_topic(topic=topic)
    assert t.subscriber.get_subscription(subscription=name).topic == "_deleted-topic_"
    t.subscriber.delete_subscription(subscription=name)
    with pytest.raises(NotFound):
        t.subscriber.get_subscription(subscription=name)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Our bus, one for all probes: each makes its own topics."""
    with running_bus(tmp_path_factory.mktemp("bus")) as bus:
        target = Target(bus.pubsub, bus.advance)
        yield target
        target.close()


@pytest.mark.parametrize("probe", _PROBES, ids=lambda probe: probe.__name__)
def test_the_bus_keeps_the_promises_of_pubsub(probe: Probe, ours: Target) -> None:
    """Every probe holds on our bus."""
    probe(ours)


# Whatever else the emulator does differently: a probe of these that it does not pass is a wrong probe.
_CERTAIN = {
    "a_message_is_pulled_once_and_gone_after_its_ack",
    "a_nack_brings_a_message_back_at_once",
    "a_stream_delivers_and_acknowledges",
    "an_unacknowledged_message_comes_again_after_its_deadline",
    "names_are_taken_once",
    "status_200_acknowledges",
    "what_does_not_exist_is_not_found",
}


def test_the_probes_agree_with_the_official_emulator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The certain probes hold on Google's emulator too; the table shows where it differs from the bus."""
    jar = emulator_jar()
    if jar is None:
        pytest.skip("the official emulator is not installed")
    with running_emulator(jar, tmp_path) as address:
        target = Target(address, time.sleep)
        try:
            # The emulator's clock cannot be moved: let all probes wait at the same time.
            with ThreadPoolExecutor(len(_PROBES)) as pool:
                outcomes = list(pool.map(lambda probe: _outcome(probe, target), _PROBES))
        finally:
            target.close()
    differences = {
        probe.__name__: outcome for probe, outcome in zip(_PROBES, outcomes, strict=True) if outcome is not None
    }
    with capsys.disabled():
        print(f"\nPub/Sub probes: bus {len(_PROBES)}/{len(_PROBES)}, emulator {len(_PROBES) - len(differences)}")
        for name, outcome in differences.items():
            print(f"  emulator differs: {name.replace('_', ' '):60} {outcome}")
    assert not _CERTAIN & differences.keys()


def _outcome(probe: Probe, target: Target) -> str | None:
    """None if the probe holds, else why it does not."""
    try:
        probe(target)
    except (AssertionError, pytest.fail.Exception, GoogleAPICallError, TimeoutError, KeyError, ValueError) as error:
        return f"{type(error).__name__} {str(error).strip().splitlines()[0][:80] if str(error).strip() else ''}"
    return None
