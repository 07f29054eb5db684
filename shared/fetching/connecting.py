"""The connection of a fetch: resolved once, checked, made to the checked address, and never longer than its limits."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpcore

from shared.fetching.addresses import Address, Allowance, Target, check_address
from shared.fetching.failures import timed_out, unreachable

Resolver = Callable[[str, int], Sequence[str]]
"""Host and port to addresses; raises OSError."""


def resolve(host: str, port: int) -> list[str]:
    """All addresses of a host, in the order in which the system would try them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Deadline:
    """How much of the total time of a fetch is left."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def cap(self, seconds: float | None) -> float:
        """The shorter of a wait and what is left. Raises FetchFailed `web-timeout` when nothing is left."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise timed_out()
        return left if seconds is None else min(seconds, left)


class GuardedBackend(httpcore.NetworkBackend):
    """Connects to a target only, at an address that was checked; TLS still asks for the certificate of the name."""

    def __init__(self, target: Target, allowed: Allowance, resolver: Resolver, deadline: Deadline) -> None:
        self._target = target
        self._allowed = allowed
        self._resolver = resolver
        self._deadline = deadline
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address that answers, after every address of the name was found public."""
        target = self._target
        addresses = [_address(text) for text in self._resolved(timeout)]
        for address in addresses:
            check_address(address, target, self._allowed)
        for address in addresses:
            try:
                stream = self._plain.connect_tcp(
                    str(address), target.port, self._deadline.cap(timeout), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
            return _LimitedStream(stream, self._deadline)
        raise unreachable("no connection")

    def _resolved(self, timeout: float | None) -> list[str]:
        """The addresses of the name. In a thread of its own, because the system's resolver has no time limit."""
        found: list[str] = []

        def look_up() -> None:
            try:
                found.extend(self._resolver(self._target.host, self._target.port))
            except (OSError, UnicodeError):
                found.clear()

        thread = threading.Thread(target=look_up, daemon=True)
        thread.start()
        thread.join(self._deadline.cap(timeout))
        if thread.is_alive():
            raise timed_out()
        if not found:
            raise unreachable("its name is not known")
        return found


def _address(text: str) -> Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise unreachable("its name leads nowhere") from None


class _LimitedStream(httpcore.NetworkStream):
    """A stream whose every wait is cut to what is left of the fetch: a drip of bytes ends like a silence."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read within the limits."""
        return self._stream.read(max_bytes, self._deadline.cap(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write within the limits."""
        self._stream.write(buffer, self._deadline.cap(timeout))

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Begin TLS for the host name (not the address): SNI and certificate are those of the site."""
        stream = self._stream.start_tls(ssl_context, server_hostname, self._deadline.cap(timeout))
        return _LimitedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """What the stream beneath knows."""
        return self._stream.get_extra_info(info)
