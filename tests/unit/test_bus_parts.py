"""The small parts of the bus: wire classes, tokens, schedules, topology, push bodies."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path

import jwt
import pytest
from cronsim import CronSimError

from local.bus import topology
from local.bus.backlog import Delivery
from local.bus.broker import Broker
from local.bus.clock import Clock
from local.bus.http import Door
from local.bus.push import push_body
from local.bus.refusal import Refused, check_url
from local.bus.scheduler import Schedule, run_job
from local.bus.store import Store
from local.bus.tokens import Tokens
from local.bus.wire import PubsubMessage, Topic

_CHECKOUT = Path(__file__).parents[2]


def test_the_official_clients_work_beside_the_bare_wire_classes() -> None:
    """Whichever is imported first, both use the same message classes, and the bus alone loads no client."""
    script = (
        "import sys\n"
        "from local.bus import wire\n"
        "assert 'google.api_core.gapic_v1' not in sys.modules\n"
        "from google.cloud import pubsub_v1, tasks_v2\n"
        "assert pubsub_v1.types.PubsubMessage.pb() is wire.PubsubMessage\n"
        "assert tasks_v2.Task.pb() is wire.Task\n"
        "from google.pubsub_v1 import PublisherClient, types\n"
        "assert types.PubsubMessage.pb() is wire.PubsubMessage\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=_CHECKOUT, check=True, timeout=120)


def test_a_token_is_cached_per_audience_and_its_key_survives(tmp_path: Path) -> None:
    """Signing costs a millisecond: once per audience; a restart keeps the key, so that receivers' caches stay right."""
    tokens = Tokens(tmp_path, "http://127.0.0.1:8086", "push@p")
    first = tokens.bearer("http://a/x")
    assert tokens.bearer("http://a/x") is first
    assert tokens.bearer("http://a/y") != first
    again = Tokens(tmp_path, "http://127.0.0.1:8086", "push@p")
    assert again.jwks() == tokens.jwks()
    key = jwt.PyJWKSet.from_dict(again.jwks()).keys[0].key
    claims = jwt.decode(first.removeprefix("Bearer "), key, algorithms=["RS256"], audience="http://a/x")
    assert (claims["iss"], claims["email"]) == ("http://127.0.0.1:8086", "push@p")


def test_the_public_keys_hold_nothing_private(tmp_path: Path) -> None:
    """Only modulus and exponent leave the process."""
    (key,) = Tokens(tmp_path, "i", "a").jwks()["keys"]
    assert set(key) == {"kty", "n", "e", "kid", "alg", "use"}


@pytest.mark.parametrize(
    ("cron", "now", "last", "following"),
    [
        ("* * * * *", "2026-11-21T10:00:30", "2026-11-21T10:00:00", "2026-11-21T10:01:00"),
        ("* * * * *", "2026-11-21T10:01:00", "2026-11-21T10:01:00", "2026-11-21T10:02:00"),
        ("30 3 * * *", "2026-11-21T02:00:00", "2026-11-20T03:30:00", "2026-11-21T03:30:00"),
        ("0 0 29 2 *", "2026-11-21T00:00:00", "2024-02-29T00:00:00", "2028-02-29T00:00:00"),
    ],
)
def test_slots_are_those_of_the_expression(cron: str, now: str, last: str, following: str) -> None:
    """The latest slot includes this very second, the next one does not."""
    schedule = Schedule("job", cron, "topic")
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC).timestamp()
    assert datetime.fromtimestamp(schedule.slot_until(moment), UTC).isoformat() == last + "+00:00"
    assert datetime.fromtimestamp(schedule.slot_after(moment), UTC).isoformat() == following + "+00:00"


def test_a_wrong_cron_expression_is_an_error() -> None:
    """Not a schedule that never fires."""
    with pytest.raises(CronSimError):
        Schedule("job", "61 * * * *", "topic").slot_after(0)


def test_the_same_slot_is_the_same_event() -> None:
    """A slot published twice carries one event id and idempotency key, and a trace of its own each time."""
    one, two, other = (run_job("sweep", slot, 1e9) for slot in (60.0, 60.0, 120.0))
    first, second = json.loads(one.data), json.loads(two.data)
    assert first["event_id"] == second["event_id"] != json.loads(other.data)["event_id"]
    assert first["idempotency_key"] == "sweep@1970-01-01T00:01:00Z"
    assert first["traceparent"] != second["traceparent"]


def test_the_topology_of_the_product_is_understood() -> None:
    """Every declared resource becomes one here; a service without an address is pulled."""
    file = _CHECKOUT / "terraform/topology.yaml"
    declared = topology.read(file, "p", "europe-west4", {"ingest": "http://127.0.0.1:8101/"})
    by_name = {config.name.rpartition("/")[2]: config for config in declared.subscriptions}
    upstream = by_name["ingest-upstream"]
    assert upstream.push_config.push_endpoint == "http://127.0.0.1:8101/sources/upstream"
    assert upstream.dead_letter_policy.dead_letter_topic == "projects/p/topics/dead-letters"
    assert by_name["embed"].push_config.push_endpoint == ""
    assert declared.queues[0].name == "projects/p/locations/europe-west4/queues/publish-later"
    assert {topic.name for topic in declared.topics} >= {config.topic for config in declared.subscriptions}
    assert declared.parallel[upstream.name] >= 2


def test_a_push_body_is_what_the_cloud_sends() -> None:
    """The wrapped message, with the attempt only where it is wanted."""
    message = PubsubMessage(data=b"\xfb\xff", attributes={"ä": "ö"}).SerializeToString()
    body = json.loads(push_body(Delivery(7, 2, 1_700_000_000.25, message), "projects/p/subscriptions/s", attempts=True))
    assert body == {
        "message": {
            "data": "+/8=",
            "attributes": {"ä": "ö"},
            "messageId": "7",
            "message_id": "7",
            "publishTime": "2023-11-14T22:13:20.250Z",
            "publish_time": "2023-11-14T22:13:20.250Z",
        },
        "subscription": "projects/p/subscriptions/s",
        "deliveryAttempt": 2,
    }
    assert "deliveryAttempt" not in json.loads(push_body(Delivery(7, 2, 1.0, message), "s", attempts=False))


def test_time_is_moved_only_where_tests_asked_for_it(tmp_path: Path) -> None:
    """Without --test-clock the HTTP door has no such address; publish goes on working."""
    store, clock = Store(tmp_path / "bus.sqlite3"), Clock()
    tokens = Tokens(tmp_path, "i", "a")
    broker = Broker(store, clock, tokens, {})
    broker.create_topic(Topic(name="projects/p/topics/topic"))
    door = Door(("127.0.0.1", 0), broker, tokens, dict, None)
    thread = threading.Thread(target=door.serve_forever, args=(0.01,))
    thread.start()
    connection = HTTPConnection("127.0.0.1", int(door.server_address[1]), timeout=60)
    answers = []
    for path in ("/_clock/advance?seconds=5", "/v1/projects/p/topics/topic:publish"):
        connection.request("POST", path, json.dumps({"messages": [{"data": "eA=="}]}))
        answer = connection.getresponse()
        answers.append(answer.status)
        answer.read()
    connection.close()
    door.shutdown()
    door.server_close()
    thread.join()
    store.close()
    assert answers == [404, 200]


@pytest.mark.parametrize(
    "url", ["", "file:///etc/passwd", "http://", "http://h:0/", "http://h:70000/", "http://h/\r\nX: 1", "http://h/ä"]
)
def test_addresses_that_cannot_be_sent_to_are_refused(url: str) -> None:
    """Before a worker trips over them."""
    with pytest.raises(Refused):
        check_url(url)


def test_the_clock_runs_what_is_due_in_order_and_survives_a_failing_timer() -> None:
    """`advance` returns when everything due has run; one broken callback does not stop the others."""
    clock, seen = Clock(), list[str]()
    clock.start()

    def broken() -> None:
        raise ValueError("broken")

    now = clock.now()
    clock.call_at(now + 20, lambda: seen.append("second"))
    clock.call_at(now + 15, broken)
    clock.call_at(now + 10, lambda: seen.append("first"))
    clock.call_at(now + 1000, lambda: seen.append("never"))
    clock.advance(30)
    clock.stop()
    assert seen == ["first", "second"]
