"""A collector for tests: takes OTLP over HTTP, decodes the protobuf, keeps spans, raw bodies and headers."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.loopback import served


@dataclass(frozen=True)
class Received:
    """A span as it arrived; ids in hexadecimal."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    is_error: bool
    started: int
    ended: int


@dataclass
class Receiver:
    """What arrived so far; `status` is what the next request is answered with."""

    url: str
    status: int = 200
    spans: list[Received] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    hold: threading.Event | None = None
    """While set and not fired, requests are left without an answer."""

    def named(self, name: str) -> Received:
        """The only span of this name."""
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def names(self) -> list[str]:
        """The names of all spans, in order of arrival."""
        return [span.name for span in self.spans]


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A collector on a free port of loopback."""
    receiver = Receiver("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if receiver.hold is not None:
                receiver.hold.wait(20)
                self.close_connection = True
                return
            receiver.paths.append(self.path)
            receiver.headers.append({name.lower(): value for name, value in self.headers.items()})
            if receiver.status < 300:
                plain = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                receiver.bodies.append(plain)
                receiver.spans += decode_spans(plain)
            self.send_response(receiver.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 # the name of the base class
            """Nothing."""

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as receiver.url:
        try:
            yield receiver
        finally:
            if receiver.hold is not None:
                receiver.hold.set()


def decode_spans(body: bytes) -> list[Received]:
    """The spans of an ExportTraceServiceRequest."""
    found = []
    for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _values(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            found += [
                Received(
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.name,
                    span.kind,
                    _values(span.attributes),
                    resource,
                    span.status.code == 2,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                )
                for span in scope_spans.spans
            ]
    return found


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None
