"""A bus that stays up: one bad receiver is its own problem, and so is a bad request or a second bus."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local.bus.trial import OurBus, Received, Receiver, running_bus
from local.ports import free_ports
from tests.acceptance.bus_clients import Clients, state, wait


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
    wait(lambda: state(lasting, guests.subscription)["backlog"] == 0)


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


def test_messages_beyond_their_retention_are_forgotten(lasting: OurBus, guests: Clients) -> None:
    """After seven days an undelivered message is gone, from the disk too."""
    guests.make()
    guests.publish(b"old")
    wait(lambda: state(lasting, guests.subscription)["backlog"] == 1)
    lasting.advance(7 * 86400 + 3601)
    assert guests.pull(0.3) == []
    wait(lambda: state(lasting, guests.subscription)["backlog"] == 0)


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
