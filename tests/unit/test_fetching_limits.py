"""A fetch ends: at its size, its time, its redirects, whatever the server does, and says whether waiting helps."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from shared.fetching.addresses import allowance
from shared.fetching.client import Fetcher, Limits
from shared.fetching.failures import FetchFailed
from tests.unit.canary import Canary, Reply, answer, canaries


@pytest.fixture
def canary() -> Iterator[Callable[[Reply], Canary]]:
    """Starts canaries; they stop with the test."""
    with canaries() as start:
        yield start


def test_redirects_end(canary: Callable[[Reply], Canary]) -> None:
    """A circle of redirects is left after the sixth request."""
    bird = canary(answer("301 Moved", b"", Location="/again"))
    with pytest.raises(FetchFailed, match="more than 5 times"):
        Fetcher(allowance(f"127.0.0.1/32:{bird.port}")).fetch(f"http://127.0.0.1:{bird.port}/")
    assert bird.seen.count(b"connected") == 6


def test_a_redirect_to_another_host_is_left_to_people(canary: Callable[[Reply], Canary]) -> None:
    """Another host has rules of its own, so the fetch ends with the reason."""
    bird = canary(answer("302 Found", b"", Location="https://www.public.example/"))
    with pytest.raises(FetchFailed, match="another host") as refused:
        Fetcher(allowance(f"127.0.0.1/32:{bird.port}")).fetch(f"http://127.0.0.1:{bird.port}/")
    assert refused.value.reason == "redirect-refused"


def test_a_bomb_goes_off_at_the_limit(canary: Callable[[Reply], Canary]) -> None:
    """A gzip of 64 MiB zeros is 64 KiB on the wire and ends at the limit, not in memory."""
    bomb = gzip.compress(bytes(64 * 1024 * 1024))
    bird = canary(answer(body=bomb, Content_Encoding="gzip"))
    with pytest.raises(FetchFailed, match="larger than") as refused:
        Fetcher(allowance(f"127.0.0.1/32:{bird.port}"), Limits(size=1024 * 1024)).fetch(
            f"http://127.0.0.1:{bird.port}/"
        )
    assert refused.value.reason == "too-large"


def test_a_gzip_page_is_unpacked(canary: Callable[[Reply], Canary]) -> None:
    """What was asked for with gzip arrives whole."""
    text = b"<p>hello</p>" * 1000
    bird = canary(answer(body=gzip.compress(text), Content_Encoding="gzip", Content_Type="text/html; charset=utf-8"))
    page = Fetcher(allowance(f"127.0.0.1/32:{bird.port}")).fetch(f"http://127.0.0.1:{bird.port}/")
    assert (page.body, page.media_type) == (text, "text/html")


def test_an_endless_body_ends_at_the_limit(canary: Callable[[Reply], Canary]) -> None:
    """Without a length, the bytes are counted."""

    def endless(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            connection.sendall(bytes(65536))

    bird = canary(endless)
    with pytest.raises(FetchFailed, match="larger than"):
        Fetcher(allowance(f"127.0.0.1/32:{bird.port}"), Limits(size=300_000)).fetch(f"http://127.0.0.1:{bird.port}/")


@pytest.mark.parametrize("drip", [b"x", b"X-Slow: 1\r\n"], ids=["body", "headers"])
def test_a_drip_ends_with_the_total_time(canary: Callable[[Reply], Canary], drip: bytes) -> None:
    """A byte now and then keeps no worker longer than the total, though it is never silent for long."""
    stopped = threading.Event()

    def dripping(connection: socket.socket, _: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\n" + (b"Content-Length: 100000\r\n\r\n" if drip == b"x" else b"")
        connection.sendall(head)
        while not stopped.wait(0.05):
            connection.sendall(drip)

    bird = canary(dripping)
    began = time.monotonic()
    try:
        with pytest.raises(FetchFailed) as refused:
            Fetcher(allowance(f"127.0.0.1/32:{bird.port}"), Limits(total=0.6, idle=0.3)).fetch(
                f"http://127.0.0.1:{bird.port}/"
            )
    finally:
        stopped.set()
    assert (refused.value.reason, refused.value.temporary) == ("web-timeout", True)
    assert time.monotonic() - began < 3


def test_a_silence_ends_with_the_idle_time(canary: Callable[[Reply], Canary]) -> None:
    """A server that takes the request and says nothing."""
    released = threading.Event()
    bird = canary(lambda *_: (released.wait(5), None)[1])
    began = time.monotonic()
    with pytest.raises(FetchFailed) as refused:
        Fetcher(allowance(f"127.0.0.1/32:{bird.port}"), Limits(total=20, idle=0.3)).fetch(
            f"http://127.0.0.1:{bird.port}/"
        )
    released.set()
    assert refused.value.reason == "web-timeout"
    assert time.monotonic() - began < 4


def test_a_resolver_that_hangs_ends_too() -> None:
    """The system's resolver knows no time limit; the fetch does."""
    released = threading.Event()

    def hanging(*_: object) -> Sequence[str]:
        released.wait(10)
        return []

    with pytest.raises(FetchFailed) as refused:
        Fetcher(limits=Limits(total=0.3), resolver=hanging).fetch("https://public.example/")
    released.set()
    assert refused.value.reason == "web-timeout"


@pytest.mark.parametrize(
    ("status", "reason", "temporary"),
    [
        ("404 Not Found", "page-missing", False),
        ("410 Gone", "page-missing", False),
        ("403 Forbidden", "page-refused", False),
        ("429 Too Many Requests", "web-busy", True),
        ("503 Service Unavailable", "web-busy", True),
    ],
)
def test_a_refusal_is_typed(canary: Callable[[Reply], Canary], status: str, reason: str, temporary: bool) -> None:
    """Each status says whether waiting helps, and for how long."""
    bird = canary(answer(status, b"", Retry_After="120"))
    with pytest.raises(FetchFailed) as refused:
        Fetcher(allowance(f"127.0.0.1/32:{bird.port}")).fetch(f"http://127.0.0.1:{bird.port}/")
    assert (refused.value.reason, refused.value.temporary) == (reason, temporary)
    assert refused.value.retry_after == (120.0 if temporary else None)


@pytest.mark.parametrize(
    "garbage", [b"", b"not http at all\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"]
)
def test_what_is_no_http_is_unreachable(canary: Callable[[Reply], Canary], garbage: bytes) -> None:
    """Garbage, nothing, and half an answer are the same: it is tried again later."""
    bird = canary(lambda connection, _: connection.sendall(garbage))
    with pytest.raises(FetchFailed) as refused:
        Fetcher(allowance(f"127.0.0.1/32:{bird.port}")).fetch(f"http://127.0.0.1:{bird.port}/")
    assert (refused.value.reason, refused.value.temporary) == ("web-unreachable", True)
