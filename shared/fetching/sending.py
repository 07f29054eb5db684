"""One request to a web service: guarded like every fetch, followed nowhere, and it says whether it left the house."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import httpcore

from shared.fetching.addresses import Allowance, Target
from shared.fetching.client import USER_AGENT, tls_context
from shared.fetching.connecting import Deadline, GuardedBackend, Resolver, resolve
from shared.fetching.failures import FetchFailed, timed_out, unreachable

IDLE = 10.0
"""Longest silence in seconds."""


@dataclass(frozen=True, slots=True)
class Response:
    """What the service answered; `body` is cut at the limit, and `cut` says so."""

    status: int
    media_type: str
    body: bytes
    cut: bool


class OutcomeUnknown(FetchFailed):
    """The request had been sent, at least in part, when the way back broke: nobody can say what it did."""


def send(
    target: Target,
    method: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    allowed: Allowance,
    seconds: float,
    limit: int,
    resolver: Resolver = resolve,
    tls: ssl.SSLContext | None = None,
) -> Response:
    """Send one request and read at most `limit` bytes of its answer, within `seconds`; redirects are answers.

    Every address of the host must be public unless `allowed` names it. Raises FetchFailed when nothing was sent,
    OutcomeUnknown when it may have been.
    """
    sent = False

    def watch(event: str, _details: object) -> None:
        nonlocal sent
        # Also begun and cut short: the service may have read all it needs.
        sent = sent or event.endswith("send_request_headers.started")

    own: dict[bytes | str, bytes | str] = {
        "Host": target.netloc,
        "User-Agent": USER_AGENT,
        "Accept": "application/json, text/*;q=0.9, */*;q=0.1",
    }
    own |= {"Accept-Encoding": "identity", "Connection": "close", "Content-Length": str(len(body))}
    url = httpcore.URL(
        scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
    )
    extensions = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), IDLE), "trace": watch}
    backend = GuardedBackend(target, allowed, resolver, Deadline(seconds))
    try:
        with (
            httpcore.ConnectionPool(
                ssl_context=tls or tls_context(), network_backend=backend, max_keepalive_connections=0
            ) as pool,
            pool.stream(
                method, url, headers={**dict(headers.items()), **own}, content=body, extensions=extensions
            ) as response,
        ):
            return _read(response, limit)
    except FetchFailed as error:
        raise _told(error, sent) from None
    except httpcore.TimeoutException:
        raise _told(timed_out(), sent) from None
    except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError):
        raise _told(unreachable("the connection failed or is not proper HTTP"), sent) from None


def _read(response: httpcore.Response, limit: int) -> Response:
    media_type = ""
    for name, value in response.headers:
        if name.lower() == b"content-type":
            media_type = value.decode("latin-1").partition(";")[0].strip().lower()[:255]
    body = bytearray()
    for piece in response.iter_stream():
        body += piece
        if len(body) > limit:
            return Response(response.status, media_type, bytes(body[:limit]), True)
    return Response(response.status, media_type, bytes(body), False)


def _told(error: FetchFailed, sent: bool) -> FetchFailed:
    return OutcomeUnknown(error.reason, error.message, error.next_action) if sent else error
