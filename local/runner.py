"""The platform on one machine: starts everything in order, keeps it running, stops it.

    postgres ─▶ database ─▶ ingest, embed, agent, maintenance, web ─┐
    litellm (11 s, at once) ─────────────────────────────────────────┴─▶ bus

`python -m local.runner` is what `noesis up` runs. PostgreSQL survives a killed runner and is adopted; everything else
ends with it (Linux) or is stopped by the next one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from local import credentials, logs, ports, postgres, processes, services
from local import state as states
from local.ports import HOST, Port
from local.processes import Identity
from local.report import Report
from local.state import Recorded, State
from local.supervisor import TICK_RUNNING, Supervisor
from shared.errors import NoesisError
from shared.settings import Settings, load_settings

# Together about ten seconds: what is under way in a function is finished or, after that, delivered again.
WORK_PATIENCE, MODELS_PATIENCE = 5.0, 2.0
_ROTATE_EVERY = 30.0  # seconds


def platform_settings() -> Settings:
    """Settings for commands that look after the platform: they work before platform.env exists."""
    return load_settings(database_url="postgresql+pg8000://not-used@127.0.0.1/none")


def run(settings: Settings | None = None, report: Report | None = None) -> int:
    """Run the platform until SIGINT or SIGTERM; returns the exit status. Everything is stopped when it returns."""
    report = report or Report()
    stopping = _on_signals()
    try:
        platform = _Platform(settings or platform_settings(), report)
        platform.run(stopping)
    except NoesisError as error:
        report.waiting(())
        report.line("!!", f"error: {error}")
        return 1
    return 0


def _on_signals() -> threading.Event:
    stopping = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    return stopping


class _Platform:
    """One platform from its lock to its last process."""

    def __init__(self, settings: Settings, report: Report) -> None:
        self._settings = settings
        self._report = report
        self._home: Path = settings.noesis_home.resolve()
        self._server: postgres.Server | None = None
        self._supervisor: Supervisor | None = None
        self._state = State(Recorded(os.getpid(), Identity.of(os.getpid()).started))

    def run(self, stopping: threading.Event) -> None:
        postgres.make_home(self._home)
        lock = states.lock(self._home)
        try:
            stop_leftovers(self._home, self._report)
            self._change("starting")
            self._start(stopping)
            if not stopping.is_set():
                self._change("ready")
                self._print_addresses()
                self._supervise(stopping)
        except NoesisError as error:
            self._state.error = str(error)
            raise
        finally:
            self._stop()
            lock.close()

    def _start(self, stopping: threading.Event) -> None:
        declared = services.topology()
        listed = ports.of_platform(self._settings, services.function_names(declared))
        self._check_ports(listed)
        shared = self._write_environment(listed)
        planned = services.of_platform(self._settings, listed, shared)
        for service in planned:
            (self._home / "run" / service.name).mkdir(mode=0o700, exist_ok=True)
        logs.rotate(self._home / "logs")
        self._state.ports = {name: port.number for name, port in listed.items()}
        self._state.addresses = {
            "web": f"http://{HOST}:{listed['web'].number}",
            "LiteLLM": f"http://{HOST}:{listed['litellm'].number}",
            "Pub/Sub": f"{HOST}:{listed['bus'].number}",
            "Cloud Tasks": f"{HOST}:{listed['bus-tasks'].number}",
            "PostgreSQL": f"{HOST}:{listed['postgres'].number}",
        }
        self._supervisor = Supervisor(planned, self._home / "logs", self._report, self._write_state)
        self._report.line("..", f"starting noesis2 in {self._home}")
        self._supervisor.spawn_possible()  # LiteLLM takes longest and waits for nobody
        self._server = postgres.start(self._home, listed["postgres"].number)
        self._report.ready("postgres", f"port {self._server.port}")
        self._supervisor.mark_ready("postgres")
        self._supervisor.start(stopping)

    def _check_ports(self, listed: Mapping[str, Port]) -> None:
        adopted = postgres.is_running(self._home, listed["postgres"].number)
        ports.check(port for name, port in listed.items() if not (adopted and name == "postgres"))

    def _write_environment(self, listed: Mapping[str, Port]) -> dict[str, str]:
        (self._home / "blobs").mkdir(mode=0o700, exist_ok=True)
        shared = services.platform_settings(self._settings, listed, credentials.load(self._home))
        credentials.write_platform_env(self._home, shared)
        return shared

    def _supervise(self, stopping: threading.Event) -> None:
        assert self._supervisor
        assert self._server
        rotated = time.monotonic()
        while not stopping.wait(TICK_RUNNING):
            self._supervisor.watch()
            if not self._server.alive():
                self._revive_database()
            if time.monotonic() - rotated > _ROTATE_EVERY:
                logs.rotate(self._home / "logs")
                rotated = time.monotonic()

    def _revive_database(self) -> None:
        assert self._server
        self._report.line("!!", "postgres is not running or recovers from a crash")
        try:
            self._server = postgres.start(self._home, self._server.port)
        except NoesisError as error:
            # The next look tries again: a full disk may be emptied meanwhile, and the others can say 503 until then.
            self._report.line("!!", str(error))
            return
        # First written down, then told: who reads the line and looks finds the new pid.
        self._write_state()
        self._report.line("ok", f"postgres is back (pid {self._server.pid})")

    def _stop(self) -> None:
        failed = bool(self._state.error)
        self._report.waiting(())
        self._report.line("..", "stopping")
        self._change("stopping")
        if self._supervisor is not None:
            names = list(self._supervisor.recorded())
            # Work first, and with it the bus, which waits for answers under way and starts no new push. The models
            # are needed until the work is done; the database goes last.
            self._supervisor.stop([name for name in names if name != "litellm"], WORK_PATIENCE)
            self._supervisor.stop(["litellm"], MODELS_PATIENCE)
        postgres.stop(self._home)
        self._server = None
        self._change("failed" if failed else "stopped")
        self._report.line("ok", "stopped")

    def _change(self, phase: states.Phase) -> None:
        self._state.phase = phase
        self._write_state()

    def _write_state(self) -> None:
        known = self._supervisor.recorded() if self._supervisor else {}
        if self._server is not None:
            with contextlib.suppress(psutil.NoSuchProcess):  # it died a moment ago: the next look revives it
                server = Recorded(self._server.pid, Identity.of(self._server.pid).started, self._server.port)
                known = {"postgres": server} | known
        self._state.services = known
        self._state.write(self._home)

    def _print_addresses(self) -> None:
        self._report.ready("noesis2", "is ready")
        for name, address in self._state.addresses.items():
            self._report.line("  ", f"{name:<12} {address}")
        self._report.line("  ", f"{'data':<12} {self._home}   (stop: Ctrl-C or `noesis down`)")


def stop_leftovers(home: Path, report: Report) -> bool:
    """Stop what a killed runner left of its processes; PostgreSQL is left running, to be adopted. True: there was."""
    before = states.read(home)
    if before is None:
        return False
    others = {name: service.identity for name, service in before.services.items() if name != "postgres"}
    alive = [name for name, identity in others.items() if identity.process() is not None]
    if alive:
        report.line("..", f"an earlier runner was killed: stopping {', '.join(alive)}")
    processes.stop(others.values(), WORK_PATIENCE)
    return bool(alive)


if __name__ == "__main__":
    sys.exit(run())
