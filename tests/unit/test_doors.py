"""What a door makes of a request before anything touches the database: token, body, message, and how work ended."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask, Request, Response, request

from shared import doors, tracing
from shared.doors import Delivery, by_path, handles, read_push, receives_raw
from shared.errors import Superseded, TransientError
from shared.events import PUBLISHED, DocumentWithdrawn, RunJob
from shared.push import NotAuthenticated, NotAuthorised

GOOD = "Bearer good"


class Gate:
    """A verifier with two tokens; who pushed where is kept."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def verify(self, authorization: str, path: str) -> None:
        """Let `good` in, refuse `other` as somebody else, everything else as nobody."""
        self.asked.append((authorization, path))
        if authorization == "Bearer other":
            raise NotAuthorised("another account")
        if authorization != GOOD:
            raise NotAuthenticated("no token")


@pytest.fixture(autouse=True)
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """The door's verifier; `test_push` holds what the real one promises."""
    made = Gate()
    monkeypatch.setattr(doors, "_verifier", lambda: made)
    monkeypatch.setattr(doors, "policy_of", lambda tenant_id: tracing.STRICT)
    return made


def _call(
    door: Callable[[Request], Response], body: object, token: str | None = GOOD, path: str = "/", **extra: Any
) -> int:
    """The status of a push to a door; `body` is JSON, or bytes as they are."""
    app = Flask("test")
    headers = {} if token is None else {"Authorization": token}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with app.test_request_context(
        path, method="POST", data=data, headers=headers, content_type=extra.get("content_type", "application/json")
    ):
        return door(request).status_code


def _push(data: bytes, attributes: dict[str, str] | None = None, **message: Any) -> dict[str, Any]:
    content = {"data": base64.b64encode(data).decode(), "attributes": attributes or {}, "messageId": "17"}
    return {"message": content | message, "subscription": "projects/noesis-local/subscriptions/ingest-upstream"}


def _event() -> DocumentWithdrawn:
    return DocumentWithdrawn(tenant_id=uuid4(), external_id="4711")


def _door(action: Callable[[], None] = lambda: None) -> tuple[Callable[[Request], Response], list[Any]]:
    seen: list[Any] = []

    @handles(DocumentWithdrawn)
    def door(message: DocumentWithdrawn, delivery: Delivery) -> None:
        """Keep what came."""
        seen.append((message, delivery))
        action()

    return door, seen


def _raising(error: Exception) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def test_work_that_is_done_is_acknowledged() -> None:
    """The use case gets the decoded message and the delivery; Pub/Sub gets 204."""
    door, seen = _door()
    event = _event()
    assert _call(door, _push(event.data(), event.attributes()), path="/sources/upstream") == 204
    message, delivery = seen[0]
    assert message == event
    assert (delivery.message_id, delivery.subscription, delivery.source) == ("17", "ingest-upstream", "upstream")
    assert delivery.attributes == event.attributes()


@pytest.mark.parametrize(
    ("token", "status"), [(None, 401), ("Basic x", 401), ("Bearer bad", 401), ("Bearer other", 403)]
)
def test_without_the_right_token_nothing_runs(token: str | None, status: int) -> None:
    """No or a bad token is 401, somebody else's 403, and the message is not even read."""
    door, seen = _door()
    assert _call(door, b"not even json", token) == status
    assert _call(door, _push(_event().data()), token) == status
    assert seen == []


def test_the_token_is_checked_against_the_path_of_the_request(gate: Gate) -> None:
    """The source is what the audience proves: the verifier gets the very path the door reads the source from."""
    door, seen = _door()
    _call(door, _push(_event().data()), path="/sources/web")
    assert gate.asked == [(GOOD, "/sources/web")]
    assert seen[0][1].source == "web"


@pytest.mark.parametrize(
    ("path", "source"),
    [("/", ""), ("/sources/upstream", "upstream"), ("/sources", ""), ("/x/sources/upstream", ""), ("/source/web", "")],
)
def test_only_the_path_names_the_source(path: str, source: str) -> None:
    """Neither attributes nor data can claim to come from elsewhere."""
    delivery = Delivery("1", b"", {"source": "web"}, "projects/p/subscriptions/ingest-web", path)
    assert delivery.source == source


def test_superseded_work_is_acknowledged() -> None:
    """Somebody else has done it: nothing to do is no failure."""
    door, _ = _door(_raising(Superseded("a newer version is known")))
    assert _call(door, _push(_event().data())) == 204


def test_trouble_shared_by_all_is_refused_quietly(caplog: pytest.LogCaptureFixture) -> None:
    """503: Pub/Sub tries again; one line in the log, no stack."""
    door, _ = _door(_raising(TransientError("the database is down")))
    with caplog.at_level(logging.WARNING):
        assert _call(door, _push(_event().data())) == 503
    assert [record.exc_info for record in caplog.records] == [None]


def test_an_unknown_failure_is_raised() -> None:
    """What nobody foresaw escapes to the framework: 500, redelivery, dead letter, and the stack in the log."""
    door, _ = _door(_raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        _call(door, _push(_event().data()))


def test_logs_inside_carry_tenant_event_and_trace() -> None:
    """Every line of a use case can be found by tenant and trace, and nothing stays bound after it."""
    bound: list[dict[str, str]] = []
    fields = ("tenant_id", "event", "event_id", "traceparent")
    door, _ = _door(lambda: bound.append({field: tracing.current(field) for field in fields}))
    event = _event()
    _call(door, _push(event.data()))
    assert bound == [
        {
            "tenant_id": str(event.tenant_id),
            "event": "document-withdrawn",
            "event_id": str(event.event_id),
            "traceparent": event.traceparent,
        }
    ]
    assert tracing.current("tenant_id") == ""


def _read(body: object, content_type: str = "application/json") -> Delivery:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with Flask("test").test_request_context("/x", method="POST", data=data, content_type=content_type):
        return read_push(request)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"[]", b"null", b'"x"', {"message": None}, {"message": []}, {"message": "x"}, {}],
    ids=str,
)
def test_what_is_not_a_push_body_is_kept_as_it_came(body: object) -> None:
    """It will end as a dead letter, with its bytes."""
    delivery = _read(body)
    assert delivery.data == (body if isinstance(body, bytes) else json.dumps(body).encode())
    assert (delivery.attributes, delivery.message_id, delivery.subscription) == ({}, "", "")


@pytest.mark.parametrize(
    "message", [{}, {"data": None}, {"data": ""}, {"data": 5}, {"data": "not base64!"}, {"data": "YQ"}]
)
def test_a_push_without_readable_data_is_an_empty_delivery(message: dict[str, Any]) -> None:
    """No data, or no base64: nothing a door could decode."""
    assert _read({"message": message}).data == b""


@pytest.mark.parametrize("attributes", [None, [], "x", 5])
def test_strange_attributes_count_as_none(attributes: object) -> None:
    """Everything a handler needs is in the data too."""
    assert _read({"message": {"data": "", "attributes": attributes}}).attributes == {}


def test_both_spellings_of_the_message_id_are_read() -> None:
    """Pub/Sub sends messageId and message_id; the emulator only one of them."""
    assert _read({"message": {"message_id": "5", "data": ""}}).message_id == "5"
    assert _read({"message": {"messageId": 6, "data": ""}}).message_id == "6"


def test_the_time_of_the_first_publish_stays_with_the_message() -> None:
    """Out of the dead-letter topic a message comes newly published; when it was first is what Pub/Sub noted then."""
    first = _read({"message": {"data": "", "publishTime": "2026-11-21T08:30:00.123Z"}})
    assert first.attributes == {PUBLISHED: "2026-11-21T08:30:00.123Z"}
    noted = {PUBLISHED: "2026-11-20T08:30:00.123Z"}
    assert _read({"message": {"data": "", "attributes": noted, "publish_time": "later"}}).attributes == noted


@pytest.mark.parametrize("claim", ["9999-01-01T00:00:00Z", "2026-11-21T08:30:01Z", "soon", ""])
def test_no_message_says_that_it_was_published_later_than_it_was(claim: str) -> None:
    """The bus knows: with a later time of its own a message could date its version as far ahead as it likes."""
    told = "2026-11-21T08:30:00.123Z"
    found = _read({"message": {"data": "", "attributes": {PUBLISHED: claim}, "publishTime": told}})
    assert found.attributes == {PUBLISHED: told}


def test_a_raw_door_takes_what_nobody_can_decode() -> None:
    """The dead-letter archive must not itself refuse a poisoned message; it still wants the token."""
    seen: list[Delivery] = []

    @receives_raw
    def door(delivery: Delivery) -> None:
        """Keep what came."""
        seen.append(delivery)

    assert _call(door, _push(b"\xff\x00 poison")) == 204
    assert seen[0].data == b"\xff\x00 poison"
    assert _call(door, _push(b"x"), "Bearer bad") == 401
    assert len(seen) == 1


@pytest.fixture
def routed() -> tuple[Callable[[Request], Response], list[str]]:
    """A function with two doors."""
    called: list[str] = []

    @handles(RunJob)
    def root(command: RunJob, delivery: Delivery) -> None:
        """Take jobs."""
        called.append("root")

    @receives_raw
    def dead_letters(delivery: Delivery) -> None:
        """Take dead letters."""
        called.append("dead letters")

    return by_path(root=root, dead_letters=dead_letters), called


@pytest.mark.parametrize(
    ("path", "door"),
    [("/dead-letters", "dead letters"), ("/dead-letters/", "dead letters"), ("/", "root"), ("/x", "root")],
)
def test_a_function_finds_its_door_by_path(
    routed: tuple[Callable[[Request], Response], list[str]], path: str, door: str
) -> None:
    """One service, several subscriptions, each with its endpoint."""
    from datetime import UTC, datetime

    command = RunJob(job="sweep", slot=datetime(2026, 11, 21, tzinfo=UTC))
    assert _call(routed[0], _push(command.data()), path=path) == 204
    assert routed[1] == [door]
