"""The guard: which URLs and which addresses may be fetched (against server-side request forgery).

Three rules. A URL is read once, strictly, by one parser, and what is not plainly a public http(s) URL is refused.
A name is resolved once and *every* address it has must be public. The connection goes to the checked address itself
(`shared.fetching.connecting`), so a name that changes its mind afterwards (DNS rebinding) changes nothing.
Special ranges: https://www.iana.org/assignments/iana-ipv4-special-registry and …/iana-ipv6-special-registry.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import idna

from shared.errors import SettingsError
from shared.fetching.failures import address_not_allowed, not_allowed

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL = 2048
DEFAULT_PORTS = {"http": 80, "https": 443}

_SPECIAL_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
# Inside it: protocol assignments with Teredo, documentation, 6to4. Outside lie mapped, compatible and NAT64 forms.
_SPECIAL_V6 = tuple(
    ipaddress.IPv6Network(network)
    for network in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)
# Where clouds hand out credentials; never reachable, whatever the allow-list says. 168.63.129.16 is Azure's.
_METADATA = frozenset(
    ipaddress.ip_address(address)
    for address in (
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "fd00:ec2::254",
        "fd20:ce::254",
    )
)
_PRIVATE_NAMES = ("localhost", "local", "internal", "localdomain", "home.arpa", "invalid", "onion")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that may be asked for, in the parts that go onto the wire."""

    scheme: str
    host: str
    """Lower case, IDNA, without brackets or trailing dot."""
    port: int
    path: str
    """Path and query, percent-encoded."""

    @property
    def netloc(self) -> str:
        """Host and port as in the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port: what robots.txt and pacing hold for."""
        return f"{self.scheme}://{self.netloc}"

    @property
    def url(self) -> str:
        """The normal form of the URL, without a fragment."""
        return f"{self.origin}{self.path}"


@dataclass(frozen=True, slots=True)
class Allowance:
    """What WEB_SOURCES_ALLOW permits beyond public addresses on ports 80 and 443."""

    entries: tuple[tuple[Network | str, int | None], ...] = ()
    ports: frozenset[int] = frozenset({80, 443})
    """Where public addresses are asked, and those that an entry without a port allows."""

    def _permits(self, host: str, address: Address | None, port: int) -> bool:
        return any(
            (port in self.ports if allowed is None else port == allowed)
            and (subject == host if isinstance(subject, str) else address is not None and address in subject)
            for subject, allowed in self.entries
        )

    def permits_address(self, host: str, address: Address, port: int) -> bool:
        """Whether this host may be reached at this address although it is not public."""
        return address not in _METADATA and self._permits(host, address, port)

    def permits_host(self, host: str, port: int) -> bool:
        """Whether this host is named."""
        return self._permits(host, None, port)

    def permits_port(self, host: str, port: int) -> bool:
        """Whether any entry could allow this port; which address it is for is asked again at the connection."""
        return any(
            allowed == port and not (isinstance(subject, str) and subject != host) for subject, allowed in self.entries
        )


def allowance(setting: str) -> Allowance:
    """Read `host`, `host:port`, `CIDR`, `CIDR:port` or `[CIDR6]:port`, separated by commas. Raises SettingsError."""
    entries: list[tuple[Network | str, int | None]] = []
    for entry in filter(None, (part.strip().lower() for part in setting.split(","))):
        match = re.fullmatch(
            r"\[([0-9a-f:./]+)\](?::(\d{1,5}))?|([^:\[\]]+)(?::(\d{1,5}))?|([0-9a-f:]+:[0-9a-f:./]*)", entry
        )
        if match is None:
            raise SettingsError(
                f"WEB_SOURCES_ALLOW is not usable: {entry!r} is not host, host:port, CIDR or CIDR:port."
            )
        name = match[1] or match[3] or match[5]
        port = match[2] or match[4]
        try:
            subject: Network | str = ipaddress.ip_network(name)
        except ValueError:
            if "/" in name or ":" in name:
                raise SettingsError(f"WEB_SOURCES_ALLOW is not usable: {entry!r} is not a network.") from None
            subject = name
        entries.append((subject, int(port) if port else None))
    return Allowance(tuple(entries))


def check_url(url: str, allowed: Allowance) -> Target:
    """Read a URL strictly. Raises FetchFailed `url-not-allowed`, or `address-not-allowed` for a literal address."""
    if len(url) > MAX_URL:
        raise not_allowed(f"it is longer than {MAX_URL} characters")
    if _UNSAFE.search(url):
        raise not_allowed("it holds blanks, control characters or backslashes")
    try:
        parts = urlsplit(url)
        port = parts.port
        name = parts.hostname or ""
    except ValueError:
        raise not_allowed("it cannot be read") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise not_allowed("it is not https or http")
    if "@" in parts.netloc:
        raise not_allowed("it carries a user name")
    host = _host(name)
    number = DEFAULT_PORTS[parts.scheme] if port is None else port
    if number not in allowed.ports and not allowed.permits_port(host, number):
        raise not_allowed("its port is not 80 or 443")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._", errors="strict")
    query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?", errors="strict")
    target = Target(parts.scheme, host, number, f"{path}?{query}" if query else path)
    address = _literal(host)
    if address is not None:
        check_address(address, target, allowed)
    elif not allowed.permits_host(host, number) and (
        "." not in host or any(host == private or host.endswith(f".{private}") for private in _PRIVATE_NAMES)
    ):
        raise not_allowed("its host is not a public name")
    return target


def _host(name: str) -> str:
    if ":" in name:
        try:
            return str(ipaddress.IPv6Address(name)) if "%" not in name else _no_host()
        except ValueError:
            return _no_host()
    try:
        # UTS 46 first: full-width digits and ideographic full stops become what a resolver would make of them.
        host = name if name.isascii() else idna.encode(name, uts46=True).decode("ascii")
    except idna.IDNAError:
        return _no_host()
    host = host.lower().removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return _no_host()
    # Like browsers (https://url.spec.whatwg.org/#ends-in-a-number-checker), but only four plain decimals will do:
    # 0177.1, 2130706433 and 0x7f.1 are ways to write 127.0.0.1 that nobody types in good faith.
    if _NUMBER.fullmatch(labels[-1]) and _literal(host) is None:
        return _no_host()
    return host


def _no_host() -> str:
    raise not_allowed("its host is not a name or a plain address")


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def check_address(address: Address, target: Target, allowed: Allowance) -> None:
    """Raise FetchFailed `address-not-allowed` unless the target may be reached at this address."""
    public = is_public(address) and target.port in allowed.ports
    if not public and not allowed.permits_address(target.host, address, target.port):
        raise address_not_allowed()


def is_public(address: Address) -> bool:
    """Whether an address is an ordinary one of the public internet, with no other address hidden inside it."""
    if address in _METADATA:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    return address.scope_id is None and address in _GLOBAL_V6 and not any(address in network for network in _SPECIAL_V6)
