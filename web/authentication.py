"""Who acts: turns a request into a Principal, or into nobody.

The one module that later ways to sign in (OIDC, IAP, API keys) join. Tenant and member come from the signed session
and are looked up in the database again, at most 60 seconds ago, so that a removed member is out within a minute.
"""

from __future__ import annotations

import ipaddress
from datetime import timedelta
from uuid import UUID

from flask import Request, request, session
from werkzeug.datastructures import Headers

from shared.settings import Settings
from shared.tenants.directory import Principal, memberships
from web.context import services

SESSION_LIFE = timedelta(hours=12)
CLOCK_SKEW = 60.0
"""Seconds that the clocks of two instances may differ."""

MEMBERSHIP_AGE = 60.0
"""Seconds that a membership may be remembered before it is read again."""

CACHE_LIMIT = 1024
"""People remembered at once; past it all are forgotten, which costs one query each."""

PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via")

_memberships: dict[str, tuple[float, list[Principal]]] = {}


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without port, is this machine."""
    if host.lower() in ("localhost", "ip6-localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def local_sign_in_allowed(settings: Settings, incoming: Request) -> bool:
    """Whether this request may sign in by name alone: a person on this very machine, during development.

    The peer's address is not enough: a foreign web page whose name was rebound to 127.0.0.1 comes from loopback too
    (so the Host header must be loopback), and so does a tunnel or proxy (so none may have touched it).
    """
    return (
        settings.local_sign_in
        and settings.noesis_stage == "dev"
        and is_loopback(incoming.remote_addr or "")
        and is_loopback(without_port(incoming.host))
        and not _came_through_a_proxy(incoming.headers)
    )


def without_port(host: str) -> str:
    """The name or address in a Host header; an IPv6 address keeps its brackets."""
    return host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]


def _came_through_a_proxy(headers: Headers) -> bool:
    return any(name in headers for name in PROXY_HEADERS)


def sign_in(principal: Principal) -> None:
    """Begin a new session for this member; whatever the old one held is gone."""
    session.clear()
    session.permanent = True
    session.update(
        method="local",
        email=principal.email,
        tenant=str(principal.tenant_id),
        member=str(principal.member_id),
        since=int(services().clock.now().timestamp()),
    )


def sign_out() -> None:
    """End the session."""
    session.clear()


def current_principal() -> Principal | None:
    """The member of the request's session, if the session is young, still allowed, and the member still exists."""
    if session.get("method") != "local" or not local_sign_in_allowed(services().settings, request):
        return None
    age = services().clock.now().timestamp() - session["since"]
    if not -CLOCK_SKEW <= age < SESSION_LIFE.total_seconds():
        return None
    wanted = (UUID(session["tenant"]), UUID(session["member"]))
    for principal in known_memberships(session["email"]):
        if (principal.tenant_id, principal.member_id) == wanted:
            return principal
    return None


def known_memberships(email: str) -> list[Principal]:
    """The tenants of a person, read at most MEMBERSHIP_AGE seconds ago."""
    now = services().clock.now().timestamp()
    known = _memberships.get(email)
    if known is not None and 0 <= now - known[0] < MEMBERSHIP_AGE:
        return known[1]
    found = memberships(email)
    if len(_memberships) >= CACHE_LIMIT:
        _memberships.clear()
    _memberships[email] = (now, found)
    return found


def forget_memberships() -> None:
    """Read every membership anew at its next use."""
    _memberships.clear()
