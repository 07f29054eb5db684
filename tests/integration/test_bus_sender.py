"""The bus's HTTP client: what it makes of answers, good and bad, over real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from local.bus.outbound import Broken, Sender, Unreachable
from local.ports import free_ports

Serve = Callable[..., "Canned"]


class Canned:
    """A server that answers each request with the next canned bytes and counts its connections."""

    def __init__(self, *answers: bytes, hang_up: bool = False) -> None:
        self.answers = list(answers)
        self.hang_up = hang_up
        self.connections = 0
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/push?x=1"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while self.answers:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with line:
                while self.answers and (request := line.recv(65536)):
                    self.requests.append(request)
                    line.sendall(self.answers.pop(0))
                    if self.hang_up:
                        break

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers that are gone afterwards."""
    servers: list[Canned] = []

    def start(*answers: bytes, hang_up: bool = False) -> Canned:
        servers.append(Canned(*answers, hang_up=hang_up))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_answers_share_a_connection(serve: Serve) -> None:
    """Two requests, two answers with their headers, one connection; the request is well-formed."""
    server = serve(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nRetry-After: 7 \r\n\r\nab", b"HTTP/1.1 204 No Content\r\n\r\n"
    )
    sender = Sender(server.url)
    first = sender.send("POST", {"A": "b"}, b"body", 5)
    second = sender.send("POST", {"A": "c"}, b"", 5)
    sender.close()
    assert (first.status, first.headers["retry-after"], second.status) == (200, "7", 204)
    assert server.connections == 1
    host = server.url.split("/")[2].encode()
    assert server.requests == [
        b"POST /push?x=1 HTTP/1.1\r\nHost: %s\r\nA: b\r\nContent-Length: 4\r\n\r\nbody" % host,
        b"POST /push?x=1 HTTP/1.1\r\nHost: %s\r\nA: c\r\nContent-Length: 0\r\n\r\n" % host,
    ]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 200),
        (b"HTTP/1.0 201 Created\r\nContent-Length: 0\r\n\r\n", 201),
        (b"HTTP/1.1 102 Processing\r\n\r\n", 102),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", 200),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200_000, 200),
    ],
    ids=["close", "http-1.0", "interim-as-final", "two-answers", "endless-body"],
)
def test_a_connection_that_cannot_be_trusted_is_not_used_again(serve: Serve, answer: bytes, status: int) -> None:
    """After an answer that ends or spoils the connection the next request opens another."""
    server = serve(answer, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", hang_up=True)
    sender = Sender(server.url)
    assert sender.send("POST", {}, b"", 5).status == status
    assert sender.send("POST", {}, b"", 5).status == 200
    sender.close()
    assert server.connections == 2


def test_continue_is_not_the_answer(serve: Serve) -> None:
    """100 Continue announces the answer, which then counts."""
    server = serve(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
    )
    sender = Sender(server.url)
    answer = sender.send("POST", {}, b"", 5)
    assert (answer.status, answer.headers) == (503, {"retry-after": "3", "content-length": "0"})
    assert sender.send("POST", {}, b"", 5).status == 200
    sender.close()
    assert server.connections == 1


def test_an_answer_without_length_ends_with_the_connection(serve: Serve) -> None:
    """Its status counts, as with any HTTP client."""
    sender = Sender(serve(b"HTTP/1.1 202 Accepted\r\n\r\nfine", hang_up=True).url)
    assert sender.send("POST", {}, b"", 5).status == 202


def test_the_answer_to_head_has_no_body(serve: Serve) -> None:
    """A length that announces what never comes is not waited for."""
    sender = Sender(serve(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n").url)
    assert sender.send("HEAD", {}, b"", 5).status == 200


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 20", b"SSH-2.0-OpenSSH\r\n"], ids=["nothing", "half a line", "another protocol"]
)
def test_no_answer_is_broken(serve: Serve, answer: bytes) -> None:
    """What ends before a status, or is not HTTP, may or may not have been handled: Broken."""
    sender = Sender(serve(answer, hang_up=True).url)
    with pytest.raises(Broken):
        sender.send("POST", {}, b"", 5)


def test_silence_is_broken_and_nobody_there_is_unreachable(serve: Serve) -> None:
    """Time runs out after something was sent; a closed port takes nothing at all."""
    sender = Sender(serve(b"", b"").url)
    with pytest.raises(Broken):
        sender.send("POST", {}, b"", 0.05)
    sender.close()
    (port,) = free_ports(1)
    with pytest.raises(Unreachable):
        Sender(f"http://127.0.0.1:{port}/").send("POST", {}, b"", 5)


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\x00", "€"])
def test_a_header_cannot_smuggle_a_second_request(serve: Serve, value: str) -> None:
    """Line ends, control characters and what Latin-1 does not have are refused before anything is sent."""
    server = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(Broken):
        Sender(server.url).send("POST", {"A": value}, b"", 5)
    assert server.connections == 0
