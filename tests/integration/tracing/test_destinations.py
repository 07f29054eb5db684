"""Where traces go: under each destination's names, and a dead, slow or wrong one harms nobody."""

from __future__ import annotations

import base64
import json
import logging
import socket
import threading
import time

import httpx
import pytest

from shared import tracing
from shared.settings import load_settings
from shared.tracing.export import FIRST_PAUSE, Destination, Exporter, configure_tracing
from tests.integration.tracing.tracing_material import thin
from tests.otlp_receiver import Receiver, receiving


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
