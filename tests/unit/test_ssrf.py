"""No address that a stranger writes makes us knock on a door inside; a listening canary would tell."""

from __future__ import annotations

import contextlib
import gzip
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from shared.errors import SettingsError
from shared.fetching.addresses import Allowance, allowance, check_url, is_public
from shared.fetching.client import Fetcher, Limits
from shared.fetching.failures import FetchFailed

Reply = Callable[[socket.socket, bytes], None]
PORT = "{port}"


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


@pytest.fixture
def canary() -> Iterator[Callable[[Reply], Canary]]:
    """Starts canaries; they stop with the test."""
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
            with contextlib.suppress(OSError):  # not every machine has them
                listen(made, family, host)
        return made

    yield start
    for listener, thread in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def to_loopback(host: str, port: int) -> Sequence[str]:
    """A resolver under which every name leads to this machine: what an attacker's own DNS server can do."""
    try:
        return [entry[4][0] for entry in socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST)]  # type: ignore[misc]
    except OSError:
        return ["127.0.0.1"]


def reachable_port(port: int) -> Allowance:
    """The canary's port is open for public names, so that only the guard of addresses stands before it."""
    return Allowance(ports=frozenset({80, 443, port}))


HOSTILE = [
    # other schemes
    "file:///etc/passwd",
    "ftp://127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/_GET",
    "dict://127.0.0.1:{port}/",
    "ldap://127.0.0.1:{port}/",
    "data:text/html,hello",
    "javascript:alert(1)",
    "//127.0.0.1:{port}/",
    "http:127.0.0.1:{port}",
    "http:/127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "jar:http://127.0.0.1:{port}/",
    "ws://127.0.0.1:{port}/",
    "",
    # plain private addresses
    "http://127.0.0.1:{port}/",
    "https://127.0.0.1:{port}/",
    "http://127.0.0.2:{port}/",
    "http://127.255.255.254:{port}/",
    "http://0.0.0.0:{port}/",
    "http://10.0.0.1:{port}/",
    "http://172.16.0.1:{port}/",
    "http://172.31.255.255:{port}/",
    "http://192.168.1.1:{port}/",
    "http://169.254.1.1:{port}/",
    "http://169.254.169.254/latest/meta-data/",
    "http://169.254.170.2/v2/credentials",
    "http://100.100.100.200/latest/meta-data/",
    "http://168.63.129.16/",
    "http://100.64.0.1:{port}/",
    "http://100.127.255.255:{port}/",
    "http://192.0.0.1:{port}/",
    "http://192.0.2.1:{port}/",
    "http://198.18.0.1:{port}/",
    "http://198.51.100.1:{port}/",
    "http://192.88.99.1:{port}/",
    "http://224.0.0.1:{port}/",
    "http://239.255.255.255:{port}/",
    "http://240.0.0.1:{port}/",
    "http://255.255.255.255:{port}/",
    # other ways to write them
    "http://2130706433:{port}/",
    "http://4294967295:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x7f.0.0.1:{port}/",
    "http://0x7F.1:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://017700000001:{port}/",
    "http://127.1:{port}/",
    "http://127.0.1:{port}/",
    "http://0:{port}/",
    "http://127.0.0.01:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://127.0.0.256:{port}/",
    "http://00000127.0.0.1:{port}/",
    "http://127。0。0。1:{port}/",
    "http://127．0．0．1:{port}/",
    "http://127｡0｡0｡1:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://１２７.０.０.１:{port}/",
    "http://%31%32%37.0.0.1:{port}/",
    "http://127%2e0%2e0%2e1:{port}/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/",
    # IPv6
    "http://[::1]:{port}/",
    "http://[::]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[64:ff9b:1::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]:{port}/",
    "http://[2001:db8::1]:{port}/",
    "http://[fe80::1]:{port}/",
    "http://[fe80::1%25lo]:{port}/",
    "http://[::1%25lo]:{port}/",
    "http://[fc00::1]:{port}/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[fd20:ce::254]/computeMetadata/v1/",
    "http://[fec0::1]:{port}/",
    "http://[ff02::1]:{port}/",
    "http://[100::1]:{port}/",
    "http://[::ffff:0:127.0.0.1]:{port}/",
    "http://[::1]",
    "http://[::1",
    # names
    "http://localhost:{port}/",
    "http://LOCALHOST:{port}/",
    "http://localhost.:{port}/",
    "http://a.localhost:{port}/",
    "http://localhost.localdomain:{port}/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://printer.local:{port}/",
    "http://intranet:{port}/",
    "http://public.example:{port}/",
    "http://localtest.example.com:{port}/",
    "http://127.0.0.1.nip.example:{port}/",
    "http://xn--:{port}/",
    # confusion between parsers
    "http://public.example@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}@public.example:{port}/",
    "http://user:pass@public.example:{port}/",
    "http://public.example:{port}#@127.0.0.1/",
    "http://public.example:{port}\\@127.0.0.1/",
    "http://127.0.0.1:{port}\\.public.example/",
    "http://public.example\t.127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\r\nHost: public.example/",
    " http://127.0.0.1:{port}/",
    "http://public.example\x00.127.0.0.1:{port}/",
    "http://public.example:{port}:80/",
    "http://public.example:0/",
    "http://public.example:99999/",
    "http://public.example:-1/",
    # ports of other services
    "http://public.example:22/",
    "http://public.example:25/",
    "http://public.example:6379/",
    "http://public.example:5432/",
    "http://public.example:8080/",
    "http://" + "a" * 3000 + ".example:{port}/",
]


def test_no_hostile_url_reaches_the_canary(canary: Callable[[Reply], Canary]) -> None:
    """More than eighty ways in, each refused for good, and nobody connects; even where DNS is the attacker's."""
    bird = canary(answer())
    fetcher = Fetcher(reachable_port(bird.port), Limits(total=5, idle=1), to_loopback)
    assert len(HOSTILE) >= 80
    went_through = {}
    for template in HOSTILE:
        url = template.replace(PORT, str(bird.port))
        try:
            fetcher.fetch(url)
        except FetchFailed as failure:
            if failure.reason in ("url-not-allowed", "address-not-allowed") and not failure.temporary:
                continue
            went_through[url] = failure.reason
        else:
            went_through[url] = "fetched"
    assert went_through == {}
    assert bird.seen == []


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "public.example"])
def test_the_canary_sings_when_it_is_allowed(canary: Callable[[Reply], Canary], host: str) -> None:
    """The test above can fail: with an entry in the allow-list the same server is reached."""
    bird = canary(answer())
    resolver: Callable[[str, int], Sequence[str]] = to_loopback
    if host == "[::1]" and not _has_ipv6():
        pytest.skip("no IPv6 on this machine")
    allowed = allowance(f"127.0.0.1/32:{bird.port}, [::1]:{bird.port}")
    page = Fetcher(allowed, resolver=resolver).fetch(f"http://{host}:{bird.port}/")
    assert page.body == b"hello"
    assert f"Host: {host}:{bird.port}".encode() in bird.seen[1]


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_name_is_asked_once_and_every_address_of_it_counts(canary: Callable[[Reply], Canary]) -> None:
    """One private address among public ones refuses the name; the guard does not pick the good one."""
    bird = canary(answer())
    for addresses in (["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["8.8.8.8", "::1"]):
        fetcher = Fetcher(reachable_port(bird.port), resolver=lambda *_, found=addresses: found)
        with pytest.raises(FetchFailed, match="public address"):
            fetcher.fetch(f"http://public.example:{bird.port}/")
    assert bird.seen == []


def test_a_name_that_changes_its_mind_changes_nothing(canary: Callable[[Reply], Canary]) -> None:
    """DNS rebinding: the first answer is allowed and is where the connection goes; there is no second question."""
    bird = canary(answer())
    asked: list[str] = []

    def rebinding(host: str, _: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.7"] if len(asked) == 1 else ["127.0.0.1"]

    # Only 127.0.0.7 is allowed: a second resolution would lead to 127.0.0.1, which is not.
    fetcher = Fetcher(allowance(f"127.0.0.7/32:{bird.port}"), resolver=rebinding)
    assert fetcher.fetch(f"http://public.example:{bird.port}/").body == b"hello"
    assert asked == ["public.example"]
    with pytest.raises(FetchFailed, match="public address"):
        fetcher.fetch(f"http://public.example:{bird.port}/")


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.2:{port}/",
        "//127.0.0.2:{port}/",
        "http://2130706434:{port}/",
        "file:///etc/passwd",
        "http://[::1]:{port}/",
    ],
)
def test_every_redirect_is_checked_again(canary: Callable[[Reply], Canary], location: str) -> None:
    """A good address that redirects to a bad one: the second connection is never made."""
    target = canary(answer())
    first = canary(answer("302 Found", b"", Location=location.replace(PORT, str(target.port))))
    allowed = Allowance(allowance(f"127.0.0.1/32:{first.port}").entries, frozenset({80, 443, target.port}))
    fetcher = Fetcher(allowed)
    with pytest.raises(FetchFailed) as refused:
        fetcher.fetch(f"http://127.0.0.1:{first.port}/", stay_on_host=False)
    assert refused.value.reason in ("url-not-allowed", "address-not-allowed")
    assert target.seen == []
    assert len(first.seen) == 2


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


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.215.14", "2001:4860:4860::8888", "2606:4700::1111", "2a00:1450:4001::1"]
)
def test_the_public_internet_is_public(address: str) -> None:
    """The guard does not simply refuse everything."""
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("HTTPS://Example.COM", "https://example.com/"),
        ("https://example.com:443/a b".replace(" ", "%20"), "https://example.com/a%20b"),
        ("https://bücher.example/straße?q=ä#teil", "https://xn--bcher-kva.example/stra%C3%9Fe?q=%C3%A4"),
        ("http://example.com./x/../y", "http://example.com/x/../y"),
        ("https://8.8.8.8/", "https://8.8.8.8/"),
        ("https://[2606:4700::1111]/", "https://[2606:4700::1111]/"),
    ],
)
def test_good_urls_have_one_form(url: str, normal: str) -> None:
    """So a page has one identity."""
    assert check_url(url, Allowance()).url == normal
    assert check_url(normal, Allowance()).url == normal


def test_metadata_is_never_allowed() -> None:
    """Not even by an allow-list that names its whole network."""
    allowed = allowance("169.254.0.0/16, fd00::/8, 10.0.0.0/8")
    for host in ("169.254.169.254", "[fd00:ec2::254]"):
        with pytest.raises(FetchFailed, match="public address"):
            check_url(f"http://{host}/", allowed)
    assert check_url("http://10.1.2.3/", allowed).host == "10.1.2.3"


@pytest.mark.parametrize("entry", ["10.0.0.0/33", "host:port", "[::1", "10.0.0.1/8", "::1:x"])
def test_an_allow_list_that_cannot_be_read_stops_the_start(entry: str) -> None:
    """A typing error must not open more, or less, than was meant."""
    with pytest.raises(SettingsError, match="WEB_SOURCES_ALLOW"):
        allowance(entry)
