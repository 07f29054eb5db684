"""What stands before every view: known hosts, a principal unless the view is open, no forged posts; and the headers."""

from __future__ import annotations

import hmac
import secrets
from urllib.parse import urlsplit

from flask import Flask, Response, abort, g, redirect, request, session, url_for
from flask_babel import gettext as _
from werkzeug.sansio.utils import host_is_trusted
from werkzeug.wrappers import Response as AnyResponse

from web import problems
from web.authentication import current_principal, without_port
from web.context import services

TOKEN_IN_ADDRESS = frozenset({"uploads.receive"})
"""Views that a secret in their address opens, for clients without a session; no other site can know it either."""

OPEN = TOKEN_IN_ADDRESS | {
    "static",
    "questions.home",
    "languages.switch",
    "sign_in.form",
    "sign_in.enter",
    "sign_in.leave",
}
"""Views without a principal; everything else, also what later issues add, needs one unless it is named here."""

HEALTH = frozenset({"health.liveliness", "health.readiness"})
"""Asked by probes that know neither our name nor a session."""

TEXT_LIMIT = 64 * 1024
"""Bytes of a form or a question; only an upload may be as large as a document."""

BUCKETS = "https://storage.googleapis.com"
"""Where the page sends large files if the object store is Google's: to signed addresses of the bucket."""

HEADERS = {
    # No inline script or style, nothing from elsewhere, and no string ever becomes markup (trusted types).
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    # `no-referrer` would make browsers send `Origin: null` with our own forms and defeat the check below.
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def install(app: Flask) -> None:
    """Put the checks before and the headers behind every view of the application."""
    app.before_request(_check_host)
    app.before_request(_check_principal)
    app.before_request(_limit_size)
    app.before_request(_check_origin_and_token)
    app.after_request(_add_headers)
    app.jinja_env.globals["csrf_token"] = csrf_token


def csrf_token() -> str:
    """The token that every POST of this session must carry, in the form or in `X-CSRF-Token`."""
    if "csrf" not in session:
        session["csrf"] = secrets.token_urlsafe(32)
        session.permanent = True
    token: str = session["csrf"]
    return token


def _check_host() -> None:
    if request.endpoint in HEALTH:
        return
    # Werkzeug checks the characters; its own list of names cannot hold an IPv6 address.
    host = request.headers.get("Host", "")
    if not host_is_trusted(host) or not _is_allowed(without_port(host).lower()):
        abort(400)


def _is_allowed(name: str) -> bool:
    """Whether a name is in ALLOWED_HOSTS; an entry with a leading dot stands for all names below it."""
    entries = [entry.strip().lower() for entry in services().settings.allowed_hosts.split(",")]
    return any(name == entry or (entry.startswith(".") and name.endswith(entry)) for entry in entries)


def _check_principal() -> AnyResponse | None:
    if request.endpoint in HEALTH | {"static"}:
        return None
    g.principal = current_principal()
    if g.principal is not None or request.endpoint is None or request.endpoint in OPEN:
        return None
    if problems.wants_page():
        return redirect(url_for("sign_in.form"))
    return problems.problem(
        401, "signed-out", _("You are signed out."), _("Sign in again; what you sent was not stored.")
    )


def _limit_size() -> None:
    if request.endpoint not in ("documents.upload", "uploads.receive"):
        request.max_content_length = TEXT_LIMIT


def _check_origin_and_token() -> AnyResponse | None:
    if request.method in ("GET", "HEAD", "OPTIONS") or request.endpoint in TOKEN_IN_ADDRESS:
        return None
    if _from_elsewhere() or not _token_matches():
        return problems.refuse(403, "stale-page", _("This page is out of date."), _("Reload the page and try again."))
    return None


def _from_elsewhere() -> bool:
    """Whether the browser says that another site sent this. Clients that say nothing still need the token."""
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    origin = request.headers.get("Origin")
    # Only host and port: behind a proxy that ends TLS the scheme we see is not the one the browser saw.
    return site != "same-origin" or (origin is not None and urlsplit(origin).netloc != request.host)


def _token_matches() -> bool:
    given = request.headers.get("X-CSRF-Token")
    if given is None and request.mimetype == "application/x-www-form-urlencoded":
        # Only small forms are looked into here; an upload is not read before its header was found right.
        given = request.form.get("csrf_token")
    expected = session.get("csrf", "")
    return bool(expected) and hmac.compare_digest((given or "").encode("utf-8", "replace"), expected.encode())


def _add_headers(response: Response) -> Response:
    if services().settings.blob_url.startswith("gs://"):
        policy = HEADERS["Content-Security-Policy"].replace("connect-src 'self'", f"connect-src 'self' {BUCKETS}")
        response.headers.setdefault("Content-Security-Policy", policy)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if services().settings.noesis_stage != "dev":
        response.headers.setdefault("Strict-Transport-Security", "max-age=31536000")
    if request.endpoint != "static":
        response.headers.setdefault("Cache-Control", "no-store")
        response.vary.update(("Accept-Language", "Cookie"))
    return response
