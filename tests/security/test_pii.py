"""Canaries in documents, settings and errors: real doors run; logs, traces and dead letters are searched for them."""

from __future__ import annotations

import base64
import io
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, cast
from uuid import UUID, uuid4

import httpx
import pytest
from click.testing import CliRunner
from flask import Flask, request
from sqlalchemy import text

from cli.dead_letters import dead_letters
from functions.agent import main as agent
from functions.embed import main as embed
from functions.ingest import main as ingest
from shared import doors, tracing
from shared.conversations.runs import ask, read_run
from shared.database import operator_session, tenant_session
from shared.doors import Delivery, Door, handles
from shared.errors import PermanentError, SettingsError
from shared.events import DocumentSubmitted, EmbedChunks
from shared.fakes import FakeBus, FakeModels
from shared.privacy.policies import forget_policies
from shared.services import Services
from shared.settings import load_settings
from shared.tenants.directory import Principal
from shared.tracing import configure_logging
from shared.tracing.export import Destination, Exporter
from tests.otlp_receiver import Receiver, receiving
from tests.pushes import Open, push_body
from tests.unit.personal_material import STRUCTURED

WORD = "Kanarienvogelschutzverordnungsentwurf"
"""A word that identifies nobody: it is content, and content has no business in logs."""


@dataclass
class World:
    """What left: log lines and spans."""

    lines: io.StringIO
    collector: Receiver

    def left(self) -> str:
        """Everything that a log reader or a trace reader can see."""
        return (
            self.lines.getvalue() + "\n" + "\n".join(body.decode("utf-8", "replace") for body in self.collector.bodies)
        )


@pytest.fixture
def world(fake_services: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The doors with all their logs on a stream and all their spans at a receiver, everything kept."""
    for function in (ingest, embed, agent):
        monkeypatch.setattr(function, "services", lambda: fake_services)
    monkeypatch.setattr(doors, "_verifier", Open)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    forget_policies()
    with receiving() as collector:
        configure_logging(level=logging.DEBUG)
        destination = Destination("test", collector.url, {}, httpx.Client(timeout=60))
        tracing.use_sink(Exporter([destination], "s", "dev", 1.0, True))
        try:
            yield World(stream, collector)
        finally:
            tracing.use_sink(None)
            root.handlers[:], root.level = before


def canaries() -> dict[str, str]:
    """One value of every structured kind, on one line each."""
    random = Random(20261121)
    return {kind: make(random) for kind, make in STRUCTURED.items()}


def push(door: Any, data: bytes, attributes: dict[str, str], path: str = "/") -> int:
    """A push, handled inside a Flask application that logs what escapes, as functions-framework's does."""
    app = Flask("function")
    app.add_url_rule("/<path:path>", "door", lambda path: cast("Door", door)(request), methods=["POST"])
    app.add_url_rule("/", "root", lambda: cast("Door", door)(request), methods=["POST"])
    return app.test_client().post(path, json=push_body(data, attributes)).status_code


def submitted(tenant: Principal, body: str) -> DocumentSubmitted:
    """A document with canaries in everything that upstream may fill."""
    found = canaries()
    return DocumentSubmitted(
        tenant_id=tenant.tenant_id,
        external_id=f"{WORD}/{found['email']}",
        file_name=f"{found['email']}.txt",
        title=f"Akte {found['phone']} {WORD}",
        content=base64.b64encode(body.encode()).decode(),
        metadata={"von": found["iban"]},
        idempotency_key=found["email"],
    )


def body_with_canaries() -> str:
    """A document that quotes them all."""
    return f"{WORD}: Der Jahresurlaub beträgt 30 Arbeitstage. " + "\n\n".join(
        f"Hinterlegt ist {value} in der Akte." for value in canaries().values()
    )


def silent(world: World, *, content: bool = True) -> None:
    """No canary has left, and something has been looked at."""
    left = world.left()
    assert left.strip()
    for kind, value in canaries().items():
        assert value not in left, kind
        assert json.dumps(value)[1:-1] not in left, kind
    if content:
        assert WORD not in left


def test_a_documents_way_leaves_no_trace_of_its_content(world: World, tenant: Principal, bus: FakeBus) -> None:
    """Submitted, parsed, embedded, indexed: lines and spans name ids and counts."""
    event = submitted(tenant, body_with_canaries())
    assert push(ingest.ingest, event.data(), event.attributes(), "/sources/upstream") == 204
    for message in [m for m in bus.published if m.attributes["name"] == "embed-chunks"]:
        assert push(embed.embed, message.data.encode(), message.attributes) == 204
    assert "handle embed-chunks" in world.collector.names()
    silent(world)


def test_a_failing_document_does_not_tell_what_it_holds(
    world: World, tenant: Principal, bus: FakeBus, fake_services: Services
) -> None:
    """Unreadable content, a storage that fails with the text in its message, an error of nobody's."""
    found = canaries()
    broken = submitted(tenant, " ")
    assert push(ingest.ingest, broken.data(), broken.attributes(), "/sources/upstream") == 204

    class Storage:
        def put(self, tenant_id: UUID, data: bytes) -> str:
            raise OSError(f"cannot write {data!r} of {found['email']} {WORD}")

    fake_services._storage = cast(Any, Storage())
    event = submitted(tenant, body_with_canaries())
    assert push(ingest.ingest, event.data(), event.attributes(), "/sources/upstream") == 500
    assert "OSError" in world.lines.getvalue()
    silent(world)


def test_an_error_of_the_database_does_not_tell_its_values(world: World, tenant: Principal) -> None:
    """SQLAlchemy and PostgreSQL put parameters and rows into their errors."""
    found = canaries()

    @handles(EmbedChunks)
    def door(message: EmbedChunks, delivery: Delivery) -> None:
        with tenant_session(message.tenant_id) as session:
            session.execute(
                text("insert into core.runs (tenant_id, run_id, question) values (:t, :r, :q)"),
                {"t": tenant.tenant_id, "r": uuid4(), "q": f"{WORD} {found['email']} {found['iban']}"},
            )

    command = EmbedChunks(
        tenant_id=tenant.tenant_id, document_id=uuid4(), version_id=uuid4(), space_id=uuid4(), chunk_ids=(uuid4(),)
    )
    assert push(door, command.data(), command.attributes()) == 500
    assert "handle embed-chunks" in world.collector.names()
    silent(world)


def test_a_dead_letter_tells_a_code_and_ids(world: World, tenant: Principal, bus: FakeBus) -> None:
    """Reason and sentence are masked; the message itself is kept for the replay, and no list shows it."""
    found = canaries()

    @handles(DocumentSubmitted)
    def door(message: DocumentSubmitted, delivery: Delivery) -> None:
        raise PermanentError("model-refused", f"The model refused {found['email']} {found['iban']}.", "")

    event = submitted(tenant, body_with_canaries())
    assert push(door, event.data(), event.attributes()) == 204
    with operator_session() as session:
        letter = session.execute(
            text("select reason, message, attributes, origin from core.dead_letters where tenant_id = :t"),
            {"t": tenant.tenant_id},
        ).one()
    shown = CliRunner().invoke(dead_letters, ["list", "--tenant", tenant.tenant_slug, "--json"])
    assert shown.exit_code == 0
    assert "model-refused" in shown.output
    for told in (str(letter), shown.output):
        assert WORD not in told
        assert not [kind for kind, value in found.items() if value in told]
    silent(world)


def test_a_message_that_cannot_be_read_is_not_quoted(world: World, database: object) -> None:
    """Also when its fields are the canary: the reason tells which field, not what stood there."""
    found = canaries()
    marker = uuid4().hex
    for data in (
        f"{{{found['email']} {WORD} {marker}".encode(),
        json.dumps({"name": found["email"], "version": 1, "x": marker}).encode(),
        json.dumps({"name": "document-submitted", "version": 1, "tenant_id": found["email"], "x": marker}).encode(),
        json.dumps({"name": "document-submitted", "version": 1, "collection": found["iban"], "x": marker}).encode(),
    ):
        assert push(ingest.ingest, data, {"name": found["email"]}, "/sources/upstream") == 204
    with operator_session() as session:
        statement = text("select reason, message from core.dead_letters where position(cast(:m as bytea) in data) > 0")
        told = str(session.execute(statement, {"m": marker.encode()}).all())
    assert "malformed-message" in told
    assert found["email"] not in told
    assert found["iban"] not in told
    silent(world)


def test_settings_do_not_leave(world: World, monkeypatch: pytest.MonkeyPatch, settings: object) -> None:
    """Passwords and keys neither in the text of the settings nor in the sentence about a wrong one."""
    secrets = {
        "DATABASE_URL": "postgresql+pg8000://app:canary-pass-1@127.0.0.1/x",
        "SECRET_KEY": "canary-pass-2",
        "LITELLM_MASTER_KEY": "canary-pass-3",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=canary-pass-4",
        "LANGFUSE_HOST": "http://127.0.0.1:1",
        "LANGFUSE_PUBLIC_KEY": "pk-lf-1",
        "LANGFUSE_SECRET_KEY": "canary-pass-5",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    told = [repr(load_settings()), str(load_settings())]
    for name in ("LANGFUSE_HOST", "TRACE_SAMPLE_RATE", "BATCH_SIZE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "" if name == "LANGFUSE_HOST" else "canary-pass-6")
            with pytest.raises(SettingsError) as caught:
                load_settings()
            told.append(str(caught.value))
    logging.getLogger("x").error("settings %s", load_settings())
    assert "canary-pass" not in "".join(told) + world.left()


def test_a_model_sees_pseudonyms_and_the_reader_the_values(
    world: World, tenant: Principal, bus: FakeBus, fake_services: Services
) -> None:
    """The question finds its document unmasked, the model reads placeholders, answer and quotation name the value."""
    mail = canaries()["email"]
    body = f"Ansprechpartner für den Jahresurlaub ist {mail}. Der Jahresurlaub beträgt 30 Arbeitstage."
    event = submitted(tenant, body)
    push(ingest.ingest, event.data(), event.attributes(), "/sources/upstream")
    for message in [m for m in bus.published if m.attributes["name"] == "embed-chunks"]:
        push(embed.embed, message.data.encode(), message.attributes)
    models = cast("FakeModels", fake_services.models)
    models.chat = echoing(models)  # type: ignore[method-assign]
    with tenant_session(tenant.tenant_id) as session:
        run_id = ask(session, tenant, f"Wer ist Ansprechpartner für den Jahresurlaub, {mail}?")
    command = next(m for m in bus.published if m.attributes["name"] == "answer-question")
    assert push(agent.agent, command.data.encode(), command.attributes) == 204
    assert models.asked
    assert mail not in json.dumps(models.asked, ensure_ascii=False)
    assert "⟦EMAIL-" in json.dumps(models.asked, ensure_ascii=False)
    with tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, run_id)
        stored = session.execute(text("select string_agg(text, ' ') from rag.chunks")).scalar_one()
        streamed = session.execute(
            text("select string_agg(data ->> 'text', '' order by seq) from core.run_events where kind = 'token'")
        ).scalar_one()
    assert run is not None
    assert run.answer is not None
    assert mail in run.answer
    assert mail in run.citations[0].quote
    assert mail in stored
    assert mail in streamed
    assert "⟦" not in run.answer + streamed + stored
    assert mail not in world.left()


def echoing(models: FakeModels) -> Any:
    """A model that quotes the first sentence of the first passage, in pieces of three characters."""
    from shared.llm import ChatReply

    def chat(messages: Any, **_: Any) -> Iterator[Any]:
        models.asked.append(list(messages))
        passages = messages[-1]["content"]
        quoted = passages.partition('">\n')[2].partition(". ")[0]
        reply = f"„{quoted}“ [1]"
        yield from (reply[at : at + 3] for at in range(0, len(reply), 3))
        yield ChatReply(reply, "fake", 10, 10)

    return chat
