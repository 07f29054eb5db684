"""The real runner with real PostgreSQL and one small service in place of ours: start, signals, kill -9, down."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from local import control, postgres, status
from local import state as states
from local.ports import free_ports
from local.report import Report
from local.state import State
from shared.settings import CHECKOUT

# The runner as it is, except that it starts one web server instead of the whole platform.
SCRIPT = """
import sys
from local import runner, services
def small(settings, ports, shared):
    command = (sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(ports["web"].number))
    return [services.Service("web", command, dict(shared), ports["web"], "/", after=("postgres",))]
services.of_platform = small
sys.exit(runner.run())
"""


@dataclass
class Platform:
    """One home with ports of its own, and the runners a test started for it."""

    home: Path
    ports: dict[str, int]
    runners: list[subprocess.Popen[bytes]]

    @property
    def output(self) -> str:
        return (self.home / "output").read_text(encoding="utf-8")

    def up(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {name: str(port) for name, port in self.ports.items()}
        environment |= {"NOESIS_HOME": str(self.home), "PYTHONPATH": str(CHECKOUT)}
        with (self.home / "output").open("ab") as output:
            runner = subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=output, stderr=output)
        self.runners.append(runner)
        return runner

    def ready(self, runner: subprocess.Popen[bytes]) -> State:
        def is_ready() -> State | None:
            assert runner.poll() is None, self.output
            state = states.read(self.home)
            return state if state and state.runner.pid == runner.pid and state.phase == "ready" else None

        return until(is_ready)


T = TypeVar("T")


def until(condition: Callable[[], T | None]) -> T:
    """The first result that is true, awaited for at most 30 s."""
    deadline = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)
    return found


def four_free_ports() -> int:
    """The first of consecutive free ports for the functions.

    Below the range that the system gives to outgoing connections: those of a test beside this one would take them.
    """
    while True:
        first = random.randrange(18_000, 30_000, 10)
        try:
            with contextlib.ExitStack() as held:
                for number in range(first, first + 4):
                    held.enter_context(socket.create_server(("127.0.0.1", number)))
        except (OSError, OverflowError):
            continue
        return first


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    """A platform of its own, stopped afterwards whatever the test did to it."""
    names = ("POSTGRES_PORT", "BUS_PUBSUB_PORT", "BUS_HTTP_PORT", "BUS_TASKS_PORT", "LITELLM_PORT", "WEB_PORT")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    first = four_free_ports()
    while set(ports.values()) & set(range(first, first + 4)):
        first = four_free_ports()
    made = Platform(tmp_path, ports | {"FUNCTIONS_PORT": first}, [])
    # The cluster is made without fsync here, which saves seconds; the runner then runs it as always.
    postgres.start(tmp_path, made.ports["POSTGRES_PORT"], durable=False)
    postgres.stop(tmp_path)
    yield made
    for runner in made.runners:
        runner.kill()
        runner.wait()
    control.down(tmp_path, Report())


def test_a_signal_stops_everything_and_the_data_stays(platform: Platform) -> None:
    """SIGTERM ends every process and PostgreSQL properly; the next start finds its cluster."""
    runner = platform.up()
    state = platform.ready(runner)
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(timeout=15) == 0
    assert all(service.identity.process() is None for service in state.services.values())
    assert not (platform.home / "postgres" / "data" / "postmaster.pid").exists()
    again = platform.up()
    platform.ready(again)


def test_ctrl_c_stops_as_well(platform: Platform) -> None:
    """SIGINT is the same as SIGTERM; nothing but our own lines is printed."""
    runner = platform.up()
    platform.ready(runner)
    runner.send_signal(signal.SIGINT)
    assert runner.wait(timeout=15) == 0
    assert "Traceback" not in platform.output


def test_after_kill_9_of_the_runner_the_next_start_goes_on(platform: Platform) -> None:
    """PostgreSQL is adopted with its pid, the rest is replaced, and nobody has to clean up."""
    runner = platform.up()
    before = platform.ready(runner)
    runner.kill()
    runner.wait()
    after = platform.ready(platform.up())
    assert after.services["postgres"].pid == before.services["postgres"].pid
    assert after.services["web"].pid != before.services["web"].pid
    assert before.services["web"].identity.process() is None


def test_after_kill_9_of_everything_the_next_start_goes_on(platform: Platform) -> None:
    """As after a power cut: all processes at once; PostgreSQL recovers."""
    runner = platform.up()
    before = platform.ready(runner)
    postmaster = psutil.Process(before.services["postgres"].pid)
    web = psutil.Process(before.services["web"].pid)
    for process in [psutil.Process(runner.pid), postmaster, web, *postmaster.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    runner.wait()
    assert set(platform.ready(platform.up()).services) == {"postgres", "web"}


def test_a_killed_database_comes_back(platform: Platform) -> None:
    """kill -9 of the postmaster under a running platform: the runner starts it again on the same port."""
    runner = platform.up()
    before = platform.ready(runner).services["postgres"]
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: "postgres is back" in platform.output)
    after = platform.ready(runner).services["postgres"]
    assert after.pid != before.pid
    assert postgres.is_running(platform.home, before.port or 0)


def test_a_second_runner_is_refused_and_disturbs_nothing(platform: Platform) -> None:
    """One runner a home: the second one says who has it and leaves the first one's state alone."""
    runner = platform.up()
    platform.ready(runner)
    assert platform.up().wait(timeout=60) == 1
    assert f"runner pid {runner.pid}" in platform.output
    assert platform.ready(runner).services["web"].identity.process() is not None


def test_a_taken_port_starts_nothing(platform: Platform) -> None:
    """The check comes before the first process: no half platform has to be stopped."""
    with socket.create_server(("127.0.0.1", platform.ports["WEB_PORT"])):
        assert platform.up().wait(timeout=60) == 1
    assert f"port {platform.ports['WEB_PORT']} (WEB_PORT, for web) is taken" in platform.output
    state = states.read(platform.home)
    assert state
    assert state.services == {}
    assert not (platform.home / "logs" / "web.log").exists()


def test_down_stops_the_platform_from_outside(platform: Platform) -> None:
    """`noesis down` ends a running platform, and says when there is none."""
    runner = platform.up()
    state = platform.ready(runner)
    assert control.down(platform.home, Report())
    assert runner.wait(timeout=5) == 0
    assert all(service.identity.process() is None for service in state.services.values())
    assert control.down(platform.home, Report()) is False


def test_down_cleans_up_after_a_killed_runner(platform: Platform) -> None:
    """Without a runner `noesis down` stops what is left, PostgreSQL included and properly."""
    runner = platform.up()
    state = platform.ready(runner)
    runner.kill()
    runner.wait()
    assert control.down(platform.home, Report())
    assert state.services["postgres"].identity.process() is None
    assert not (platform.home / "postgres" / "data" / "postmaster.pid").exists()


def test_status_tells_health_memory_and_what_is_missing(platform: Platform) -> None:
    """A running service has a pid, a port and memory; one that should run and does not makes the platform unhealthy."""
    runner = platform.up()
    platform.ready(runner)
    found = {service.name: service for service in status.collect(platform.home).services}
    assert found["postgres"].healthy
    assert found["web"].healthy
    assert found["web"].port == platform.ports["WEB_PORT"]
    assert 0 < found["web"].pss <= found["web"].rss
    assert found["agent"].detail == "not started"
    assert not status.collect(platform.home).healthy


def test_status_of_a_killed_runner_says_so(platform: Platform) -> None:
    """The state file of a dead runner is not believed."""
    runner = platform.up()
    platform.ready(runner)
    runner.kill()
    runner.wait()
    assert status.collect(platform.home).phase == "killed"
    assert status.collect(platform.home / "elsewhere").phase == "absent"


def test_the_runners_files_are_private(platform: Platform) -> None:
    """Secrets, logs and blobs are readable by their owner only."""
    platform.ready(platform.up())
    for name, mode in {"platform.env": 0o600, "logs": 0o700, "blobs": 0o700, "run": 0o700}.items():
        assert (platform.home / name).stat().st_mode & 0o777 == mode, name
