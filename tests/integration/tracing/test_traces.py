"""One trace over every process, read back from a real OTLP receiver."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import httpx
from sqlalchemy import text

from functions.agent import main as agent
from functions.embed import main as embed
from functions.ingest import main as ingest
from local.ports import free_ports
from shared import tracing
from shared.database import tenant_session
from shared.events import AnswerQuestion, EmbedChunks, decode, new_traceparent
from shared.fakes import FakeBus, FakeModels
from shared.services import Services
from shared.settings import Settings
from shared.tenants.directory import Principal
from shared.tracing.export import configure_tracing
from tests.conftest import Database
from tests.integration import web_browser
from tests.integration.tracing.tracing_material import push, submitted
from tests.otlp_receiver import Received, Receiver
from web import authentication, create_app


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
    return web_browser.signed_in(app, tenant)


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
