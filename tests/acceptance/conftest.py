"""The real platform for acceptance tests: every process, the real bus, real models, in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen
from uuid import UUID

import psutil
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

from local.bus.trial import Receiver

# They assert in the place of the tests that run them, so they say as much when something does not hold.
pytest.register_assert_rewrite(
    *(f"tests.acceptance.pubsub_{subject}_probes" for subject in ("delivery", "push", "resource"))
)

ROOT = Path(__file__).parents[2]
PORTS = (
    "POSTGRES_PORT",
    "BUS_PUBSUB_PORT",
    "BUS_HTTP_PORT",
    "BUS_TASKS_PORT",
    "LITELLM_PORT",
    "WEB_PORT",
)


@dataclass
class Platform:
    """A running platform and what a person at its keyboard can do."""

    home: Path
    environment: dict[str, str]
    settings: dict[str, str]
    operator: Engine

    def noesis(self, *arguments: str, check: bool = True, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        """Run `noesis …`; the exit code must be 0 unless told otherwise."""
        done = subprocess.run(
            [sys.executable, "-c", "from cli.main import main; main()", *arguments],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"noesis {arguments}: {done.stdout}\n{done.stderr}"
        return done

    def status(self) -> dict[str, Any]:
        """What `noesis status --json` says."""
        found: dict[str, Any] = json.loads(self.noesis("status", "--json", check=False).stdout)
        return found

    def tenant(self, slug: str) -> UUID:
        """Make a tenant; returns its id."""
        return UUID(self.noesis("tenants", "create", slug).stdout.strip())

    def url(self, service: str) -> str:
        """Where a service listens."""
        port = next(s["port"] for s in self.status()["services"] if s["name"] == service)
        return f"http://127.0.0.1:{port}"

    def kill(self, service: str) -> None:
        """kill -9 a service with every process below it, as the machine's power supply would."""
        pid = next(s["pid"] for s in self.status()["services"] if s["name"] == service)
        victim = psutil.Process(pid)
        for process in [*victim.children(recursive=True), victim]:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself when the one above it was killed
                process.kill()

    def advance(self, seconds: int) -> None:
        """Move the clock of the bus: retries, deadlines, tasks and schedules that are due fire now."""
        request = Request(  # our own loopback address
            f"http://127.0.0.1:{self.environment['BUS_HTTP_PORT']}/_clock/advance?seconds={seconds}", method="POST"
        )
        urlopen(request, timeout=30).close()  # the bus answers after what was due has run, or ten seconds

    def rows(self, sql: str, **values: object) -> list[Any]:
        """Look into the database as an operator."""
        with self.operator.connect() as connection:
            return list(connection.execute(text(sql), values).all())


def eventually(
    condition: Callable[[], object], timeout: float, what: str, nudge: Callable[[], None] | None = None
) -> None:
    """Wait for a condition; `nudge` is called every two seconds meanwhile (it moves a clock, say)."""
    deadline = time.monotonic() + timeout
    nudged = time.monotonic()
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {what}"
        if nudge and time.monotonic() - nudged > 2:
            nudge()
            nudged = time.monotonic()
        time.sleep(0.1)


def _free_row(count: int) -> int:
    """The first of `count` consecutive free ports, below those that the system gives out by itself."""
    for first in range(18_101, 28_000, 10):
        probes = [socket.socket() for _ in range(count)]
        try:
            for offset, probe in enumerate(probes):
                probe.bind(("127.0.0.1", first + offset))
            return first
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
    raise AssertionError("no free ports")


@pytest.fixture
def receivers() -> Iterator[Callable[..., Receiver]]:
    """Makes HTTP receivers that are gone afterwards."""
    made: list[Receiver] = []

    def make(*arguments: Any, **named: Any) -> Receiver:
        made.append(Receiver(*arguments, **named))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


@pytest.fixture(scope="session")
def platform(request: pytest.FixtureRequest) -> Iterator[Platform]:
    """`noesis up --detach` in a fresh folder, on free ports, with a bus whose clock can be moved."""
    if not (ROOT / ".venv-litellm").is_dir():
        pytest.fail("the environment of LiteLLM is missing: `make test` installs it")
    # Not below pytest's folder: the database runs as another user when we are root, and every other session of pytest
    # that begins on the machine closes that folder to others.
    folder = Path(tempfile.mkdtemp(prefix="noesis-platform-"))
    folder.chmod(0o711)
    home = folder / "home"
    first = _free_row(4 + len(PORTS))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NOESIS_", "COVERAGE"))} | {
        "NOESIS_HOME": str(home),
        "BUS_TEST_CLOCK": "true",
        "FUNCTIONS_PORT": str(first),
        **{name: str(port) for port, name in enumerate(PORTS, first + 4)},
    }
    # What the database of other tests in this session has set is not for a platform of its own.
    for name in (
        "DATABASE_URL",
        "OPERATOR_DATABASE_URL",
        "MIGRATION_DATABASE_URL",
        "LITELLM_MASTER_KEY",
        "SECRET_KEY",
        "EMBEDDINGS_MODEL",
        "EMBEDDINGS_DIM",
    ):
        environment.pop(name, None)
    command = [sys.executable, "-c", "from cli.main import main; main()"]
    started = subprocess.run(
        [*command, "up", "--detach"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert started.returncode == 0, started.stdout + started.stderr
    lines = (home / "platform.env").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    settings = {name: value.strip("'\"") for name, value in settings.items()}
    engine = create_engine(settings["OPERATOR_DATABASE_URL"], poolclass=NullPool)
    try:
        yield Platform(home, environment, settings, engine)
    finally:
        engine.dispose()
        subprocess.run([*command, "down"], env=environment, cwd=ROOT, capture_output=True, timeout=60, check=False)
        if request.session.testsfailed:
            print(f"\nlogs and data of the platform: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
