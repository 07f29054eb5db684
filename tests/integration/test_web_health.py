"""Probes: alive always, ready only with everything the web needs, and never a detail."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from flask import Flask

from shared.fakes import FakeStorage
from shared.services import Services
from shared.settings import load_settings
from tests.loopback import served
from web import create_app


class Alive(BaseHTTPRequestHandler):
    """Answers as LiteLLM's liveness probe does."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health/liveliness" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # its name in the base class
        """Say nothing."""


@contextmanager
def listening() -> Iterator[int]:
    """A loopback port where something answers HTTP."""
    server = HTTPServer(("127.0.0.1", 0), Alive)
    with served(server):
        yield server.server_port


def make_app(**overrides: object) -> Flask:
    """The application with these settings."""
    settings = load_settings(**({"secret_key": "a-key-for-this-test-only-0123456789abcdef"} | overrides))
    return create_app(services=Services(settings, _storage=FakeStorage()))


def test_alive_is_answered_without_anything_else(database: object) -> None:
    """No database, no session, no known host."""
    answer = make_app(allowed_hosts="x.example").test_client().get("/health/liveliness")
    assert (answer.status_code, answer.get_json()) == (200, {"status": "alive"})
    assert "Set-Cookie" not in answer.headers


def test_ready_when_every_part_answers(database: object) -> None:
    """200 with database, bus and LiteLLM."""
    with listening() as port:
        app = make_app(pubsub_emulator_host=f"127.0.0.1:{port}", litellm_url=f"http://127.0.0.1:{port}")
        answer = app.test_client().get("/health/readiness")
    assert (answer.status_code, answer.get_json()) == (200, {"status": "ready"})


def test_unavailable_names_the_silent_parts_and_nothing_else(database: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with names only; a part that hangs costs two seconds, not the probe."""
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, and never says a word
        port = mute.getsockname()[1]
        app = make_app(pubsub_emulator_host="127.0.0.1:9", litellm_url=f"http://127.0.0.1:{port}")
        started = time.monotonic()
        answer = app.test_client().get("/health/readiness")
        assert time.monotonic() - started < 4
    assert (answer.status_code, answer.get_json()) == (503, {"status": "unavailable", "parts": ["bus", "litellm"]})


def test_a_database_that_is_gone_makes_it_unavailable(database: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is named, LiteLLM and the bus are not."""

    def gone() -> None:
        raise OSError("host and port that nobody should read")

    monkeypatch.setattr("web.health.platform_session", gone)
    with listening() as port:
        app = make_app(pubsub_emulator_host=f"127.0.0.1:{port}", litellm_url=f"http://127.0.0.1:{port}")
        answer = app.test_client().get("/health/readiness")
    assert answer.get_json() == {"status": "unavailable", "parts": ["database"]}
