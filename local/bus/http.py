"""The bus's HTTP door: REST publish (the target of "publish later"), the keys of its tokens, its state."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import re
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import grpc

from local.bus.broker import MESSAGE_BYTES, Broker
from local.bus.clock import Clock
from local.bus.refusal import Refused, invalid
from local.bus.tokens import Tokens
from local.bus.wire import Pb, PubsubMessage

log = logging.getLogger(__name__)

_PUBLISH = re.compile(r"/v1/(projects/[^/]+/topics/[^/:]+):publish")
# base64 makes four bytes of three; the rest is room for names and attributes.
_BODY_BYTES = MESSAGE_BYTES * 4 // 3 + 1_000_000
_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Door(ThreadingHTTPServer):
    """Serves until `shutdown`; `clock` is given only when tests may move it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        broker: Broker,
        tokens: Tokens,
        status: Callable[[], dict[str, Any]],
        clock: Clock | None,
    ) -> None:
        self.broker, self.tokens, self.status, self.clock = broker, tokens, status, clock
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "noesis-bus"
    sys_version = ""
    # Seconds a silent client may keep a thread.
    timeout = 60
    # Status line, headers and body are separate writes: without this each answer waits for the client's delayed ACK.
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Door

    def do_GET(self) -> None:  # the name http.server asks for
        """Keys, health and state."""
        path = urlsplit(self.path).path
        if path == "/jwks":
            self._answer(HTTPStatus.OK, self.server.tokens.jwks(), {"Cache-Control": "public, max-age=3600"})
        elif path == "/healthz":
            self._answer(HTTPStatus.OK, {"status": "ok"})
        elif path == "/_status":
            self._answer(HTTPStatus.OK, self.server.status())
        else:
            self._error(HTTPStatus.NOT_FOUND, "NOT_FOUND", "There is nothing here.")

    def do_POST(self) -> None:
        """Publish, and for tests the clock."""
        try:
            body = self._body()
            self._refuse_browsers()
            url = urlsplit(self.path)
            if match := _PUBLISH.fullmatch(unquote(url.path)):
                ids = self.server.broker.publish(match.group(1), _messages(body))
                self._answer(HTTPStatus.OK, {"messageIds": ids})
            elif url.path == "/_clock/advance" and self.server.clock is not None:
                self.server.clock.advance(_seconds(url.query))
                self._answer(HTTPStatus.OK, {"now": self.server.clock.now()})
            else:
                raise Refused(grpc.StatusCode.NOT_FOUND, "There is nothing here.")
        except Refused as refusal:
            status = _STATUS.get(refusal.code, HTTPStatus.INTERNAL_SERVER_ERROR)
            self._error(status, refusal.code.name, refusal.message)

    def _refuse_browsers(self) -> None:
        """A page in the user's browser can reach this port: it must not publish as if it were an upstream system."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        if self.headers.get("Origin") is not None or (
            self.server.server_address[0] in _LOOPBACK and host not in _LOOPBACK
        ):
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "Not for browsers.")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdigit()) or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise invalid("Send the body with a Content-Length.")
        if int(length) > _BODY_BYTES:
            self.close_connection = True
            raise invalid(f"Request payload size exceeds the limit: {MESSAGE_BYTES} bytes.")
        return self.rfile.read(int(length))

    def _answer(self, status: HTTPStatus, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _error(self, status: HTTPStatus, name: str, message: str) -> None:
        self._answer(status, {"error": {"code": status.value, "message": message, "status": name}})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 # the signature http.server calls
        """Requests are not logged: there is one per task and per health check."""


def _seconds(query: str) -> float:
    try:
        seconds = float(parse_qs(query)["seconds"][0])
    except (KeyError, ValueError):
        raise invalid("Say how far: ?seconds=N.") from None
    if not 0 <= seconds <= 366 * 86400:
        raise invalid("The clock moves forward, by a year at most.")
    return seconds


def _messages(body: bytes) -> list[Pb]:
    """The messages of a publish request in JSON (REST reference, projects.topics.publish)."""
    try:
        return [_message(one) for one in json.loads(body)["messages"]]
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error, RecursionError):
        raise invalid('Invalid JSON payload received: expected {"messages": [{"data": base64, …}]}.') from None


def _message(content: dict[str, Any]) -> Pb:
    if unknown := content.keys() - {"data", "attributes", "orderingKey", "messageId", "publishTime"}:
        raise invalid(f"Invalid JSON payload received. Unknown name {min(unknown)[:100]!r}.")
    data = content.get("data", "")
    # Both alphabets are JSON's base64 of protobuf; padding may be missing.
    raw = base64.b64decode(data.translate(str.maketrans("-_", "+/")) + "=" * (-len(data) % 4), validate=True)
    return PubsubMessage(
        data=raw, attributes=content.get("attributes") or {}, ordering_key=content.get("orderingKey") or ""
    )
