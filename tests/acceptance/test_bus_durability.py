"""The bus as a process: what it promised survives kill -9, it stays small, and it ends cleanly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from google.api_core.exceptions import GoogleAPICallError

from local.bus.trial import OurBus, Receiver, running_bus
from tests.acceptance.bus_clients import Clients, state, wait


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[OurBus]:
    """A bus of its own: it is going to be killed."""
    with running_bus(tmp_path) as bus:
        yield bus


@pytest.fixture
def clients(bus: OurBus) -> Iterator[Clients]:
    """Clients of the bus."""
    clients = Clients(bus.pubsub)
    yield clients
    clients.close()


def _restart(bus: OurBus, clients: Clients) -> Clients:
    """kill -9, start again, new connections."""
    bus.kill()
    clients.close()
    bus.start()
    again = Clients(bus.pubsub)
    again.topic, again.subscription = clients.topic, clients.subscription
    return again


def test_a_confirmed_publish_survives_kill_9(bus: OurBus, clients: Clients) -> None:
    """Killed in the middle of four publishers, the bus still delivers every message it gave an id for."""
    clients.make(ack_deadline_seconds=600)
    confirmed: list[str] = []

    def publish() -> None:
        try:
            while True:
                confirmed.extend(clients.publish(b"x" * 300, b"y" * 300))
        except GoogleAPICallError:
            return  # the bus is gone

    publishers = [threading.Thread(target=publish) for _ in range(4)]
    for publisher in publishers:
        publisher.start()
    wait(lambda: len(confirmed) > 400)
    bus.kill()
    for publisher in publishers:
        publisher.join(20)
    bus.start()
    again = Clients(bus.pubsub)
    again.subscription = clients.subscription
    seen: set[str] = set()
    while not set(confirmed) <= seen and (received := again.pull()):
        seen |= {one.message.message_id for one in received}
    again.close()
    assert len(set(confirmed)) == len(confirmed) > 400
    assert set(confirmed) <= seen


def test_attempts_acks_and_ids_survive_kill_9(bus: OurBus, clients: Clients) -> None:
    """After kill -9 a failed message counts on, an acknowledged one stays away, and no id is given twice."""
    clients.make(
        ack_deadline_seconds=60, dead_letter_policy={"dead_letter_topic": clients.topic, "max_delivery_attempts": 5}
    )
    ids = clients.publish(b"done", b"failing")
    by_data = {one.message.data: one for one in clients.pull()}
    clients.subscriber.acknowledge(subscription=clients.subscription, ack_ids=[by_data[b"done"].ack_id])
    clients.subscriber.modify_ack_deadline(
        subscription=clients.subscription, ack_ids=[by_data[b"failing"].ack_id], ack_deadline_seconds=0
    )
    # The same writer, in order: once this is confirmed, what came before is on the disk.
    ids += clients.publish(b"marker")
    again = _restart(bus, clients)
    received = {one.message.data: one.delivery_attempt for one in again.pull()}
    new = again.publish(b"new")
    again.close()
    assert received == {b"failing": 2, b"marker": 1}
    assert len({*ids, *new}) == 4


def test_what_was_in_flight_is_delivered_again_after_a_restart(bus: OurBus, clients: Clients) -> None:
    """A lease dies with the bus that gave it: the message is there at once, not after the ack deadline."""
    clients.make(ack_deadline_seconds=600)
    clients.publish(b"x")
    assert len(clients.pull()) == 1
    again = _restart(bus, clients)
    assert [one.message.data for one in again.pull()] == [b"x"]
    again.close()


def test_a_hundred_thousand_waiting_messages_stay_on_disk(bus: OurBus, clients: Clients) -> None:
    """The resident memory grows by less than 60 MB under 100,000 messages of 500 bytes, and they all come out."""
    clients.make(ack_deadline_seconds=600)
    clients.publish(b"warm")
    clients.subscriber.acknowledge(subscription=clients.subscription, ack_ids=[clients.pull()[0].ack_id])
    process = psutil.Process(bus.pid)
    before = process.memory_info().rss
    assert before < 90_000_000
    for _ in range(100):
        clients.publish(*[b"x" * 500] * 1000)
    grown = process.memory_info().rss - before
    assert grown < 60_000_000
    wait(lambda: state(bus, clients.subscription)["backlog"] == 100_000)
    drained = 0
    while drained < 100_000 and (received := clients.pull()):
        clients.subscriber.acknowledge(subscription=clients.subscription, ack_ids=[one.ack_id for one in received])
        drained += len(received)
    assert drained == 100_000
    wait(lambda: state(bus, clients.subscription)["backlog"] == 0)


def test_sigterm_ends_it_within_three_seconds(
    bus: OurBus, clients: Clients, receivers: Callable[..., Receiver]
) -> None:
    """An open stream and a push that hangs do not hold it up, and the unanswered message is not lost."""
    hang = threading.Event()
    receiver = receivers(lambda request: 204 if hang.wait(20) else 503)
    clients.make(push_config={"push_endpoint": receiver.url}, ack_deadline_seconds=600)
    other = f"{clients.subscription}-stream"
    clients.subscriber.create_subscription(request={"name": other, "topic": clients.topic})
    stream = clients.subscriber.subscribe(other, lambda message: message.ack())
    clients.publish(b"x")
    receiver.wait_for(lambda received: len(received) == 1)
    took = bus.stop()
    stream.cancel()
    hang.set()
    assert took < 3
    bus.start()
    receiver.wait_for(lambda received: len(received) == 2)


def test_a_stopped_bus_leaves_no_lock_behind(tmp_path: Path) -> None:
    """Killed or stopped, the next one over the same folder starts."""
    bus = OurBus(tmp_path)
    for end in (bus.kill, bus.stop):
        bus.start()
        end()
    bus.start()
    bus.stop()
