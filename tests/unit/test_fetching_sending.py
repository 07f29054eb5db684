"""One request of the HTTP tool: guarded like a fetch, bounded, and honest about whether it left."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from shared.fetching.addresses import Target, allowance, check_url
from shared.fetching.failures import FetchFailed
from shared.fetching.sending import OutcomeUnknown, Response, send


@contextmanager
def answering(*pieces: bytes, reset: bool = False) -> Iterator[tuple[int, list[bytes]]]:
    """A server for one connection that answers with these bytes; the port, and what it was sent."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def serve() -> None:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                if not reset:
                    received.append(_request(connection))
                for piece in pieces:
                    connection.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1], received
        finally:
            thread.join()


def _request(connection: socket.socket) -> bytes:
    """Head and body of what is sent."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def _finding(addresses: list[str], _host: str, _port: int) -> list[str]:
    return addresses


def ask(port: int, method: str = "POST", body: bytes = b"", limit: int = 1000) -> Response:
    """Send one request to the server."""
    allowed = allowance(f"127.0.0.1:{port}")
    target = check_url(f"http://127.0.0.1:{port}/a?b=c", allowed)
    return send(target, method, {"Idempotency-Key": "k"}, body, allowed=allowed, seconds=5, limit=limit)


def test_a_request_is_sent_as_asked_and_its_answer_read() -> None:
    """Method, path, body and our headers; status, kind and body."""
    with answering(b"HTTP/1.1 201 Created\r\nContent-Type: Text/Plain; charset=x\r\nContent-Length: 2\r\n\r\nok") as (
        port,
        received,
    ):
        assert ask(port, body=b"{}") == Response(201, "text/plain", b"ok", False)
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /a?b=c HTTP/1.1\r\n")
    assert b"Idempotency-Key: k" in head
    assert f"Host: 127.0.0.1:{port}".encode() in head
    assert body == b"{}"


def test_an_answer_without_an_end_is_cut() -> None:
    """At the limit, and said so."""
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 5000) as (port, _):
        answer = ask(port, "GET", limit=100)
    assert (len(answer.body), answer.cut) == (100, True)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", b"SSH-2.0-x\r\n\r\n"])
def test_what_broke_after_sending_is_of_unknown_outcome(answer: bytes) -> None:
    """The service may have done it."""
    with answering(answer) as (port, _), pytest.raises(OutcomeUnknown):
        ask(port)


def test_what_was_never_sent_is_a_plain_failure() -> None:
    """Nobody listens: nothing happened, and that is known."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(FetchFailed) as caught:
        ask(port)
    assert not isinstance(caught.value, OutcomeUnknown)


def test_a_public_name_that_leads_inside_is_not_called() -> None:
    """Every address of the name is checked before the connection, and the connection goes to the checked one."""
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", reset=True) as (port, received):
        target = Target("http", "service.example", port, "/")
        for found in (["127.0.0.1"], ["203.0.114.9", "10.0.0.1"], ["::ffff:127.0.0.1"], ["169.254.169.254"]):
            with pytest.raises(FetchFailed) as caught:
                send(
                    target,
                    "POST",
                    {},
                    b"all I know",
                    allowed=allowance(""),
                    seconds=5,
                    limit=10,
                    resolver=partial(_finding, found),
                )
            assert caught.value.reason == "address-not-allowed"
            assert not isinstance(caught.value, OutcomeUnknown)
        assert received == []
        socket.create_connection(("127.0.0.1", port)).close()
