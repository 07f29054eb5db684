"""What the bus answers when it does not do what it was asked."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import grpc

_TOPIC = re.compile(r"projects/[^/]+/topics/(?!goog)[A-Za-z][A-Za-z0-9._~+%-]{2,254}")
_SUBSCRIPTION = re.compile(r"projects/[^/]+/subscriptions/(?!goog)[A-Za-z][A-Za-z0-9._~+%-]{2,254}")
_QUEUE = re.compile(r"projects/[^/]+/locations/[^/]+/queues/[A-Za-z0-9-]{1,100}")
_TASK = re.compile(r"projects/[^/]+/locations/[^/]+/queues/[A-Za-z0-9-]{1,100}/tasks/[A-Za-z0-9_-]{1,500}")
_NAMES = {"topic": _TOPIC, "subscription": _SUBSCRIPTION, "queue": _QUEUE, "task": _TASK}


class Refused(Exception):
    """The request is answered with `code`; the message is one sentence for its sender."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def invalid(message: str) -> Refused:
    """INVALID_ARGUMENT: the request itself is wrong."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(name: str) -> Refused:
    """NOT_FOUND: there is no resource of this name."""
    return Refused(grpc.StatusCode.NOT_FOUND, f"Resource not found (resource={name}).")


def exists(name: str) -> Refused:
    """ALREADY_EXISTS: the name is taken."""
    return Refused(grpc.StatusCode.ALREADY_EXISTS, f"Resource already exists in the project (resource={name}).")


def check_name(kind: str, name: str) -> None:
    """Raise INVALID_ARGUMENT unless `name` is a full resource name of this kind (rules: docs, "Resource names")."""
    if not _NAMES[kind].fullmatch(name):
        raise invalid(f"Invalid resource name given (name={name[:300]}): not a {kind} name.")


def check_url(url: str) -> None:
    """Raise INVALID_ARGUMENT unless a request can be sent to `url` (2083 characters: reference, HttpRequest.url)."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or len(url) > 2083 or not re.fullmatch(r"[\x21-\x7e]+", url):
        raise invalid(f"Not a usable http:// or https:// address: {url[:300]!r}.")
