"""Traces leave: OTLP protobuf over HTTP to any collector and to Langfuse, before the operation's answer, bounded.

The wire format is OpenTelemetry's own (`opentelemetry-proto`); the SDK's exporter is not used, because it reads the
environment by itself (and would send the collector's headers to Langfuse), sleeps between retries, and its batches
need a background thread, which Cloud Run does not run after the response (docs/decisions/0019).
"""

from __future__ import annotations

import base64
import gzip
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx

from shared.settings import Settings
from shared.tracing.attributes import wire_attributes
from shared.tracing.spans import Recording, Span, use_sink

log = logging.getLogger(__name__)

STAGE_RATES = {"dev": 1.0, "staging": 0.25, "prod": 0.05}
"""The part of traces each stage keeps (REQUIREMENTS section 2)."""

FIRST_PAUSE, LONGEST_PAUSE = 60.0, 900.0
"""Seconds a destination that failed is left alone, doubling: one failed try a pause is below 1 % of any latency."""

COMPRESS_FROM = 8 * 1024
"""Bytes from which gzip is worth its time."""


@dataclass(slots=True, eq=False)
class Destination:
    """An address that takes traces, with a circuit breaker: after a failure it is left alone for a while."""

    name: str
    url: str
    headers: Mapping[str, str]
    client: httpx.Client
    clock: Callable[[], float] = time.monotonic
    _pause: float = 0.0
    _closed_until: float = 0.0
    _lost: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_open(self) -> bool:
        """Whether something may be sent. While the destination is down one caller at a time tries."""
        with self._lock:
            now = self.clock()
            if now < self._closed_until:
                return False
            if self._pause:
                # Whoever comes meanwhile does not wait for the one that tries.
                self._closed_until = now + self._pause
            return True

    def send(self, body: bytes, spans: int) -> None:
        """Send an ExportTraceServiceRequest; a failure closes the destination for a while and is told once."""
        headers = {"Content-Type": "application/x-protobuf", **self.headers}
        if len(body) >= COMPRESS_FROM:
            body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        try:
            status = self.client.post(self.url, content=body, headers=headers).status_code
            problem = "" if status < 300 else f"HTTP {status}"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            problem = type(error).__name__
        self._remember(problem, spans)

    def lose(self, spans: int) -> None:
        """Count what was not sent while closed."""
        with self._lock:
            self._lost += spans

    def _remember(self, problem: str, spans: int) -> None:
        with self._lock:
            failing = bool(self._pause)
            lost = self._lost
            if problem:
                self._lost += spans
                self._pause = min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
                self._closed_until = self.clock() + self._pause
            else:
                self._pause = self._closed_until = 0.0
                self._lost = 0
        if problem and not failing:
            log.warning("traces do not reach %s (%s): they are dropped until it answers again", self.name, problem)
        elif failing and not problem:
            log.info("traces reach %s again, %d spans were lost", self.name, lost)


@dataclass(slots=True)
class Exporter:
    """Decides what is kept, turns it into OTLP and sends it to every destination."""

    destinations: Sequence[Destination]
    service: str
    stage: str
    rate: float
    content: bool

    def is_sampled(self, trace_id: str, rate: float | None) -> bool:
        """By the low 64 bits of the trace id, like OpenTelemetry's TraceIdRatioBased: every process decides alike."""
        kept = self.rate if rate is None else rate
        return int(trace_id[16:], 16) < round(kept * 2**64)

    def take(self, recording: Recording) -> None:
        """Send what is kept to whom it reaches; never raises."""
        if not recording.sampled and not recording.failed:
            return
        reached = [destination for destination in self.destinations if destination.is_open()]
        for destination in self.destinations:
            if destination not in reached:
                destination.lose(len(recording.spans))
        if not reached:
            return
        try:
            body = self._request(recording)
        except (TypeError, ValueError, AttributeError, OverflowError, RecursionError):
            # A span that cannot be told must not fail the work it tells about.
            log.warning("a trace could not be encoded", exc_info=True)
            return
        for destination in reached:
            destination.send(body, len(recording.spans))

    def _request(self, recording: Recording) -> bytes:
        # Imported late: 40 ms that a process need not pay before it has something to send.
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
        from opentelemetry.proto.resource.v1.resource_pb2 import Resource
        from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans

        rules = recording.policy
        content = self.content if rules.content is None else rules.content
        wired = partial(wire_attributes, mask=rules.mask, content=content)
        resource = {"service.name": self.service, "deployment.environment.name": self.stage}
        scope = ScopeSpans(spans=[_span(recording, span, wired, self.stage) for span in recording.spans])
        scope.scope.name = "noesis2"
        found = ResourceSpans(resource=Resource(attributes=_attributes(resource)), scope_spans=[scope])
        body: bytes = ExportTraceServiceRequest(resource_spans=[found]).SerializeToString()
        return body


def _span(recording: Recording, span: Span, wired: Callable[..., dict[str, Any]], stage: str) -> Any:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as Wire
    from opentelemetry.proto.trace.v1.trace_pb2 import Status

    attributes = wired(span.attributes, span.error) | {"langfuse.environment": stage}
    if recording.dropped and span is recording.spans[-1]:
        attributes["noesis.dropped_spans"] = recording.dropped
    status = Status()
    if span.error:
        status = Status(code=Status.STATUS_CODE_ERROR, message=recording.policy.mask(span.error))
    return Wire(
        trace_id=bytes.fromhex(recording.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id),
        name=recording.policy.mask(span.name),
        kind=Wire.SpanKind.Value(f"SPAN_KIND_{span.kind.upper()}"),
        start_time_unix_nano=span.started,
        end_time_unix_nano=span.ended,
        attributes=_attributes(attributes),
        status=status,
    )


def _attributes(values: Mapping[str, Any]) -> list[Any]:
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue

    return [KeyValue(key=key, value=_value(value)) for key, value in values.items()]


def _value(value: Any) -> Any:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue

    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return AnyValue(int_value=value)
    if isinstance(value, int | float):
        return AnyValue(double_value=float(value))
    if isinstance(value, list):
        return AnyValue(array_value=ArrayValue(values=[_value(item) for item in value]))
    return AnyValue(string_value=str(value).encode("utf-8", "replace").decode("utf-8"))


def configure_tracing(settings: Settings, service: str = "") -> None:
    """Record and send traces from now on when a collector or Langfuse is configured; otherwise record nothing."""
    client = httpx.Client(timeout=settings.trace_flush_seconds, follow_redirects=False)
    found = [Destination(name, url, headers, client) for name, url, headers in _addresses(settings)]
    if not found:
        client.close()
        use_sink(None)
        return
    stage, rate, content = settings.noesis_stage, settings.trace_sample_rate, settings.trace_content
    use_sink(
        Exporter(
            found,
            service or settings.otel_service_name,
            stage,
            STAGE_RATES[stage] if rate == "stage" else rate,
            stage != "prod" if content == "stage" else content == "yes",
        )
    )


def _addresses(settings: Settings) -> list[tuple[str, str, dict[str, str]]]:
    found = []
    collector = settings.otel_exporter_otlp_traces_endpoint
    if not collector and settings.otel_exporter_otlp_endpoint:
        collector = settings.otel_exporter_otlp_endpoint.rstrip("/") + "/v1/traces"
    if collector:
        headers = _headers(settings.otel_exporter_otlp_headers.get_secret_value())
        found.append(("the collector", collector, headers))
    if settings.langfuse_host:
        pair = f"{settings.langfuse_public_key}:{settings.langfuse_secret_key.get_secret_value()}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        url = settings.langfuse_host.rstrip("/") + "/api/public/otel/v1/traces"
        found.append(("Langfuse", url, {"Authorization": authorization}))
    return found


def _headers(given: str) -> dict[str, str]:
    """`name=value,name=value` with values percent-encoded, as OTEL_EXPORTER_OTLP_HEADERS is specified."""
    from urllib.parse import unquote

    pairs = (pair.partition("=") for pair in given.split(",") if "=" in pair)
    return {name.strip(): unquote(value.strip()) for name, _, value in pairs}
