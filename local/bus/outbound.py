"""HTTP requests of the bus to its receivers, over connections that stay open."""

from __future__ import annotations

import http.client
import select
import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

# A connection that has rested longer is opened anew: gunicorn closes idle ones after two seconds, and a request that
# crosses that close cannot be told from a receiver that died over it.
_REST = 1.0
# Nobody reads what a receiver writes: more than this is not even drained.
_ANSWER_BYTES = 65536


class Unreachable(Exception):
    """Nobody accepted the connection: nothing was sent."""


class Broken(Exception):
    """The connection ended, or time ran out, after something was sent."""


class Answer(NamedTuple):
    """Status and headers (lower-case names) of a response; its body was read and dropped."""

    status: int
    headers: Mapping[str, str]


class Sender:
    """One thread's connection to one origin (scheme://host:port). Not for sharing between threads."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if not parts.hostname:
            raise ValueError(f"no host in {url!r}")
        self.target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port)
        self._used = 0.0

    def send(self, method: str, headers: Mapping[str, str], body: bytes, timeout: float) -> Answer:
        """Send one request and wait at most `timeout` seconds for each part of the answer.

        Raises Unreachable or Broken.
        """
        self._connect(timeout)
        try:
            self._connection.request(method, self.target, body, dict(headers))
            response = self._connection.getresponse()
            if response.status < 200:
                # An interim answer taken as the final one (102 acknowledges): the real one would follow on this line.
                self.close()
            else:
                response.read(_ANSWER_BYTES)
                if not response.isclosed():
                    self.close()
            self._used = time.monotonic()
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()})
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Broken(f"{type(error).__name__}: {error}") from error

    def _connect(self, timeout: float) -> None:
        connection = self._connection
        if connection.sock is not None:
            rested = time.monotonic() - self._used > _REST
            if rested or select.select([connection.sock], [], [], 0)[0]:
                connection.close()
            else:
                connection.sock.settimeout(timeout)
                return
        connection.timeout = timeout
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise Unreachable(str(error)) from error

    def close(self) -> None:
        """Drop the connection; the next request opens another."""
        self._connection.close()
