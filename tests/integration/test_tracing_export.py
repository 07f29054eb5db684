"""One trace over every process, read back from a real OTLP receiver; what is kept, what is masked, what it costs."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest
from flask import Flask, request
from sqlalchemy import text

from functions.agent import main as agent
from functions.embed import main as embed
from functions.ingest import main as ingest
from local.ports import free_ports
from shared import doors, tracing
from shared.database import operator_session, tenant_session
from shared.doors import Delivery, Door, handles
from shared.errors import PermanentError, Postponed
from shared.events import AnswerQuestion, DocumentSubmitted, EmbedChunks, decode, new_traceparent
from shared.fakes import FakeBus, FakeModels
from shared.messaging import Outgoing
from shared.privacy.editing import set_tracing
from shared.privacy.policies import forget_policies, policy_of
from shared.services import Services
from shared.settings import Settings, load_settings
from shared.tenants.directory import Principal
from shared.tracing.export import FIRST_PAUSE, Destination, Exporter, configure_tracing
from tests.conftest import Database
from tests.otlp_receiver import Received, Receiver, receiving
from web import authentication, create_app

DOCUMENT = "Der Jahresurlaub beträgt 30 Arbeitstage. Fragen beantwortet eva.canary@nordwind.example gern."


class Open:
    """A verifier that has verified: the token is the business of tests/unit/test_push.py."""

    def verify(self, authorization: str, path: str) -> None:
        """Let everyone in."""


@pytest.fixture
def collector() -> Iterator[Receiver]:
    """A real OTLP receiver on loopback."""
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def traced(collector: Receiver, fake_services: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The doors with the twins of storage and models, and traces that go to the receiver."""
    for function in (ingest, embed, agent):
        monkeypatch.setattr(function, "services", lambda: fake_services)
    monkeypatch.setattr(doors, "_verifier", Open)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    settings = load_settings()
    configure_tracing(settings, "noesis2-test")
    forget_policies()
    yield settings
    tracing.use_sink(None)


def push(door: Any, message: Any, path: str = "/") -> int:
    """A push of a message (or of what was published) to a door; returns the status."""
    data, attributes = (
        (message.data.encode(), message.attributes)
        if isinstance(message, Outgoing)
        else (message.data(), message.attributes())
    )
    body = {
        "message": {"data": base64.b64encode(data).decode(), "attributes": attributes, "messageId": uuid4().hex},
        "subscription": "projects/noesis-local/subscriptions/test",
    }
    with Flask("test").test_request_context(path, method="POST", json=body):
        return cast("Door", door)(request).status_code


def submitted(tenant: Principal, text: str = DOCUMENT, traceparent: str = "") -> DocumentSubmitted:
    """A document as an upstream system publishes it."""
    return DocumentSubmitted(
        tenant_id=tenant.tenant_id,
        external_id=uuid4().hex,
        file_name="a.txt",
        content=base64.b64encode(text.encode()).decode(),
        traceparent=traceparent or new_traceparent(),
    )


def ancestors(spans: list[Received], span: Received) -> list[str]:
    """The names from the span up to where its trace entered these processes."""
    by_id = {one.span_id: one for one in spans}
    names = []
    while span.parent_id in by_id:
        span = by_id[span.parent_id]
        names.append(span.name)
    return names


def test_a_document_is_one_trace_from_publish_to_searchable(
    traced: Settings, collector: Receiver, tenant: Principal, bus: FakeBus
) -> None:
    """Upstream's span is the parent of ingest's door, a span of ingest that of embed's; all of one trace."""
    event = submitted(tenant)
    assert push(ingest.ingest, event, "/sources/upstream") == 204
    (command,) = [message for message in bus.published if message.attributes["name"] == "embed-chunks"]
    assert push(embed.embed, command) == 204
    assert {span.trace_id for span in collector.spans} == {event.trace_id}
    opened, embedded = collector.named("handle document-submitted"), collector.named("handle embed-chunks")
    assert opened.parent_id == event.traceparent[36:52]
    assert "handle document-submitted" in ancestors(collector.spans, embedded)
    for name in ("parse", "chunk"):
        assert ancestors(collector.spans, collector.named(name)) == ["handle document-submitted"]
    call = collector.named("embed")
    assert ancestors(collector.spans, call)[0] == "handle embed-chunks"
    assert call.attributes["langfuse.observation.type"] == "embedding"
    assert call.attributes["gen_ai.request.model"] == "fake"
    assert call.attributes["gen_ai.usage.input_tokens"] > 0
    assert embedded.attributes["noesis.cost_eur"] == 0.0
    assert embedded.attributes["noesis.tenant_id"] == str(tenant.tenant_id)
    assert embedded.resource["service.name"] == "noesis2-test"
    indexed = next(message for message in bus.published if message.attributes["name"] == "document-indexed")
    assert indexed.attributes["traceparent"][3:35] == event.trace_id
    assert all(span.ended >= span.started > 0 for span in collector.spans)


def test_a_question_is_one_trace_from_the_page_to_its_answer(
    traced: Settings, collector: Receiver, tenant: Principal, bus: FakeBus, fake_services: Services
) -> None:
    """The request begins it, the agent continues it, what announces the answer carries it on."""
    event = submitted(tenant)
    push(ingest.ingest, event, "/sources/upstream")
    push(embed.embed, next(m for m in bus.published if m.attributes["name"] == "embed-chunks"))
    collector.spans.clear()
    models = cast("FakeModels", fake_services.models)
    models.replies = ["„Der Jahresurlaub beträgt 30 Arbeitstage.“ [1]"]
    client = signed_in(tenant, fake_services, traced)
    assert client.post("/questions", json={"question": "Wie viele Arbeitstage Jahresurlaub?"}).status_code == 201
    command = next(m for m in bus.published if m.attributes["name"] == "answer-question")
    assert push(agent.agent, command) == 204
    asked, answered = collector.named("question"), collector.named("handle answer-question")
    assert {span.trace_id for span in collector.spans} == {asked.trace_id}
    assert asked.parent_id == ""
    assert ancestors(collector.spans, answered)[-1] == "question"
    assert asked.attributes["user.id"] == str(tenant.member_id)
    for node in ("contextualise", "retrieve", "generate", "verify"):
        assert ancestors(collector.spans, collector.named(node))[:1] == ["handle answer-question"]
    called = collector.named("call model")
    assert ancestors(collector.spans, called)[0] == "generate"
    assert called.attributes["langfuse.observation.type"] == "generation"
    assert called.attributes["noesis.prompt_version"].startswith("answer-")
    assert called.attributes["langfuse.observation.prompt.name"] == "answer"
    assert called.attributes["langfuse.observation.prompt.version"] >= 1
    assert called.attributes["gen_ai.usage.output_tokens"] > 0
    assert called.attributes["noesis.cost_eur"] == 0.0
    assert "Jahresurlaub" in called.attributes["langfuse.observation.input"]
    assert "eva.canary" not in called.attributes["langfuse.observation.input"]
    assert "30 Arbeitstage" in called.attributes["langfuse.observation.output"]
    assert answered.attributes["session.id"] == answered.attributes["gen_ai.conversation.id"]
    ready = decode_named(bus, "answer-ready")
    assert ready.trace_id == asked.trace_id
    with tenant_session(tenant.tenant_id) as session:
        stored = session.execute(text("select traceparent from core.runs")).scalar_one()
    assert stored[3:35] == asked.trace_id


def decode_named(bus: FakeBus, name: str) -> Any:
    """The published message of a name."""
    found = next(m for m in bus.published if m.attributes["name"] == name)
    return decode(found.data.encode(), found.attributes)


def signed_in(tenant: Principal, services: Services, settings: Settings) -> Any:
    """A browser of the tenant's administrator."""
    authentication.forget_memberships()
    local = settings.model_copy(update={"local_sign_in": True})
    app = create_app(services=Services(local, _storage=services.storage, _models=services.models))
    client = app.test_client()
    for form in ({"email": tenant.email, "tenant": str(tenant.tenant_id)}, None):
        found = re.search(r'name="csrf-token" content="([^"]+)"', client.get("/").text)
        assert found
        client.environ_base["HTTP_X_CSRF_TOKEN"] = found[1]
        if form:
            assert client.post("/sign-in", data=form).status_code == 302
    return client


def test_langfuse_gets_its_names_and_nobody_elses_headers(
    collector: Receiver, monkeypatch: pytest.MonkeyPatch, database: object
) -> None:
    """Its address, Basic authentication, its attribute names; the collector's own header does not travel along."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url + "/")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-collector-key=s%3Dcret")
    monkeypatch.setenv("LANGFUSE_HOST", collector.url)
    monkeypatch.setenv("LANGFUSE_PUBLIC_KEY", "pk-1")
    monkeypatch.setenv("LANGFUSE_KEY", "sk-2")
    configure_tracing(load_settings())
    try:
        with tracing.operation("answer", tenant_id="t"), tracing.span("model", observation="generation") as span:
            span.set(
                model="m", input_tokens=7, output_tokens=2, cost_eur=0.5, prompt_version="answer-3", input="Frage?"
            )
    finally:
        tracing.use_sink(None)
    assert collector.paths == ["/v1/traces", "/api/public/otel/v1/traces"]
    plain, langfuse = collector.headers
    assert plain["x-collector-key"] == "s=cret"
    assert "authorization" not in plain
    assert langfuse["authorization"] == "Basic " + base64.b64encode(b"pk-1:sk-2").decode()
    assert "x-collector-key" not in langfuse
    attributes = collector.spans[0].attributes
    assert attributes["langfuse.observation.model.name"] == "m"
    assert json.loads(attributes["langfuse.observation.usage_details"]) == {"input": 7, "output": 2}
    assert json.loads(attributes["langfuse.observation.cost_details"]) == {"total": 0.5}
    assert attributes["langfuse.observation.prompt.name"] == "answer"
    assert attributes["langfuse.observation.prompt.version"] == 3
    assert attributes["langfuse.observation.input"] == "Frage?"
    assert attributes["langfuse.environment"] == "dev"


@pytest.mark.parametrize(("stage", "rate"), [("dev", 1.0), ("staging", 0.25), ("prod", 0.05)])
def test_every_process_keeps_the_same_part_of_the_traces(
    stage: str, rate: float, collector: Receiver, monkeypatch: pytest.MonkeyPatch, database: object
) -> None:
    """The trace id alone decides, so two processes agree on every trace, and the part is the stage's."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("NOESIS_STAGE", stage)
    sinks: list[Any] = []
    monkeypatch.setattr("shared.tracing.export.use_sink", sinks.append)
    for _ in range(2):
        configure_tracing(load_settings())
    ids = [new_traceparent()[3:35] for _ in range(20_000)]
    one, two = ({trace for trace in ids if sink.is_sampled(trace, None)} for sink in sinks)
    assert one == two
    assert abs(len(one) / len(ids) - rate) < 0.012
    assert sinks[0].content is (stage != "prod")


def unsampled(exporter: Exporter) -> str:
    """A traceparent outside of the sample."""
    while True:
        traceparent = new_traceparent()
        if not exporter.is_sampled(traceparent[3:35], None):
            return traceparent


def test_a_trace_that_saw_an_error_is_kept_whole(
    traced: Settings, collector: Receiver, tenant: Principal, bus: FakeBus
) -> None:
    """Outside of the sample nothing leaves; with an error in it every span of this process does."""
    exporter = thin(collector)
    assert push(ingest.ingest, submitted(tenant, traceparent=unsampled(exporter)), "/sources/upstream") == 204
    assert collector.spans == []
    broken = submitted(tenant, text=" ", traceparent=unsampled(exporter))
    assert push(ingest.ingest, broken, "/sources/upstream") == 204
    failed = collector.named("handle document-submitted")
    assert failed.is_error
    assert failed.attributes["error.type"] == "empty-document"
    assert failed.attributes["langfuse.observation.level"] == "ERROR"
    assert "parse" in collector.names() or "transaction" in collector.names()


def thin(collector: Receiver, rate: float = 0.0) -> Exporter:
    """An exporter that keeps hardly anything, in force."""
    client = httpx.Client(timeout=60)
    exporter = Exporter([Destination("test", collector.url + "/v1/traces", {}, client)], "s", "prod", rate, False)
    tracing.use_sink(exporter)
    return exporter


def test_stopping_early_is_no_error(collector: Receiver, tenant: Principal, traced: Settings, bus: FakeBus) -> None:
    """Postponed work is the normal way of a full day; a permanent failure is one."""
    thin(collector)

    def door(error: Exception) -> Any:
        @handles(EmbedChunks)
        def use(message: EmbedChunks, delivery: Delivery) -> None:
            """Stop."""
            with tracing.span("inner"):
                raise error

        return use

    command = EmbedChunks(
        tenant_id=tenant.tenant_id, document_id=uuid4(), version_id=uuid4(), space_id=uuid4(), chunk_ids=(uuid4(),)
    )
    later = Postponed(datetime.now(UTC) + timedelta(minutes=1), "x")
    assert push(door(later), command) == 204
    assert collector.spans == []
    assert push(door(PermanentError("model-refused", "No.", "")), command) == 204
    assert collector.named("handle embed-chunks").attributes["error.type"] == "model-refused"
    assert collector.named("inner").is_error


def test_rules_of_a_tenant_decide_what_leaves(
    traced: Settings, collector: Receiver, make_tenant: Callable[..., Principal], bus: FakeBus
) -> None:
    """One tenant is left out of traces, another one wants no texts in them."""
    silent, mute = make_tenant(), make_tenant()
    with operator_session() as session:
        set_tracing(session, silent.tenant_id, "test", sample_rate=0.0)
        set_tracing(session, mute.tenant_id, "test", content=False)
    forget_policies()
    assert push(ingest.ingest, submitted(silent), "/sources/upstream") == 204
    assert collector.spans == []
    with (
        tracing.under(policy_of(mute.tenant_id)),
        tracing.operation("x", input="Frage", output="Antwort", model="m"),
    ):
        pass
    attributes = collector.named("x").attributes
    assert attributes["gen_ai.request.model"] == "m"
    assert not [name for name in attributes if "input" in name or "output" in name]


def test_what_leaves_is_masked_and_no_exception_tells_its_text(collector: Receiver) -> None:
    """Names, values, lists, errors of spans: everything passes the mask; an exception leaves only its kind."""
    exporter = thin(collector, 1.0)
    exporter.content = True
    canary = "eva.canary@nordwind.example"
    with pytest.raises(ValueError, match="canary"), tracing.operation(f"op {canary}", note=canary, several=[canary]):
        with tracing.span("inner", input={"role": canary}, first=canary, second=canary):
            raise ValueError(f"cannot read {canary}")
    sent = b"".join(collector.bodies)
    assert len(collector.spans) == 2
    assert b"canary" not in sent
    assert all(span.attributes["error.type"] == "ValueError" for span in collector.spans)


def test_a_dead_collector_costs_one_try_and_one_line(caplog: pytest.LogCaptureFixture, unused_url: str) -> None:
    """Refused connections: the first operation meets it, the others do not ask, nobody sees an error."""
    now = [0.0]
    destination = Destination("it", unused_url, {}, httpx.Client(timeout=60), clock=lambda: now[0])
    tracing.use_sink(Exporter([destination], "s", "dev", 1.0, True))
    try:
        with caplog.at_level(logging.INFO):
            for _ in range(50):
                with tracing.operation("x"):
                    pass
            now[0] += FIRST_PAUSE + 1
            with tracing.operation("x"):
                pass
            with receiving() as receiver:
                destination.url = receiver.url
                now[0] += 2 * FIRST_PAUSE + 1
                with tracing.operation("again"):
                    pass
                assert receiver.names() == ["again"]
    finally:
        tracing.use_sink(None)
    told = [record.getMessage() for record in caplog.records if record.name == "shared.tracing.export"]
    assert len(told) == 2
    assert "do not reach it (ConnectError)" in told[0]
    assert "51 spans were lost" in told[1]


@pytest.fixture
def unused_url() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1/traces"


def test_a_collector_that_hangs_holds_nobody_longer_than_promised(collector: Receiver) -> None:
    """One operation waits for the timeout; those that come meanwhile and after it do not."""
    collector.hold = threading.Event()
    destination = Destination("it", collector.url, {}, httpx.Client(timeout=0.3))
    tracing.use_sink(Exporter([destination], "s", "dev", 1.0, True))
    try:
        began = time.monotonic()
        for _ in range(30):
            with tracing.operation("x"):
                pass
        assert 0.25 < time.monotonic() - began < 1.5
    finally:
        tracing.use_sink(None)
    collector.hold.set()


def test_while_a_destination_is_tried_again_nobody_else_waits_for_it(collector: Receiver) -> None:
    """Half open: one caller tries, the others drop what they have."""
    now = [0.0]
    destination = Destination("it", collector.url, {}, httpx.Client(timeout=1), clock=lambda: now[0])
    collector.status = 503
    assert destination.is_open()
    destination.send(b"", 1)
    now[0] = FIRST_PAUSE + 1
    assert [destination.is_open() for _ in range(5)] == [True, False, False, False, False]


def test_many_spans_do_not_fill_the_memory(collector: Receiver) -> None:
    """A loop leaves 512 spans and how many are missing; its operation is among them."""
    thin(collector, 1.0)
    with tracing.operation("loop"):
        for _ in range(2_000):
            with tracing.span("step"):
                pass
    assert len(collector.spans) == 513
    assert collector.named("loop").attributes["noesis.dropped_spans"] == 1_488


def test_many_failures_do_not_fill_the_memory_either(collector: Receiver) -> None:
    """Spans that failed get twice the room, not all of it."""
    thin(collector)
    with tracing.operation("loop"):
        for _ in range(2_000):
            with tracing.span("step") as span:
                span.fail("again")
    assert len(collector.spans) == 1_025
    assert collector.named("loop").attributes["noesis.dropped_spans"] == 976


@pytest.mark.parametrize("headers", [{"x": "ü\ud800"}, {"a\nb": "c"}])
@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/", "nonsense", "ftp://127.0.0.1/", "http://[::1", "http://127.0.0.1:99999/"]
)
def test_a_destination_that_is_written_wrong_harms_nobody(url: str, headers: dict[str, str]) -> None:
    """A slip in a setting is a warning; the work it should have told about goes on."""
    destination = Destination("it", url, headers, httpx.Client(timeout=1))
    tracing.use_sink(Exporter([destination], "s", "dev", 1.0, True))
    try:
        with tracing.operation("x"):
            pass
    finally:
        tracing.use_sink(None)
    assert not destination.is_open()


def test_nothing_is_recorded_without_a_collector(settings: Settings) -> None:
    """No sink, no spans, and the message's own traceparent is what is passed on."""
    configure_tracing(settings)
    traceparent = new_traceparent()
    with tracing.operation("x", traceparent=traceparent) as span:
        span.set(a=1)
        with tracing.span("y"):
            assert tracing.current("traceparent") == traceparent


def test_a_question_command_keeps_its_own_trace_inside_somebody_elses(traced: Settings) -> None:
    """The sweep sends a run on: the run's trace goes with it, not the sweep's."""
    own = new_traceparent()
    command = AnswerQuestion(tenant_id=uuid4(), run_id=uuid4(), traceparent=own)
    with tracing.operation("sweep"):
        assert tracing.continued_by(command.traceparent) == own
    with tracing.operation("agent", traceparent=own):
        assert tracing.continued_by(own)[3:35] == own[3:35]
        assert tracing.continued_by(own) != own


def test_a_real_process_has_sent_its_spans_when_it_answers(
    collector: Receiver, tenant: Principal, database: Database, tmp_path: Path
) -> None:
    """The deployed way: functions-framework with settings from the environment; nothing is left for later."""
    (port,) = free_ports(1)
    base = f"http://127.0.0.1:{port}"
    environment = os.environ | {
        "DATABASE_URL": database.application_url,
        "NOESIS_HOME": str(tmp_path),
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_SERVICE_NAME": "noesis2-embed",
        "PUSH_AUDIENCE": base,
        "PUSH_SERVICE_ACCOUNT": "push@test.example",
        "PUSH_TOKEN_SIGNATURE": "removed",
        "THREADS": "2",
        "WORKERS": "1",
        "XDG_RUNTIME_DIR": str(tmp_path),
    }
    source = Path(embed.__file__)
    command = [sys.executable, "-m", "functions_framework", "--source", str(source), "--target", "embed"]
    command += ["--signature-type", "http", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=source.parents[2])
    try:
        await_listening(process, port)
        gone = EmbedChunks(
            tenant_id=tenant.tenant_id, document_id=uuid4(), version_id=uuid4(), space_id=uuid4(), chunk_ids=(uuid4(),)
        )
        message = {"data": base64.b64encode(gone.data()).decode(), "attributes": gone.attributes(), "messageId": "1"}
        answer = httpx.post(
            f"{base}/", json={"message": message}, headers={"Authorization": f"Bearer {unsigned(base)}"}, timeout=60
        )
        assert answer.status_code == 204, (tmp_path / "log").read_text()
        # Not awaited: it was there before the answer.
        handled = collector.named("handle embed-chunks")
    finally:
        process.terminate()
        process.wait(20)
    assert (handled.trace_id, handled.parent_id) == (gone.trace_id, gone.traceparent[36:52])
    assert handled.resource["service.name"] == "noesis2-embed"


def await_listening(process: subprocess.Popen[bytes], port: int) -> None:
    """Until somebody listens; a process that ended is told at once."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert process.poll() is None
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        threading.Event().wait(0.05)
    raise AssertionError("the function does not listen")


def unsigned(base: str) -> str:
    """A push token as Cloud Run hands it on: claims without a signature."""
    now = int(time.time())
    claims = {"iss": "https://accounts.google.com", "aud": f"{base}/", "iat": now, "exp": now + 600}
    claims |= {"email": "push@test.example", "email_verified": True}
    parts = [json.dumps(part).encode() for part in ({"alg": "RS256", "typ": "JWT"}, claims)]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts) + "."
