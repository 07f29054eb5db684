"""No address that a stranger writes makes us knock on a door inside; a listening canary would tell."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator, Sequence

import pytest

from shared.errors import SettingsError
from shared.fetching.addresses import Allowance, allowance, check_url, is_public
from shared.fetching.client import Fetcher, Limits
from shared.fetching.failures import FetchFailed
from tests.unit.canary import Canary, Reply, answer, canaries

PORT = "{port}"


@pytest.fixture
def canary() -> Iterator[Callable[[Reply], Canary]]:
    """Starts canaries; they stop with the test."""
    with canaries() as start:
        yield start


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
