"""Starting processes in order, and keeping them running: one loop in the main thread, no threads.

                spawn            health answers                     exit
waiting ────────────────▶ starting ────────────▶ ready ──────────────────▶ dead
(until `after` is ready)      │ exit: the start fails     ▲   after a backoff │
                              ▼                           └───── starting ◀───┘
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from local import health, logs, processes
from local.processes import Identity
from local.report import Report
from local.services import Service
from local.state import Recorded
from shared.errors import NoesisError
from shared.settings import CHECKOUT

START_SECONDS = 120.0  # LiteLLM needs 11 s on two idle cores, a cold disk or a busy machine many times that
TICK_STARTING, TICK_RUNNING = 0.05, 0.5
SLOTS = max(2, os.cpu_count() or 2)
BACKOFF = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds before the nth restart in a row
STEADY_SECONDS = 60.0  # whoever ran this long starts again at the first backoff


class ServiceFailedError(NoesisError):
    """A service ended or did not become ready while the platform started; the message has its last words."""


@dataclass
class _Child:
    service: Service
    process: subprocess.Popen[bytes]
    identity: Identity
    spawned: float
    log_offset: int
    ready: bool = False
    restarts: int = 0  # since the platform started
    failures: int = 0  # in a row
    retry_at: float | None = None


class Supervisor:
    """The processes of one platform. All methods are called from the main thread (see processes.spawn)."""

    def __init__(self, services: Sequence[Service], folder: Path, report: Report, changed: Callable[[], None]) -> None:
        """`folder` holds the logs; `changed` is called whenever a process was started or became ready."""
        self._services = services
        self._folder = folder
        self._report = report
        self._changed = changed
        self._children: dict[str, _Child] = {}
        self._done: set[str] = set()

    def mark_ready(self, name: str) -> None:
        """Something others wait for, and that is not ours to run (PostgreSQL), is ready."""
        self._done.add(name)

    def spawn_possible(self) -> None:
        """Start services whose predecessors are ready, in their order, as many at once as there are processors.

        A start is a few seconds of imports on one processor. All at once would slow down the longest, LiteLLM, which
        comes first and decides when the platform is ready (measured on two cores: 22 s instead of 15 s).
        """
        for service in self._services:
            if sum(not child.ready for child in self._children.values()) >= SLOTS:
                return
            if service.name not in self._children and self._done.issuperset(service.after):
                self._spawn(service)

    def start(self, cancelled: threading.Event, timeout: float = START_SECONDS) -> None:
        """Start everything and wait until it is ready, or until `cancelled`. Raises ServiceFailedError."""
        deadline = time.monotonic() + timeout
        while not cancelled.is_set():
            self.spawn_possible()
            for child in [child for child in self._children.values() if not child.ready]:
                self._advance(child)
            waiting = [service.name for service in self._services if service.name not in self._done]
            self._report.waiting(waiting)
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise ServiceFailedError(f"not ready after {timeout:.0f} s: {', '.join(waiting)}; see {self._folder}")
            cancelled.wait(TICK_STARTING)

    def watch(self) -> None:
        """One look at everybody: restart the dead after their backoff, notice the ones that are back."""
        now = time.monotonic()
        for name, child in list(self._children.items()):
            status = child.process.poll()
            if not child.service.health and child.ready:
                continue  # a step that is done
            if child.retry_at is not None:
                if now >= child.retry_at:
                    self._spawn(child.service, child)
            elif status is not None:
                self._bury(child, status, now)
            elif not child.ready and self._healthy(child):
                child.ready = True
                self._changed()
                self._report.line("ok", f"{name} is back (pid {child.identity.pid})")

    def stop(self, names: Iterable[str], patience: float) -> None:
        """End some services, politely for `patience` seconds."""
        chosen = [self._children.pop(name) for name in names if name in self._children]
        killed = processes.stop([child.identity for child in chosen], patience)
        for child in chosen:
            child.process.wait()
            if child.identity.pid in killed:
                self._report.line("!!", f"{child.service.name} did not stop within {patience:.0f} s and was killed")

    def recorded(self) -> dict[str, Recorded]:
        """Every service that runs or will run again, for the state file."""
        found: dict[str, Recorded] = {}
        for name, child in self._children.items():
            service, port = child.service, child.service.port
            if service.health or not child.ready:
                found[name] = Recorded(
                    pid=child.identity.pid,
                    started=child.identity.started,
                    port=port.number if port else None,
                    health=service.health,
                    healthy=list(service.healthy),
                    restarts=child.restarts,
                    queues=service.queues,
                )
        return found

    def _spawn(self, service: Service, before: _Child | None = None) -> None:
        log = self._folder / f"{service.name}.log"
        offset = log.stat().st_size if log.exists() else 0
        process = processes.spawn(service.command, service.environment, log, CHECKOUT)
        child = _Child(service, process, Identity.of(process.pid), time.monotonic(), offset)
        if before is not None:
            child.restarts, child.failures = before.restarts + 1, before.failures
        self._children[service.name] = child
        self._changed()

    def _advance(self, child: _Child) -> None:
        name, status = child.service.name, child.process.poll()
        if status is not None and (status != 0 or child.service.health):
            log = self._folder / f"{name}.log"
            words = logs.last_words(log, child.log_offset)
            raise ServiceFailedError(f"{name} ended with status {status} while starting: {words} (more in {log})")
        if status == 0 or (child.service.health and self._healthy(child)):
            child.ready = True
            self._done.add(name)
            self._report.ready(name, f"port {child.service.port.number}" if child.service.port else "")
            self._changed()

    def _bury(self, child: _Child, status: int, now: float) -> None:
        processes.end_group(child.identity.pid, child.identity.started)
        child.failures = 0 if now - child.spawned > STEADY_SECONDS else child.failures
        pause = BACKOFF[min(child.failures, len(BACKOFF) - 1)]
        child.failures += 1
        child.retry_at, child.ready = now + pause, False
        words = logs.last_words(self._folder / f"{child.service.name}.log", child.log_offset, lines=1)
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        self._report.line("!!", f"{child.service.name} ended {how}, starts again in {pause:g} s: {words}")

    @staticmethod
    def _healthy(child: _Child) -> bool:
        port, service = child.service.port, child.service
        return port is not None and health.answers(port.number, service.health, service.healthy)
