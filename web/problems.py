"""What goes wrong, told to people as a page and to programs as RFC 9457 `application/problem+json`. Never a detail."""

from __future__ import annotations

import json
import logging

from flask import Flask, Response, render_template, request
from flask_babel import format_decimal
from flask_babel import gettext as _
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.http import HTTP_STATUS_CODES

from shared.errors import PermanentError
from web.context import services
from web.languages import explain

log = logging.getLogger(__name__)

DRAIN_LIMIT = 64 * 1024 * 1024
"""Bytes of a refused upload that are read and thrown away, so that the client gets to read why."""


def install(app: Flask) -> None:
    """Translate every error of the application."""
    app.register_error_handler(PermanentError, _permanent)
    app.register_error_handler(RequestEntityTooLarge, _too_large)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(DBAPIError, _database)
    app.register_error_handler(PoolTimeout, _unavailable)
    app.register_error_handler(Exception, _unknown)


def wants_page() -> bool:
    """Whether a person's browser navigates here, rather than a script or a program."""
    return "text/html" in request.headers.get("Accept", "")


def problem(status: int, reason: str, detail: str, next_action: str = "") -> Response:
    """An RFC 9457 problem; `reason` is the stable code, `next_action` what the sender can do."""
    body = {
        "type": f"urn:noesis2:problem:{reason}",
        "title": HTTP_STATUS_CODES.get(status, "Error"),
        "status": status,
        "detail": detail,
        "reason": reason,
        "next_action": next_action,
    }
    return Response(json.dumps(body, ensure_ascii=False), status, mimetype="application/problem+json")


def refuse(status: int, reason: str, detail: str, next_action: str = "") -> Response:
    """A problem as a page for people or as JSON for programs."""
    if not wants_page():
        return problem(status, reason, detail, next_action)
    page = render_template("problem.html", status=status, detail=detail, next_action=next_action)
    return Response(page, status)


def size_in_words(size: int) -> str:
    """A number of bytes for people, in MB or kB, in their language."""
    unit, divisor = ("MB", 1024 * 1024) if size >= 1024 * 1024 else ("kB", 1024)
    return f"{format_decimal(round(size / divisor, 1))} {unit}"


def document_too_large() -> Response:
    """The refusal of a document over DOCUMENT_MAX_BYTES."""
    limit = size_in_words(services().settings.document_max_bytes)
    return refuse(
        413,
        "too-large",
        _("The file is larger than %(limit)s.", limit=limit),
        _("Split it into smaller documents and upload those."),
    )


STATUS = {"key-used-already": 409}
"""Reasons whose status is not 422."""


def _permanent(error: PermanentError) -> Response:
    message, next_action = explain(error.reason, error.message, error.next_action)
    return refuse(STATUS.get(error.reason, 422), error.reason, message, next_action)


def _too_large(_error: RequestEntityTooLarge) -> Response:
    # Answering while the client still sends resets the connection and hides the answer: take what is on its way.
    stream, left = request.environ["wsgi.input"], min(request.content_length or 0, DRAIN_LIMIT)
    while left > 0 and (piece := stream.read(min(left, 64 * 1024))):
        left -= len(piece)
    if request.endpoint == "documents.upload":
        return document_too_large()
    return refuse(413, "request-too-large", _("The request is too large."), _("Send less at once."))


def _http(error: HTTPException) -> Response:
    status = error.code or 500
    if error.response is not None or status < 400:
        return Response(error.get_response().get_data(), status, dict(error.get_headers()))
    if status == 404:
        return refuse(404, "not-found", _("There is nothing here."), _("Go back to the start page."))
    answer = refuse(status, "refused", _("The request cannot be answered."), _("Go back to the start page."))
    for name, value in error.get_headers():
        if name in ("Allow", "Retry-After"):
            answer.headers[name] = value
    return answer


def _database(error: DBAPIError) -> Response:
    if isinstance(error, InterfaceError | OperationalError) or error.connection_invalidated:
        return _unavailable(error)
    return _unknown(error)


def _unavailable(error: Exception) -> Response:
    log.warning("the database does not answer", exc_info=error)
    answer = refuse(503, "unavailable", _("noesis2 is not available right now."), _("Try again in a moment."))
    answer.headers["Retry-After"] = "5"
    return answer


def _unknown(error: Exception) -> Response:
    log.error("unexpected failure in %s", request.endpoint, exc_info=error)
    return refuse(
        500, "unexpected", _("Something went wrong on our side."), _("Try again; if it stays, tell your administrator.")
    )
