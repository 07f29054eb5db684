"""Whether the process lives, and whether the parts it needs answer. Never says more than the name of a part."""

from __future__ import annotations

import http.client
import logging
import socket
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from flask import Blueprint, current_app, jsonify
from flask.sansio.blueprints import BlueprintSetupState
from flask.wrappers import Response
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from shared.database import platform_session
from shared.settings import Settings
from web.context import services

log = logging.getLogger(__name__)
blueprint = Blueprint("health", __name__)

PATIENCE = 2.0
"""Seconds that all parts together may take; probes of Cloud Run give up after a few."""

REMEMBERED = 1.0
"""Seconds that an answer is given again: whoever asks without end costs one look a second."""


class Part:
    """One thing the web needs: looked at in a thread of its own, because a driver may hang longer than we wait.

    At most one look is under way; while it hangs, the part does not answer.
    """

    def __init__(self, look: Callable[[Settings], None]) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._seen = 0.0
        self._answers = False

    def start(self, settings: Settings) -> None:
        """Begin a look, unless one is under way or the last is recent."""
        with self._lock:
            busy = self._thread is not None and self._thread.is_alive()
            if not busy and time.monotonic() - self._seen > REMEMBERED:
                self._answers = False
                self._thread = threading.Thread(target=self._run, args=(settings,), daemon=True)
                self._thread.start()

    def _run(self, settings: Settings) -> None:
        try:
            self._look(settings)
            self._answers = True
        except (SQLAlchemyError, OSError, http.client.HTTPException) as error:
            log.warning("readiness: a part does not answer: %s", type(error).__name__)
        self._seen = time.monotonic()

    def answers(self, seconds: float) -> bool:
        """Whether the look ended well within these seconds."""
        thread = self._thread
        if thread is not None:
            thread.join(max(seconds, 0.0))
        return self._answers and not (thread is not None and thread.is_alive())


def _database(_settings: Settings) -> None:
    with platform_session() as session:
        session.execute(text("select 1"))


def _bus(settings: Settings) -> None:
    # A connection is enough: whether a publish works, the outbox finds out without losing anything.
    address = settings.pubsub_emulator_host
    parts = urlsplit(f"//{address}" if address else settings.pubsub_rest_url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    socket.create_connection((parts.hostname or "", port), timeout=PATIENCE).close()


def _models(settings: Settings) -> None:
    # The path of LiteLLM's own liveness probe; it needs no key.
    parts = urlsplit(settings.litellm_url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=PATIENCE)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/health/liveliness")
        if connection.getresponse().status != http.client.OK:
            raise http.client.HTTPException("not alive")
    finally:
        connection.close()


@blueprint.record_once
def _install(state: BlueprintSetupState) -> None:
    state.app.extensions["parts"] = {"database": Part(_database), "bus": Part(_bus), "litellm": Part(_models)}


@blueprint.get("/health/liveliness")
def liveliness() -> Response:
    """200 as long as the process answers at all."""
    return jsonify(status="alive")


@blueprint.get("/health/readiness")
def readiness() -> tuple[Response, int]:
    """200 when database, bus and LiteLLM answer; else 503 with the names of those that do not."""
    parts: dict[str, Part] = current_app.extensions["parts"]
    for part in parts.values():
        part.start(services().settings)
    deadline = time.monotonic() + PATIENCE
    silent = [name for name, part in parts.items() if not part.answers(deadline - time.monotonic())]
    if silent:
        return jsonify(status="unavailable", parts=silent), 503
    return jsonify(status="ready"), 200
