"""What the topology file declares, the bus does: pushes with tokens, schedules, and subscriptions that move."""

from __future__ import annotations

import json
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import jwt

from local.bus.trial import OurBus, Receiver, running_bus
from local.ports import free_ports
from tests.acceptance.bus_clients import Clients, state, wait

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
    wait(lambda: time.time() % 600 < 570, 40)


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
        wait(lambda: state(bus, "jobs")["delivered"] == 1)
        assert state(bus, "jobs")["backlog"] == 0
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
        assert state(bus, "jobs")["backlog"] == 1
        assert state(bus, "renamed")["backlog"] == 0
    with running_bus(tmp_path, _TOPOLOGY, {"worker": receiver.url}) as bus:
        receiver.wait_for(lambda received: [request.data for request in received] == [b"waiting"])
        assert "renamed" not in bus.get("/_status")["subscriptions"]
