"""Where the HTTP tool may go for a tenant, and whether a request could carry anything out. Pure.

An entry names one origin and either one whole path with its query or a beginning (`…/*`, `…?*`, `…=*`). A request
that is exactly an entry, without a body, carries no byte that the model chose; every other one may carry anything
that the model has read.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.errors import PermanentError
from shared.fetching.addresses import Target

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
SAFE = frozenset({"GET", "HEAD", "PUT", "DELETE"})
"""Methods whose repetition changes nothing more (RFC 9110 section 9.2.2)."""

# What a server may read as a step upwards or another segment: refused instead of guessed at.
_DEVIOUS = re.compile(r"(?:^|/)\.{1,2}(?:/|$)|%2e|%2f|%5c|%25|\\|;", re.IGNORECASE)
_HEADER = r"^[A-Za-z][A-Za-z0-9-]{0,63}$"
_RESERVED = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection", "idempotency-key"})
SECRET_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"  # noqa: S105 # the form of a name, not a secret


def _pattern(url: str) -> str:
    if not url.isascii() or re.search(r"[\x00-\x20\x7f\\]", url):
        raise ValueError("must be ASCII (xn--, %C3%A4) without blanks")
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname or "@" in parts.netloc or parts.fragment:
        raise ValueError("must be an http(s) URL without user name and fragment")
    if "*" in url[:-1] or (url.endswith("*") and url[-2] not in "/?="):
        raise ValueError("may have one *, as its last character after /, ? or =")
    if _DEVIOUS.search(parts.path):
        raise ValueError("must not step through the path")
    return url if parts.path else f"{url}/"


def _headers(headers: dict[str, str]) -> dict[str, str]:
    for name, secret in headers.items():
        if not re.fullmatch(_HEADER, name) or name.lower() in _RESERVED:
            raise ValueError(f"{name[:64]!r} is not a header that may be set")
        if not re.fullmatch(SECRET_NAME, secret):
            raise ValueError("a header's value is the name of a secret in TOOL_SECRETS")
    return headers


class Endpoint(BaseModel):
    """One entry of a tenant's allow list. `headers` maps names to names of secrets, never to values."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    url: Annotated[str, Field(max_length=2048), AfterValidator(_pattern)]
    methods: Annotated[tuple[Method, ...], Field(min_length=1)] = ("GET",)
    headers: Annotated[dict[str, str], Field(max_length=8), AfterValidator(_headers)] = {}
    repeatable: bool = False
    """The service honours Idempotency-Key: a request whose outcome is unknown may be sent again."""

    def matches(self, method: str, target: Target) -> bool:
        """Whether the request falls under this entry."""
        if method not in self.methods:
            return False
        whole, entry = target.url, _normal(self.url)
        return whole.startswith(entry[:-1]) if entry.endswith("*") else whole == entry

    def fixed(self, body: str) -> bool:
        """Whether nothing of the request was left to the model to choose."""
        return not self.url.endswith("*") and not body


class HttpSettings(BaseModel):
    """A tenant's settings of `http_request`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    allow: Annotated[tuple[Endpoint, ...], Field(max_length=100)] = ()

    def endpoint(self, method: str, target: Target) -> Endpoint:
        """The entry a request falls under. Raises PermanentError `destination-not-allowed`."""
        if not _DEVIOUS.search(target.path.partition("?")[0]):
            for entry in self.allow:
                if entry.matches(method, target):
                    return entry
        raise PermanentError(
            "destination-not-allowed",
            "This tenant does not allow that request.",
            "Allowed: " + ("; ".join(f"{', '.join(e.methods)} {e.url}" for e in self.allow) or "nothing") + ".",
        )


def _normal(url: str) -> str:
    """An entry in the form of Target.url: default ports left out, host in lower case."""
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}[parts.scheme]
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    netloc = host if parts.port in (None, default) else f"{host}:{parts.port}"
    query = f"?{parts.query}" if "?" in url else ""
    return f"{parts.scheme}://{netloc}{parts.path}{query}"
