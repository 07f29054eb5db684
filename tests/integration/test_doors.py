"""Doors on a real database: where a message goes that cannot be handled now, or ever, and that nothing else suffers."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from flask import Flask, Request, Response, request
from sqlalchemy import Row, text

from functions.ingest import main as ingest
from shared import doors
from shared.database import operator_session
from shared.doors import Delivery, Door, handles
from shared.errors import PermanentError, Postponed, TransientError
from shared.events import (
    AnswerQuestion,
    DocumentFailed,
    DocumentSubmitted,
    DocumentWithdrawn,
    EmbedChunks,
    Message,
    RunJob,
    decode,
)
from shared.fakes import FakeBus
from shared.services import Services
from shared.tenants.directory import Principal
from tests.pushes import Open, push_body

INGEST = cast("Door", ingest.ingest)  # functions-framework types it as any view of Flask


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch, fake_services: Services) -> None:
    """The doors of ingest without a token, with the twins of storage and models."""
    monkeypatch.setattr(doors, "_verifier", Open)
    monkeypatch.setattr(ingest, "services", lambda: fake_services)


def _post(door: Callable[[Request], Response], body: object, path: str = "/sources/upstream") -> int:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with Flask("test").test_request_context(path, method="POST", data=data, content_type="application/json"):
        return door(request).status_code


def _send(message: Message, path: str = "/sources/upstream") -> tuple[int, str]:
    """Push a message to ingest; returns the status and the message id."""
    body = push_body(message.data(), message.attributes())
    return _post(INGEST, body, path), body["message"]["messageId"]


def _letters(**where: Any) -> list[Row[Any]]:
    condition = " and ".join(f"{name} = :{name}" for name in where)
    with operator_session() as session:
        return list(session.execute(text(f"select * from core.dead_letters where {condition}"), where))


def _documents(tenant: Principal) -> dict[str, str]:
    statement = "select external_id, state from rag.documents where tenant_id = :t"
    with operator_session() as session:
        return {row[0]: row[1] for row in session.execute(text(statement), {"t": tenant.tenant_id})}


def _outbox(tenant_id: UUID) -> list[Row[Any]]:
    with operator_session() as session:
        return list(session.execute(text("select * from core.outbox where tenant_id = :t"), {"t": tenant_id}))


def _submitted(tenant_id: UUID, external_id: str = "4711") -> DocumentSubmitted:
    content = base64.b64encode(b"Der Jahresurlaub betr\xc3\xa4gt 30 Arbeitstage im Kalenderjahr.").decode()
    return DocumentSubmitted(tenant_id=tenant_id, external_id=external_id, file_name="a.txt", content=content)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "malformed-message"),
        (b"\xff\x00\xfe", "malformed-message"),
        (b"{", "malformed-message"),
        (b'{"name": "document-gone", "version": 1}', "unknown-message"),
        (b'{"name": "document-submitted", "version": 9}', "unknown-message"),
        (b'{"name": "document-submitted", "version": 1, "external_id": "x"}', "malformed-message"),
        (RunJob(job="sweep", slot=datetime(2026, 11, 21, tzinfo=UTC)).data(), "wrong-topic"),
        (AnswerQuestion(tenant_id=uuid4(), run_id=uuid4()).data(), "wrong-topic"),
    ],
    ids=["empty", "bytes", "cut", "name", "version", "fields", "job", "question"],
)
def test_what_cannot_be_read_becomes_a_dead_letter(database: object, data: bytes, reason: str) -> None:
    """Acknowledged, so that it does not come back, and kept byte for byte with its reason."""
    body = push_body(data, {"name": "document-submitted", "colour": "\x00\ud800"})
    assert _post(INGEST, body) == 204
    (letter,) = _letters(message_id=body["message"]["messageId"])
    assert (letter.reason, getattr(letter, "class"), bytes(letter.data)) == (reason, "poison", data)
    assert letter.origin == "ingest-upstream"


@pytest.mark.parametrize(
    ("change", "version"),
    [
        ({"content": "not base64"}, 3),
        ({"content": "AA" * 400_000}, 3),
        ({"version": 9}, 3),
        ({"collection": "Nicht erlaubt"}, 3),
        ({"source_version": "drei"}, 1_795_000_000_000_000),
        ({"source_version": -1, "access": {"members": "everybody"}}, 1_795_000_000_000_000),
    ],
    ids=["content", "too-much", "wire-version", "collection", "version", "access"],
)
def test_a_source_hears_of_a_submission_that_nobody_can_read(
    change: dict[str, Any], version: int, tenant: Principal, bus: FakeBus
) -> None:
    """It says for whom it is, so it ends like any other: with the reason and what to do, once; nothing is stored."""
    event = _submitted(tenant.tenant_id).model_copy(
        update={"source_version": 3, "occurred_at": datetime.fromtimestamp(1_795_000_000, UTC)}
    )
    # Attributes are optional for upstream: the body alone says it all.
    body = push_body(json.dumps(json.loads(event.data()) | change).encode())
    assert [_post(INGEST, body) for _ in range(3)] == [204] * 3
    (letter,) = _letters(message_id=body["message"]["messageId"])
    (sent,) = bus.published
    failed = decode(sent.data.encode(), sent.attributes)
    assert isinstance(failed, DocumentFailed)
    assert (failed.tenant_id, failed.source, failed.external_id) == (tenant.tenant_id, "upstream", "4711")
    assert (failed.reason, failed.source_version) == (letter.reason, version)
    assert (letter.tenant_id, letter.name, letter.traceparent) == (tenant.tenant_id, event.wire_name, event.traceparent)
    assert failed.next_action
    assert failed.trace_id == event.trace_id
    assert _documents(tenant) == {}


@pytest.mark.parametrize(
    "doubt", ["unbound", "unknown-tenant", "two-tenants", "no-document", "known-version", "another-event"]
)
def test_nobody_hears_of_what_is_not_surely_theirs(
    doubt: str, tenant: Principal, make_tenant: Callable[..., Principal], bus: FakeBus
) -> None:
    """The dead letter is all there is: no event for a tenant that its source may not speak for, and no wrong one."""
    event = _submitted(tenant.tenant_id).model_copy(update={"source_version": 3})
    content = json.loads(event.data()) | {"content": "not base64"}
    attributes = event.attributes()
    if doubt == "unbound":
        with operator_session() as session:
            session.execute(text("delete from core.sources where tenant_id = :t"), {"t": tenant.tenant_id})
    elif doubt == "unknown-tenant":
        content["tenant_id"] = attributes["tenant_id"] = str(uuid4())
    elif doubt == "two-tenants":
        attributes["tenant_id"] = str(make_tenant().tenant_id)
    elif doubt == "no-document":
        del content["external_id"]
    elif doubt == "known-version":
        assert _send(event)[0] == 204
    else:
        content["name"] = "document-withdrawn"
        content["external_id"] = ""
    bus.published.clear()
    body = push_body(json.dumps(content).encode(), attributes)
    assert _post(INGEST, body) == 204
    assert bus.published == []
    assert len(_letters(message_id=body["message"]["messageId"])) == 1


def test_the_same_message_again_is_the_same_dead_letter(database: object) -> None:
    """A redelivery after a lost acknowledgement changes nothing."""
    body = push_body(b"nonsense")
    assert [_post(INGEST, body) for _ in range(3)] == [204] * 3
    assert len(_letters(message_id=body["message"]["messageId"])) == 1


def test_bodies_that_are_no_push_are_kept_apart(database: object) -> None:
    """Without a message id two different bodies are two letters."""
    bodies = [f"no push {uuid4()}".encode() for _ in range(2)]
    assert [_post(INGEST, body) for body in bodies] == [204, 204]
    assert [len(_letters(data=body)) for body in bodies] == [1, 1]


def test_ids_that_postgresql_cannot_store_do_not_stop_the_archive(database: object) -> None:
    """NUL and lone surrogates anywhere around a message end in the archive, not in a retry for ever."""
    marker = uuid4().hex
    body = push_body(marker.encode(), {"a\x00": "\ud800", "traceparent": "\x00", "name": "\udfff"})
    body["message"]["messageId"] = f"{marker}\x00\ud800"
    body["subscription"] = "s/\x00\ud800"
    assert _post(INGEST, body) == 204
    assert len(_letters(data=marker.encode())) == 1


def test_a_forged_tenant_is_a_dead_letter_and_touches_nobody(tenant: Principal, make_tenant: Any, bus: FakeBus) -> None:
    """A tenant that does not exist, or that this source may not speak for, gets nothing; the others go on."""
    other = make_tenant()
    with operator_session() as session:
        session.execute(
            text("delete from core.sources where tenant_id = :t and source = 'upstream'"),
            {"t": other.tenant_id},
        )
    for tenant_id in (uuid4(), other.tenant_id):
        for message in (_submitted(tenant_id), DocumentWithdrawn(tenant_id=tenant_id, external_id="4711")):
            status, message_id = _send(message)
            assert status == 204
            (letter,) = _letters(message_id=message_id)
            assert (letter.reason, getattr(letter, "class")) == ("source-not-bound", "permanent")
            assert letter.tenant_id == tenant_id
    assert _documents(other) == {}
    assert _send(_submitted(tenant.tenant_id))[0] == 204
    assert list(_documents(tenant)) == ["4711"]
    assert bus.names()


def test_the_source_is_the_path_and_not_what_a_message_says(tenant: Principal, bus: FakeBus) -> None:
    """No path, or an unknown one, speaks for no tenant at all."""
    for path in ("/", "/sources/", "/sources/elsewhere", "/sources/upstream/x"):
        status, message_id = _send(_submitted(tenant.tenant_id, path), path)
        assert status == 204
        assert [letter.reason for letter in _letters(message_id=message_id)] == ["source-not-bound"]
    assert _documents(tenant) == {}


def test_a_tenant_in_the_attributes_that_differs_is_a_dead_letter(tenant: Principal, bus: FakeBus) -> None:
    """Two tenants in one message: neither gets it."""
    message = _submitted(tenant.tenant_id)
    body = push_body(message.data(), message.attributes() | {"tenant_id": str(uuid4())})
    assert _post(INGEST, body) == 204
    assert [x.reason for x in _letters(message_id=body["message"]["messageId"])] == ["tenant-mismatch"]
    assert _documents(tenant) == {}


def _door(error: Exception, kind: type[Message] = EmbedChunks) -> Callable[[Request], Response]:
    @handles(kind)
    def door(message: Message, delivery: Delivery) -> None:
        """Fail."""
        raise error

    return door


def _command(tenant: Principal) -> EmbedChunks:
    return EmbedChunks(
        tenant_id=tenant.tenant_id, document_id=uuid4(), version_id=uuid4(), space_id=uuid4(), chunk_ids=(uuid4(),)
    )


def test_a_permanent_failure_is_archived_with_its_reason(tenant: Principal, bus: FakeBus) -> None:
    """Acknowledged, and operators find tenant, trace, reason and the message itself."""
    command = _command(tenant)
    body = push_body(command.data(), command.attributes())
    assert _post(_door(PermanentError("model-refused", "The model refused.", "Check it.")), body, "/") == 204
    (letter,) = _letters(message_id=body["message"]["messageId"])
    assert (letter.reason, letter.message, letter.name) == ("model-refused", "The model refused.", "embed-chunks")
    assert (letter.tenant_id, letter.traceparent) == (tenant.tenant_id, command.traceparent)
    assert decode(bytes(letter.data), letter.attributes) == command
    assert bus.published == bus.later == []


def test_postponed_work_comes_back_as_the_same_message(tenant: Principal, bus: FakeBus) -> None:
    """Acknowledged now, and handed to “publish later” under the same event id for exactly that moment."""
    until = datetime.now(UTC) + timedelta(minutes=7)
    command = _command(tenant)
    body = push_body(command.data(), command.attributes())
    for _ in range(2):  # a redelivery postpones once
        assert _post(_door(Postponed(until, "the provider asks for time")), body, "/") == 204
    (later,) = bus.later
    assert (later.topic, later.not_before, later.event_id) == ("embed-chunks", until, command.event_id)
    assert decode(later.data.encode(), later.attributes) == command
    assert _outbox(tenant.tenant_id) == []
    assert _letters(message_id=body["message"]["messageId"]) == []


def test_a_postponed_document_comes_back_from_its_own_source(tenant: Principal, bus: FakeBus) -> None:
    """A document of web must not return as one of upstream: the topic is the source's."""
    message = _submitted(tenant.tenant_id)
    door = _door(Postponed(datetime.now(UTC) + timedelta(minutes=1), "x"), DocumentSubmitted)
    assert _post(door, push_body(message.data()), "/sources/web") == 204
    assert [later.topic for later in bus.later] == ["documents-web"]


def test_postponed_work_survives_a_bus_that_is_down(tenant: Principal, bus: FakeBus) -> None:
    """Acknowledged only because the outbox has it; the sweep sends it later."""
    bus.down = True
    command = _command(tenant)
    until = datetime.now(UTC) + timedelta(minutes=7)
    assert _post(_door(Postponed(until, "x")), push_body(command.data()), "/") == 204
    (row,) = _outbox(tenant.tenant_id)
    assert (row.event_id, row.not_before, row.topic) == (command.event_id, until, "embed-chunks")


def test_a_job_that_cannot_run_now_is_refused_and_comes_again(database: object, bus: FakeBus) -> None:
    """Platform work has no tenant and so no outbox: 503, Pub/Sub itself brings it back."""
    job = RunJob(job="sweep", slot=datetime(2026, 11, 21, tzinfo=UTC))
    door = _door(Postponed(datetime.now(UTC) + timedelta(minutes=1), "x"), RunJob)
    assert _post(door, push_body(job.data()), "/") == 503
    assert bus.later == []


def test_shared_trouble_leaves_no_trace(tenant: Principal, bus: FakeBus) -> None:
    """503 means “again”: no dead letter, no outbox row, no message."""
    command = _command(tenant)
    body = push_body(command.data(), command.attributes())
    assert _post(_door(TransientError("down")), body, "/") == 503
    assert _letters(message_id=body["message"]["messageId"]) == []
    assert _outbox(tenant.tenant_id) == []
    assert bus.published == bus.later == []
