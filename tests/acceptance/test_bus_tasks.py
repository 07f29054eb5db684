"""Cloud Tasks on the bus, through the official client: later, once, at a rate, again after a backoff."""

from __future__ import annotations

import base64
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import grpc
import jwt
import pytest
from google.api_core.exceptions import AlreadyExists, InvalidArgument, NotFound
from google.cloud import pubsub_v1, tasks_v2
from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcTransport
from google.protobuf.timestamp_pb2 import Timestamp
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from local.bus.trial import OurBus, Received, Receiver, running_bus

_LOCATION = "projects/noesis-local/locations/europe-west4"
_TOPOLOGY = """
topics: {outcomes: {carries: []}}
subscriptions: {outcomes: {topic: outcomes}}
queues:
  publish-later:
    dispatches_per_second: 100
    concurrency: 50
    retry: {attempts: 100, minimum: 1, maximum: 300, doublings: 8}
"""


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OurBus]:
    """One bus for all tests: each makes its own queue."""
    with running_bus(tmp_path_factory.mktemp("bus"), _TOPOLOGY) as bus:
        yield bus


@pytest.fixture(scope="module")
def client(bus: OurBus) -> Iterator[Any]:
    """Google's client on an insecure channel: it knows no emulator."""
    with grpc.insecure_channel(bus.tasks) as channel:
        yield tasks_v2.CloudTasksClient(transport=CloudTasksGrpcTransport(channel=channel))


@pytest.fixture
def receivers() -> Iterator[Callable[..., Receiver]]:
    """Makes HTTP receivers that are gone afterwards."""
    made: list[Receiver] = []

    def make(answer: Callable[[Received], int] = lambda request: 200) -> Receiver:
        made.append(Receiver(answer))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


@pytest.fixture
def queue(client: Any) -> Callable[..., str]:
    """Makes queues."""

    def make(rate: float = 0, concurrency: int = 0, **retry: Any) -> str:
        name = f"{_LOCATION}/queues/q{uuid.uuid4().hex}"
        limits = {"max_dispatches_per_second": rate, "max_concurrent_dispatches": concurrency}
        client.create_queue(parent=_LOCATION, queue={"name": name, "rate_limits": limits, "retry_config": retry})
        return name

    return make


def _task(url: str, name: str = "", at: float | None = None, **request: Any) -> dict[str, Any]:
    task: dict[str, Any] = {"http_request": {"url": url, **request}}
    if name:
        task["name"] = name
    if at is not None:
        task["schedule_time"] = Timestamp(seconds=int(at), nanos=int(at % 1 * 1e9))
    return task


def _now(bus: OurBus) -> float:
    """The bus's clock, which other tests have moved."""
    return float(bus.post("/_clock/advance?seconds=0", b"")["now"])


def _gone(client: Any, name: str) -> bool:
    try:
        client.get_task(name=name)
    except NotFound:
        return True
    return False


def _wait(condition: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


def test_a_task_is_an_http_request_with_its_headers_and_body(
    client: Any, queue: Callable[..., str], receivers: Callable[..., Receiver]
) -> None:
    """Method, path, body and own headers arrive, with the documented X-CloudTasks headers; then the task is gone."""
    receiver, parent = receivers(), queue()
    name = f"{parent}/tasks/one"
    headers = {"Content-Type": "application/json", "X-Own": "1", "User-Agent": "me", "X-CloudTasks-TaskName": "forged"}
    client.create_task(parent=parent, task=_task(f"{receiver.url}/a?b=c", name, body=b'{"x": 1}', headers=headers))
    (request,) = receiver.wait_for(lambda received: len(received) == 1)
    assert (request.path, request.body) == ("/a?b=c", b'{"x": 1}')
    assert request.headers["X-Own"] == "1"
    assert request.headers["User-Agent"] == "Google-Cloud-Tasks"
    assert request.headers["X-CloudTasks-QueueName"] == parent.rpartition("/")[2]
    assert request.headers["X-CloudTasks-TaskName"] == "one"
    assert request.headers["X-CloudTasks-TaskRetryCount"] == request.headers["X-CloudTasks-TaskExecutionCount"] == "0"
    assert float(request.headers["X-CloudTasks-TaskETA"]) > 1_600_000_000
    _wait(lambda: _gone(client, name))


def test_publish_later_reaches_the_topic_at_its_time(bus: OurBus, client: Any) -> None:
    """A task whose target is the REST publish call of a topic delivers the message, not before its schedule time."""
    parent = f"{_LOCATION}/queues/publish-later"
    body = json.dumps({"messages": [{"data": base64.b64encode(b"later").decode(), "attributes": {"a": "b"}}]})
    task = _task(
        f"http://{bus.http}/v1/projects/noesis-local/topics/outcomes:publish",
        at=_now(bus) + 3600,
        body=body.encode(),
        headers={"Content-Type": "application/json"},
    )
    client.create_task(parent=parent, task=task)
    subscription = "projects/noesis-local/subscriptions/outcomes"
    with grpc.insecure_channel(bus.pubsub) as channel:
        subscriber = pubsub_v1.SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        bus.advance(3500)
        assert bus.get("/_status")["queues"]["publish-later"]["tasks"] == 1
        assert bus.get("/_status")["subscriptions"]["outcomes"]["backlog"] == 0
        bus.advance(101)
        (received,) = subscriber.pull(subscription=subscription, max_messages=2, timeout=8).received_messages
    assert received.message.data == b"later"
    assert dict(received.message.attributes) == {"a": "b"}


def test_a_name_is_taken_while_its_task_lives_and_an_hour_after(
    bus: OurBus, client: Any, queue: Callable[..., str], receivers: Callable[..., Receiver]
) -> None:
    """ALREADY_EXISTS before the task ran and for an hour after it ended; then the name is free."""
    receiver, parent = receivers(), queue()
    task = _task(receiver.url, f"{parent}/tasks/named", _now(bus) + 60)
    client.create_task(parent=parent, task=task)
    with pytest.raises(AlreadyExists):
        client.create_task(parent=parent, task=task)
    bus.advance(61)
    receiver.wait_for(lambda received: len(received) == 1)
    _wait(lambda: _gone(client, f"{parent}/tasks/named"))
    with pytest.raises(AlreadyExists):
        client.create_task(parent=parent, task=task)
    bus.advance(3601)
    client.create_task(parent=parent, task=task)
    receiver.wait_for(lambda received: len(received) == 2)


def test_a_failing_task_is_retried_after_growing_backoffs_and_given_up(
    bus: OurBus, client: Any, queue: Callable[..., str], receivers: Callable[..., Receiver]
) -> None:
    """min, twice min, then linear: 10, 20, 40 seconds, and after the last attempt the task is gone."""
    receiver = receivers(lambda request: 500)
    retry = {"min_backoff": timedelta(seconds=10), "max_backoff": timedelta(seconds=100)}
    parent = queue(max_attempts=4, max_doublings=1, **retry)
    name = client.create_task(parent=parent, task=_task(receiver.url)).name
    for attempt, backoff in ((1, 10), (2, 20), (3, 40)):
        requests = receiver.wait_for(lambda received, attempt=attempt: len(received) == attempt)  # type: ignore[misc]
        assert requests[-1].headers["X-CloudTasks-TaskRetryCount"] == str(attempt - 1)
        assert requests[-1].headers["X-CloudTasks-TaskExecutionCount"] == str(attempt - 1)
        _wait(lambda attempt=attempt: client.get_task(name=name).response_count == attempt)  # type: ignore[misc]
        task = client.get_task(name=name)
        wait = task.schedule_time.timestamp() - task.last_attempt.response_time.timestamp()
        assert backoff - 0.5 < wait < backoff + 0.5
        bus.advance(backoff - 8)  # what is left is time for a busy machine to look
        assert len(receiver.received) == attempt
        bus.advance(8.1)
    receiver.wait_for(lambda received: len(received) == 4)
    _wait(lambda: _gone(client, name))
    bus.advance(1000)
    assert len(receiver.received) == 4


def test_a_queue_keeps_its_rate(
    bus: OurBus, client: Any, queue: Callable[..., str], receivers: Callable[..., Receiver]
) -> None:
    """At 5 a second, 30 tasks take the burst at once and then five for every second of the clock."""
    receiver, parent = receivers(), queue(rate=5)
    client.pause_queue(name=parent)
    for _ in range(30):
        client.create_task(parent=parent, task=_task(receiver.url))
    assert receiver.received == []
    started = time.monotonic()
    client.resume_queue(name=parent)
    receiver.wait_for(lambda received: len(received) >= 1)
    bus.advance(2)
    # The bucket holds one second's fifth: what a jump of the clock leaves over is not saved up. Counted before the time
    # is taken: what comes in between is not held against it.
    assert len(receiver.received) <= 2 + 5 * (time.monotonic() - started + 0.5)
    receiver.wait_for(lambda received: len(received) >= 5, 5)
    assert len(receiver.received) <= 3 + 5 * (time.monotonic() - started)


def test_a_queue_keeps_its_concurrency(
    client: Any, queue: Callable[..., str], receivers: Callable[..., Receiver]
) -> None:
    """No more than two at the target at once, and all of them in the end."""
    lock, present, most = threading.Lock(), [0], [0]

    def answer(request: Received) -> int:
        with lock:
            present[0] += 1
            most[0] = max(most[0], present[0])
        pause.wait(0.05)
        with lock:
            present[0] -= 1
        return 200

    pause = threading.Event()
    receiver, parent = receivers(answer), queue(concurrency=2)
    for _ in range(8):
        client.create_task(parent=parent, task=_task(receiver.url))
    receiver.wait_for(lambda received: len(received) == 8)
    assert most == [2]


def test_run_task_does_not_wait_for_schedule_or_pause(
    bus: OurBus, client: Any, queue: Callable[..., str], receivers: Callable[..., Receiver]
) -> None:
    """RunTask dispatches at once what is scheduled for tomorrow, in a paused queue too."""
    receiver, parent = receivers(), queue()
    client.pause_queue(name=parent)
    name = client.create_task(parent=parent, task=_task(receiver.url, at=_now(bus) + 86400)).name
    client.run_task(name=name)
    receiver.wait_for(lambda received: len(received) == 1)


def test_deleted_and_purged_tasks_do_not_run(
    bus: OurBus, client: Any, queue: Callable[..., str], receivers: Callable[..., Receiver]
) -> None:
    """What is deleted or purged before its time is never sent."""
    receiver, parent = receivers(), queue()
    at = _now(bus) + 60
    names = [client.create_task(parent=parent, task=_task(receiver.url, at=at)).name for _ in range(3)]
    assert [task.name for task in client.list_tasks(parent=parent)] == sorted(names)
    client.delete_task(name=names[0])
    with pytest.raises(NotFound):
        client.get_task(name=names[0])
    client.purge_queue(name=parent)
    assert list(client.list_tasks(parent=parent)) == []
    client.create_task(parent=parent, task=_task(f"{receiver.url}/last", at=at))
    bus.advance(61)
    requests = receiver.wait_for(lambda received: len(received) == 1)
    assert requests[0].path == "/last"


def test_a_task_survives_kill_9(bus: OurBus, queue: Callable[..., str], receivers: Callable[..., Receiver]) -> None:
    """A created task is dispatched by the next process."""
    receiver, parent = receivers(), queue()
    with grpc.insecure_channel(bus.tasks) as channel:
        client: Any = tasks_v2.CloudTasksClient(transport=CloudTasksGrpcTransport(channel=channel))
        # The next process starts without the offset of the test clock.
        client.create_task(parent=parent, task=_task(receiver.url, at=_now(bus) + 5))
    bus.kill()
    bus.start()
    bus.advance(30 * 86400)
    receiver.wait_for(lambda received: len(received) == 1)


def test_a_task_with_an_identity_carries_a_signed_token(
    bus: OurBus, client: Any, queue: Callable[..., str], receivers: Callable[..., Receiver]
) -> None:
    """oidc_token: a token for the audience, in the name of the service account."""
    receiver, parent = receivers(), queue()
    token = {"service_account_email": "worker@p.iam.gserviceaccount.com", "audience": "https://aud"}
    client.create_task(parent=parent, task=_task(receiver.url, oidc_token=token))
    (request,) = receiver.wait_for(lambda received: len(received) == 1)
    keys = jwt.PyJWKSet.from_dict(bus.get("/jwks"))
    bearer = request.headers["Authorization"].removeprefix("Bearer ")
    claims = jwt.decode(bearer, keys.keys[0].key, algorithms=["RS256"], audience="https://aud")
    assert claims["email"] == token["service_account_email"]


def test_what_the_cloud_refuses_is_refused(bus: OurBus, client: Any, queue: Callable[..., str]) -> None:
    """Unknown queues, foreign names, bad addresses, headers, times and sizes."""
    parent, url = queue(), "http://127.0.0.1:9/"
    with pytest.raises(NotFound):
        client.create_task(parent=f"{_LOCATION}/queues/absent", task=_task(url))
    with pytest.raises(AlreadyExists):
        client.create_queue(parent=_LOCATION, queue={"name": parent})
    for task in (
        {},
        _task("ftp://example.org/"),
        _task("http://127.0.0.1:9/ x"),
        _task("http://127.0.0.1:99999/"),
        _task(url, name=f"{_LOCATION}/queues/other/tasks/x"),
        _task(url, name=f"{parent}/tasks/a b"),
        _task(url, at=_now(bus) + 31 * 86400),
        _task(url, body=b"x" * 1_100_000),
        _task(url, headers={"X-A": "1\r\nX-B: 2"}),
        _task(url, http_method=tasks_v2.HttpMethod.GET, body=b"x"),
    ):
        with pytest.raises(InvalidArgument):
            client.create_task(parent=parent, task=task)
    assert list(client.list_tasks(parent=parent)) == []
