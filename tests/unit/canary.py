"""A server on loopback that tells who has come, and answers as it is told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

Reply = Callable[[socket.socket, bytes], None]


@dataclass
class Canary:
    """A server on loopback that counts everybody who connects, on IPv4 and, where there is one, IPv6."""

    port: int
    reply: Reply
    seen: list[bytes] = field(default_factory=list)

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(5)
            self.seen.append(b"connected")
            try:
                request = connection.recv(65536)
                self.seen.append(request)
                self.reply(connection, request)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                return


def answer(status: str = "200 OK", body: bytes = b"hello", **headers: str) -> Reply:
    """A server that always says this."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    return lambda connection, _: connection.sendall(head + body)


@contextmanager
def canaries() -> Iterator[Callable[[Reply], Canary]]:
    """Starts canaries; they stop at the end."""
    listeners: list[tuple[socket.socket, threading.Thread]] = []

    def listen(canary_: Canary, family: socket.AddressFamily, host: str) -> int:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, canary_.port))
        listener.listen()
        canary_.port = listener.getsockname()[1]
        thread = threading.Thread(target=canary_.serve, args=(listener,), daemon=True)
        thread.start()
        listeners.append((listener, thread))
        return canary_.port

    def start(reply: Reply) -> Canary:
        made = Canary(0, reply)
        listen(made, socket.AF_INET, "127.0.0.1")
        for family, host in ((socket.AF_INET, "127.0.0.2"), (socket.AF_INET, "127.0.0.7"), (socket.AF_INET6, "::1")):
            with suppress(OSError):  # not every machine has them
                listen(made, family, host)
        return made

    try:
        yield start
    finally:
        for listener, thread in listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join(5)
