"""The bus as a process: what it promised survives kill -9, it stays small, and one bad receiver is its own problem."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import jwt
import psutil
import pytest
from google.api_core.exceptions import DeadlineExceeded, GoogleAPICallError
from google.cloud import pubsub_v1
from google.pubsub_v1 import PublisherClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from local.bus.trial import OurBus, Received, Receiver, running_bus
from local.ports import free_ports

_TOPOLOGY = """
topics: {jobs: {carries: [run-job]}, graves: {carries: []}}
subscriptions:
  jobs:
    topic: jobs
    push: {service: worker, path: /jobs}
    ack_deadline: 60
    retry: {minimum: 30, maximum: 300}
    dead_letter: {topic: graves, attempts: 5}
schedules:
  sweep: {cron: "*/10 * * * *", topic: jobs, job: sweep}
services:
  worker: {concurrency: 2}
"""


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


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[OurBus]:
    """A bus of its own: it is going to be killed."""
    with running_bus(tmp_path) as bus:
        yield bus


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OurBus]:
    """One bus for all tests that leave it alive."""
    with running_bus(tmp_path_factory.mktemp("bus")) as bus:
        yield bus


@pytest.fixture
def guests(lasting: OurBus) -> Iterator[Clients]:
    """Clients of the lasting bus, with names of their own."""
    clients = Clients(lasting.pubsub)
    yield clients
    clients.close()


@pytest.fixture
def clients(bus: OurBus) -> Iterator[Clients]:
    """Clients of the bus."""
    clients = Clients(bus.pubsub)
    yield clients
    clients.close()


@pytest.fixture
def receivers() -> Iterator[Callable[..., Receiver]]:
    """Makes HTTP receivers that are gone afterwards."""
    made: list[Receiver] = []

    def make(*arguments: Any, **named: Any) -> Receiver:
        made.append(Receiver(*arguments, **named))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


def _wait(condition: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


def _state(bus: OurBus, subscription: str) -> dict[str, Any]:
    state: dict[str, Any] = bus.get("/_status")["subscriptions"][subscription]
    return state


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
    _wait(lambda: len(confirmed) > 400)
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
    _wait(lambda: _state(bus, clients.subscription)["backlog"] == 100_000)
    drained = 0
    while drained < 100_000 and (received := clients.pull()):
        clients.subscriber.acknowledge(subscription=clients.subscription, ack_ids=[one.ack_id for one in received])
        drained += len(received)
    assert drained == 100_000
    _wait(lambda: _state(bus, clients.subscription)["backlog"] == 0)


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


def test_a_receiver_in_trouble_does_not_hold_up_another_subscription(
    lasting: OurBus, guests: Clients, receivers: Callable[..., Receiver]
) -> None:
    """One endpoint hangs, one refuses everything: the third gets all of its messages."""
    release = threading.Event()

    def hang(request: Received) -> int:
        release.wait(20)
        return 503

    hanging = receivers(hang)
    healthy = receivers()
    guests.make(push_config={"push_endpoint": hanging.url}, ack_deadline_seconds=600)
    for name, url in (("down", f"http://127.0.0.1:{free_ports(1)[0]}/"), ("healthy", healthy.url)):
        request = {
            "name": f"{guests.subscription}-{name}",
            "topic": guests.topic,
            "push_config": {"push_endpoint": url},
        }
        guests.subscriber.create_subscription(request=request)
    guests.publish(*[b"x"] * 300)
    healthy.wait_for(lambda received: len(received) == 300)
    release.set()


def test_a_failing_service_is_not_hammered(
    lasting: OurBus, guests: Clients, receivers: Callable[..., Receiver]
) -> None:
    """A thousand messages for a service that answers 503 are a few requests, and all arrive once it is well."""
    ill = threading.Event()
    receiver = receivers(lambda request: 204 if ill.is_set() else 503)
    guests.make(push_config={"push_endpoint": receiver.url}, ack_deadline_seconds=60)
    guests.publish(*[str(number).encode() for number in range(1000)])
    receiver.wait_for(lambda received: len(received) > 16)
    lasting.advance(1)
    lasting.advance(1)
    assert len(receiver.received) < 100
    ill.set()
    lasting.advance(60)
    receiver.wait_for(lambda received: len({request.data for request in received}) == 1000)
    _wait(lambda: _state(lasting, guests.subscription)["backlog"] == 0)


def test_a_service_that_is_not_up_yet_costs_no_attempt(
    lasting: OurBus, guests: Clients, receivers: Callable[..., Receiver]
) -> None:
    """A refused connection delivered nothing: once the service listens, its first attempt is the first."""
    (port,) = free_ports(1)
    policy = {"dead_letter_topic": guests.topic, "max_delivery_attempts": 5}
    guests.make(
        push_config={"push_endpoint": f"http://127.0.0.1:{port}/"}, dead_letter_policy=policy, ack_deadline_seconds=600
    )
    guests.publish(b"x")
    for _ in range(20):
        lasting.advance(10)
    receiver = receivers(port=port)
    lasting.advance(10)
    (request,) = receiver.wait_for(lambda received: len(received) == 1)
    assert request.json["deliveryAttempt"] == 1


def test_messages_beyond_their_retention_are_forgotten(lasting: OurBus, guests: Clients) -> None:
    """After seven days an undelivered message is gone, from the disk too."""
    guests.make()
    guests.publish(b"old")
    _wait(lambda: _state(lasting, guests.subscription)["backlog"] == 1)
    lasting.advance(7 * 86400 + 3601)
    assert guests.pull(0.3) == []
    _wait(lambda: _state(lasting, guests.subscription)["backlog"] == 0)


def test_pushes_carry_a_token_that_the_published_keys_verify(
    tmp_path: Path, receivers: Callable[..., Receiver]
) -> None:
    """Issuer, audience, address and key id are right, and the private key is only its owner's to read."""
    receiver = receivers()
    with running_bus(tmp_path, _TOPOLOGY, {"worker": receiver.url}) as bus:
        clients = Clients(bus.pubsub)
        clients.publish(b"x", topic="projects/noesis-local/topics/jobs")
        (request,) = receiver.wait_for(lambda received: len(received) == 1)
        clients.close()
        scheme, _, token = request.headers["Authorization"].partition(" ")
        with urllib.request.urlopen(f"http://{bus.http}/jwks", timeout=5) as answer:
            assert "max-age" in answer.headers["Cache-Control"]
            keys = jwt.PyJWKSet.from_dict(json.load(answer))
        claims = jwt.decode(
            token,
            keys[jwt.get_unverified_header(token)["kid"]].key,
            algorithms=["RS256"],
            audience=f"{receiver.url}/jobs",
            issuer=f"http://{bus.http}",
        )
    assert scheme == "Bearer"
    assert claims["email"] == "pubsub-push@noesis-local.iam.gserviceaccount.com"
    assert claims["email_verified"] is True
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["sub"]
    for name in ("signing-key.pem", "bus.sqlite3"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0


def _wait_for_a_quiet_moment() -> None:
    """Until no slot of every tenth minute comes by itself within the next half minute."""
    _wait(lambda: time.time() % 600 < 570, 40)


def test_a_schedule_publishes_its_job_when_its_slot_comes(tmp_path: Path, receivers: Callable[..., Receiver]) -> None:
    """One run-job command a slot, with name, version, ids and trace in attributes and data."""
    receiver = receivers()
    _wait_for_a_quiet_moment()
    with running_bus(tmp_path, _TOPOLOGY, {"worker": receiver.url}) as bus:
        assert receiver.received == []
        bus.advance(600)
        bus.advance(600)
        requests = receiver.wait_for(lambda received: len(received) == 2)
        schedule = bus.get("/_status")["schedules"]["sweep"]
    bodies = [json.loads(request.data) for request in requests]
    body, attributes = bodies[0], requests[0].json["message"]["attributes"]
    assert body["name"] == attributes["name"] == "run-job"
    assert body["job"] == "sweep"
    assert (body["version"], attributes["version"]) == (1, "1")
    assert body["event_id"] == attributes["event_id"]
    assert body["traceparent"] == attributes["traceparent"]
    assert body["idempotency_key"] == f"sweep@{body['slot']}"
    slots = [datetime.fromisoformat(one["slot"]) for one in bodies]
    assert (slots[1] - slots[0]).total_seconds() == 600
    assert slots[0].minute % 10 == 0
    assert len({one["event_id"] for one in bodies}) == 2
    assert schedule["last"] == bodies[1]["slot"]
    assert schedule["next"] > schedule["last"]


def test_missed_runs_are_made_up_for_once(tmp_path: Path, receivers: Callable[..., Receiver]) -> None:
    """After three hours of absence the schedule fires for its latest slot only."""
    receiver = receivers()
    _wait_for_a_quiet_moment()
    bus = OurBus(tmp_path, _TOPOLOGY, {"worker": receiver.url})
    bus.start()
    bus.stop()
    with sqlite3.connect(tmp_path / "bus.sqlite3") as connection:
        connection.execute("UPDATE schedules SET last = last - 10800")
    connection.close()
    try:
        bus.start()
        (request,) = receiver.wait_for(lambda received: len(received) == 1)
        slot = datetime.fromisoformat(json.loads(request.data)["slot"])
        assert 0 <= (datetime.now(UTC) - slot).total_seconds() < 660
        _wait(lambda: _state(bus, "jobs")["delivered"] == 1)
        assert _state(bus, "jobs")["backlog"] == 0
    finally:
        bus.stop()


def test_a_changed_topology_moves_subscriptions_and_keeps_what_waits(
    tmp_path: Path, receivers: Callable[..., Receiver]
) -> None:
    """A new port of a service is followed; a subscription taken out of the file stays until it is empty."""
    with running_bus(tmp_path, _TOPOLOGY, {"worker": f"http://127.0.0.1:{free_ports(1)[0]}"}) as bus:
        clients = Clients(bus.pubsub)
        clients.publish(b"waiting", topic="projects/noesis-local/topics/jobs")
        clients.close()
        bus.stop()
    without = _TOPOLOGY.replace("  jobs:\n    topic: jobs", "  renamed:\n    topic: jobs")
    receiver = receivers()
    with running_bus(tmp_path, without, {"worker": receiver.url}) as bus:
        assert _state(bus, "jobs")["backlog"] == 1
        assert _state(bus, "renamed")["backlog"] == 0
    with running_bus(tmp_path, _TOPOLOGY, {"worker": receiver.url}) as bus:
        receiver.wait_for(lambda received: [request.data for request in received] == [b"waiting"])
        assert "renamed" not in bus.get("/_status")["subscriptions"]


def test_a_second_bus_and_a_taken_port_are_clear_errors(lasting: OurBus, tmp_path: Path) -> None:
    """Both end at once with one line that names what is taken."""
    for home, pubsub_port, reason in (
        (lasting.home, str(free_ports(1)[0]), "another process has"),
        (tmp_path / "other", lasting.pubsub.rpartition(":")[2], "choose another with --pubsub-port"),
    ):
        command = [
            sys.executable,
            "-m",
            "local.bus",
            "--topology",
            str(lasting.home / "topology.yaml"),
            "--home",
            str(home),
        ]
        ports = [f"--{name}-port={free_ports(1)[0]}" for name in ("http", "tasks")]
        result = subprocess.run(
            [*command, *ports, f"--pubsub-port={pubsub_port}"],
            cwd=Path(__file__).parents[2],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 1
        assert reason in result.stderr
        assert "Traceback" not in result.stderr


def test_the_http_door_publishes_json_and_refuses_browsers(lasting: OurBus, guests: Clients) -> None:
    """REST publish takes base64 data; a page in a browser, bad JSON and unknown topics get their status."""
    guests.make()
    path = f"/v1/{guests.topic}:publish"
    body = json.dumps({"messages": [{"data": "aGk=", "attributes": {"a": "b"}}]}).encode()
    (message_id,) = lasting.post(path, body)["messageIds"]
    (received,) = guests.pull()
    assert (received.message.message_id, received.message.data) == (message_id, b"hi")
    assert dict(received.message.attributes) == {"a": "b"}
    refusals = [
        (path, body, {"Origin": "https://example.org"}, 403),
        (path, body, {"Host": "rebound.example.org"}, 403),
        (path, b"{nonsense", {}, 400),
        (path, json.dumps({"messages": [{"data": "%%%"}]}).encode(), {}, 400),
        (path, json.dumps({"messages": [{"data": "", "attributes": {"a": 1}}]}).encode(), {}, 400),
        (path, json.dumps({"messages": []}).encode(), {}, 400),
        ("/v1/projects/p/topics/absent:publish", body, {}, 404),
        ("/v1/other", body, {}, 404),
        ("/_clock/advance?seconds=-5", b"", {}, 400),
    ]
    for where, content, headers, status in refusals:
        request = urllib.request.Request(f"http://{lasting.http}{where}", content, headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=5)
        assert refused.value.code == status, where
        assert json.load(refused.value)["error"]["code"] == status
        refused.value.close()


def test_a_push_that_dies_half_way_is_an_attempt(
    lasting: OurBus, guests: Clients, receivers: Callable[..., Receiver]
) -> None:
    """A receiver that takes the request and drops the connection gets it again as the second attempt."""
    first = threading.Event()

    def answer(request: Received) -> int:
        if not first.is_set():
            first.set()
            raise ConnectionAbortedError
        return 204

    receiver = receivers(answer)
    policy = {"dead_letter_topic": guests.topic, "max_delivery_attempts": 5}
    guests.make(push_config={"push_endpoint": receiver.url}, dead_letter_policy=policy)
    guests.publish(b"x")
    requests = receiver.wait_for(lambda received: len(received) == 2)
    assert [request.json["deliveryAttempt"] for request in requests] == [1, 2]


def test_a_stopped_bus_leaves_no_lock_behind(tmp_path: Path) -> None:
    """Killed or stopped, the next one over the same folder starts."""
    bus = OurBus(tmp_path)
    for end in (bus.kill, bus.stop):
        bus.start()
        end()
    bus.start()
    bus.stop()
