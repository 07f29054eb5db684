"""Asking a process on loopback whether it is well, without a client library's weight."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Collection
from typing import Any

from local.ports import HOST


def listens(port: int, timeout: float = 1.0) -> bool:
    """Whether somebody accepts connections there, answering or not."""
    try:
        socket.create_connection((HOST, port), timeout=timeout).close()
    except OSError:
        return False
    return True


def answers(port: int, path: str, healthy: Collection[int], timeout: float = 1.0) -> bool:
    """Whether GET `path` on that port answers with one of the `healthy` statuses within `timeout` seconds."""
    return _get(port, path, timeout)[0] in healthy


def read_json(port: int, path: str, timeout: float = 2.0) -> dict[str, Any] | None:
    """The JSON object at `path`, or None when there is none."""
    status, body = _get(port, path, timeout)
    if status != http.client.OK:
        return None
    try:
        loaded = json.loads(body)
    except ValueError:
        return None
    return loaded if isinstance(loaded, dict) else None


def _get(port: int, path: str, timeout: float) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()
