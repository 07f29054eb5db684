"""Pushes as the bus makes them, and doors that ask for no token."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any
from uuid import uuid4


class Open:
    """A verifier that has verified: the token is the business of tests/unit/test_push.py."""

    def verify(self, authorization: str, path: str) -> None:
        """Let everyone in."""


def push_body(data: bytes, attributes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What is posted for a message of upstream, with a message id of its own."""
    message = {"data": base64.b64encode(data).decode(), "attributes": attributes or {}, "messageId": uuid4().hex}
    return {"message": message, "subscription": "projects/noesis-local/subscriptions/ingest-upstream"}
