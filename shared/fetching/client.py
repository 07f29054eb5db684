"""One GET from the public web, within limits: size, time, redirects, kind of content."""

from __future__ import annotations

import ssl
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from urllib.parse import urljoin

import httpcore
import httpx

from shared.fetching.addresses import Allowance, Target, allowance, check_url
from shared.fetching.connecting import Deadline, GuardedBackend, Resolver, resolve
from shared.fetching.failures import FetchFailed, page_too_large, timed_out, unreachable
from shared.settings import Settings

USER_AGENT = "noesis2"
MAX_REDIRECTS = 5
MAX_VALIDATOR = 512
"""Longest ETag or Last-Modified that is kept; a longer one is not worth a conditional request."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest body in bytes, longest fetch and longest silence in seconds."""

    size: int = 25 * 1024 * 1024
    total: float = 30.0
    idle: float = 10.0


@dataclass(frozen=True, slots=True)
class Page:
    """What the server sent: `body` is None when it said that nothing changed (304)."""

    url: str
    body: bytes | None
    media_type: str
    etag: str
    last_modified: str


@dataclass(frozen=True)
class Fetcher:
    """Fetches pages of the public web, and of what `allowed` names. Holds no connection between two fetches."""

    allowed: Allowance = field(default_factory=Allowance)
    limits: Limits = Limits()
    resolver: Resolver = resolve
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    def fetch(
        self,
        url: str,
        *,
        etag: str = "",
        last_modified: str = "",
        stay_on_host: bool = True,
        limits: Limits | None = None,
    ) -> Page:
        """GET a URL, following up to five redirects, each checked like the first.

        Redirects may go from http to https but not back, and to another host only with `stay_on_host=False` (other
        hosts have a robots.txt of their own). Raises FetchFailed.
        """
        limits = limits or self.limits
        deadline = Deadline(limits.total)
        target = first = check_url(url, self.allowed)
        for _ in range(MAX_REDIRECTS + 1):
            with self._request(target, deadline, limits, etag, last_modified) as response:
                headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
                if response.status in (301, 302, 303, 307, 308) and headers.get("location"):
                    target = self._redirected(target, headers["location"], first if stay_on_host else None)
                    continue
                return _page(target, response, headers, limits, asked=bool(etag or last_modified))
        raise FetchFailed(
            "redirect-refused", f"The page redirects more than {MAX_REDIRECTS} times.", "Give its final address."
        )

    def _redirected(self, source: Target, location: str, first: Target | None) -> Target:
        try:
            address = urljoin(source.url, location)
        except ValueError:
            address = location
        target = check_url(address, self.allowed)
        if source.scheme == "https" and target.scheme == "http":
            raise FetchFailed(
                "redirect-refused", "The page redirects from https to http.", "Give an address that stays encrypted."
            )
        if first is not None and target.host != first.host:
            raise FetchFailed(
                "redirect-refused", "The page redirects to another host.", "Give the address it redirects to."
            )
        return target

    @contextmanager
    def _request(
        self, target: Target, deadline: Deadline, limits: Limits, etag: str, last_modified: str
    ) -> Iterator[httpcore.Response]:
        headers: dict[bytes | str, bytes | str] = {
            "Host": target.netloc,
            "User-Agent": USER_AGENT,
            "Accept": "text/html,application/xhtml+xml,application/pdf,text/*;q=0.9,*/*;q=0.5",
            "Accept-Encoding": "gzip",
            "Connection": "close",
        }
        if etag:
            headers["If-None-Match"] = etag
        if last_modified:
            headers["If-Modified-Since"] = last_modified
        url = httpcore.URL(
            scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
        )
        waits = {"connect": limits.idle, "read": limits.idle, "write": limits.idle, "pool": limits.idle}
        backend = GuardedBackend(target, self.allowed, self.resolver, deadline)
        try:
            with (
                httpcore.ConnectionPool(
                    ssl_context=self.tls or tls_context(), network_backend=backend, max_keepalive_connections=0
                ) as pool,
                pool.stream("GET", url, headers=headers, extensions={"timeout": waits}) as response,
            ):
                yield response
        except httpcore.TimeoutException:
            raise timed_out() from None
        except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError):
            raise unreachable("the connection failed or is not proper HTTP") from None


@lru_cache(maxsize=1)
def tls_context() -> ssl.SSLContext:
    """The certificates the web is checked against, loaded once."""
    return httpx.create_ssl_context()


def _page(target: Target, response: httpcore.Response, headers: dict[str, str], limits: Limits, *, asked: bool) -> Page:
    validators = [headers.get(name, "") for name in ("etag", "last-modified")]
    etag, last_modified = (value if len(value) <= MAX_VALIDATOR and value.isascii() else "" for value in validators)
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()[:255]
    if response.status == 304:
        if not asked:
            # Taken for "nothing new", the page would be done without ever having been read.
            raise unreachable("it says that nothing changed, but was not asked")
        return Page(target.url, None, media_type, etag, last_modified)
    if response.status != 200:
        raise _refused(response.status, headers)
    if media_type.startswith(("image/", "audio/", "video/", "font/")):
        raise FetchFailed("unsupported-type", "The address leads to a medium, not to a document.", "Give a text page.")
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:18]) > limits.size:
        raise page_too_large(limits.size)
    body = _body(response, headers.get("content-encoding", "identity").strip().lower(), limits.size)
    return Page(target.url, body, media_type, etag, last_modified)


def _body(response: httpcore.Response, encoding: str, limit: int) -> bytes:
    """The body, decompressed piece by piece and never beyond the limit: a bomb goes off after `limit` bytes."""
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise unreachable("it sends a compression that was not asked for")
    unpack = zlib.decompressobj(16 + zlib.MAX_WBITS) if "gzip" in encoding else None
    received, body = 0, bytearray()
    for piece in response.iter_stream():
        received += len(piece)
        try:
            body += piece if unpack is None else unpack.decompress(piece, limit + 1 - len(body))
        except zlib.error:
            raise unreachable("its gzip is damaged") from None
        if max(received, len(body)) > limit:
            raise page_too_large(limit)
    if unpack is not None and not unpack.eof:
        raise unreachable("its gzip is cut short")
    return bytes(body)


def _refused(status: int, headers: dict[str, str]) -> FetchFailed:
    if status in (404, 410):
        return FetchFailed("page-missing", f"The page is not there (HTTP {status}).", "Correct or remove the address.")
    if status in (408, 425, 429) or status >= 500:
        return FetchFailed(
            "web-busy",
            f"The web server cannot answer now (HTTP {status}).",
            "Nothing: it is tried again by itself.",
            temporary=True,
            retry_after=_retry_after(headers.get("retry-after", "")),
        )
    return FetchFailed(
        "page-refused", f"The web server refuses the page (HTTP {status}).", "Give an address that needs no sign-in."
    )


def _retry_after(value: str) -> float | None:
    """Seconds of a Retry-After header (RFC 9110 section 10.2.3), at most a day."""
    if value.isdecimal():
        return float(min(int(value[:9]), 86_400))
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    if when.tzinfo is None:
        return None
    return min(max(0.0, (when - datetime.now(UTC)).total_seconds()), 86_400.0)


def make_fetcher(settings: Settings) -> Fetcher:
    """The fetcher of this process. Raises SettingsError for an allow-list that cannot be read."""
    return Fetcher(allowance(settings.web_sources_allow), Limits(size=settings.document_max_bytes))
