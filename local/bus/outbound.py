"""HTTP requests of the bus to its receivers, over connections that stay open.

`http.client` connects (TLS included), `httptools` reads the answer: reading it in Python was a third of all the time
the bus had (benchmarks/bus.py).
"""

from __future__ import annotations

import http.client
import re
import select
import socket
import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools

# A connection that has rested longer is opened anew: gunicorn closes idle ones after two seconds, and a request that
# crosses that close cannot be told from a receiver that died over it.
_REST = 1.0
# Nobody reads what a receiver writes: more than this is not even drained.
_ANSWER_BYTES = 65536
_HEADER_BYTES = 65536
# What ends a header line; from a task's own headers it would smuggle in a second request.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Unreachable(Exception):
    """Nobody accepted the connection: nothing was sent."""


class Broken(Exception):
    """The connection ended, or time ran out, after something was sent; or the request cannot be said in HTTP."""


class Answer(NamedTuple):
    """Status and headers (lower-case names) of a response; its body was read and dropped."""

    status: int
    headers: Mapping[str, str]


class _Reading:
    """What `httptools` has understood of an answer so far; the methods are its callbacks."""

    def __init__(self, *, bodiless: bool) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = False
        self.reusable = False
        """Whether the connection stands ready for the next request."""
        self._bodiless = bodiless

    def on_message_begin(self) -> None:
        if self.complete:
            self.reusable = False  # more than was asked for: whose answer would the next one be?

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.complete:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        self.status = self.parser.get_status_code()
        if self.status == 100:
            # "Continue": the answer itself is still to come.
            self.status, self.headers = 0, {}
        elif self._bodiless:
            self.complete = True

    def on_message_complete(self) -> None:
        if self.status and not self.complete:
            self.complete = True
            # An interim answer taken as the final one (102 acknowledges): the real one would follow on this line.
            self.reusable = self.status >= 200 and bool(self.parser.should_keep_alive())


class Sender:
    """One thread's connection to one origin (scheme://host:port). Not for sharing between threads."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if not parts.hostname:
            raise ValueError(f"no host in {url!r}")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._target = target.encode("ascii", "replace").replace(b" ", b"%20")
        host = parts.hostname if ":" not in parts.hostname else f"[{parts.hostname}]"
        self._host = f"{host}:{parts.port}" if parts.port else host
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port)
        self._used = 0.0
        self._head: tuple[str, Mapping[str, str], bytes] = ("", {}, b"")

    def send(self, method: str, headers: Mapping[str, str], body: bytes, timeout: float) -> Answer:
        """Send one request and wait at most `timeout` seconds for each part of the answer.

        Raises Unreachable or Broken.
        """
        head = self._head_of(method, headers)
        line = self._connect(timeout)
        try:
            line.sendall(b"%sContent-Length: %d\r\n\r\n%s" % (head, len(body), body))
            reading = _Reading(bodiless=method == "HEAD")
            received = 0
            while not reading.complete:
                piece = line.recv(_HEADER_BYTES)
                received += len(piece)
                if piece:
                    reading.parser.feed_data(piece)
                if not piece or received > _HEADER_BYTES + _ANSWER_BYTES:
                    break
        except (OSError, httptools.HttpParserError) as error:
            self.close()
            raise Broken(f"{type(error).__name__}: {error}") from error
        if not reading.reusable:
            self.close()
        if not reading.status:
            raise Broken("the connection ended without an answer")
        self._used = time.monotonic()
        return Answer(reading.status, reading.headers)

    def _head_of(self, method: str, headers: Mapping[str, str]) -> bytes:
        """The request up to its Content-Length; a push repeats the last one, so that is kept."""
        known_method, known_headers, head = self._head
        if known_method == method and known_headers == headers:
            return head
        lines = [f"Host: {self._host}", *(f"{name}: {value}" for name, value in headers.items())]
        if any(map(_UNPRINTABLE.search, (method, *lines))):
            raise Broken("a header with control characters cannot be sent")
        try:
            said = "\r\n".join(lines).encode("latin-1")
        except UnicodeEncodeError:
            raise Broken("a header outside Latin-1 cannot be sent") from None
        head = b"%s %s HTTP/1.1\r\n%s\r\n" % (method.encode("ascii"), self._target, said)
        self._head = method, dict(headers), head
        return head

    def _connect(self, timeout: float) -> socket.socket:
        connection = self._connection
        if connection.sock is not None:
            rested = time.monotonic() - self._used > _REST
            if rested or select.select([connection.sock], [], [], 0)[0]:
                connection.close()
            else:
                line: socket.socket = connection.sock
                line.settimeout(timeout)
                return line
        connection.timeout = timeout
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise Unreachable(str(error)) from error
        line = connection.sock
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return line

    def close(self) -> None:
        """Drop the connection; the next request opens another."""
        self._connection.close()
