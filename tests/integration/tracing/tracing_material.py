"""Pushes at traced doors, and an exporter that keeps hardly anything."""

from __future__ import annotations

import base64
from typing import Any, cast
from uuid import uuid4

import httpx
from flask import Flask, request

from shared import tracing
from shared.doors import Door
from shared.events import DocumentSubmitted, new_traceparent
from shared.messaging import Outgoing
from shared.tenants.directory import Principal
from shared.tracing.export import Destination, Exporter
from tests.otlp_receiver import Receiver
from tests.pushes import push_body

DOCUMENT = "Der Jahresurlaub beträgt 30 Arbeitstage. Fragen beantwortet eva.canary@nordwind.example gern."


def push(door: Any, message: Any, path: str = "/") -> int:
    """A push of a message (or of what was published) to a door; returns the status."""
    data, attributes = (
        (message.data.encode(), message.attributes)
        if isinstance(message, Outgoing)
        else (message.data(), message.attributes())
    )
    with Flask("test").test_request_context(path, method="POST", json=push_body(data, attributes)):
        return cast("Door", door)(request).status_code


def submitted(tenant: Principal, text: str = DOCUMENT, traceparent: str = "") -> DocumentSubmitted:
    """A document as an upstream system publishes it."""
    return DocumentSubmitted(
        tenant_id=tenant.tenant_id,
        external_id=uuid4().hex,
        file_name="a.txt",
        content=base64.b64encode(text.encode()).decode(),
        traceparent=traceparent or new_traceparent(),
    )


def thin(collector: Receiver, rate: float = 0.0) -> Exporter:
    """An exporter that keeps hardly anything, in force."""
    client = httpx.Client(timeout=60)
    exporter = Exporter([Destination("test", collector.url + "/v1/traces", {}, client)], "s", "prod", rate, False)
    tracing.use_sink(exporter)
    return exporter
