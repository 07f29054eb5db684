"""Starting in order, restarting the dead, stopping: the supervisor with small real processes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from local import health
from local.ports import Port
from local.postgres import free_port
from local.report import Report
from local.services import Service
from local.supervisor import ServiceFailedError, Supervisor

# Answers 200 to everything. With an argument it forks first and lets the child serve, as gunicorn does.
SERVER = """
import http.server, os, sys, time
class Door(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Door)
if len(sys.argv) > 2 and os.fork():
    time.sleep(60)
server.serve_forever()
"""


def server(name: str, *, after: tuple[str, ...] = (), forks: bool = False) -> Service:
    port = Port(name, free_port(), f"{name.upper()}_PORT")
    command = (sys.executable, "-c", SERVER, str(port.number), *(["fork"] if forks else []))
    return Service(name, command, os.environ, port, "/", after=after)


def step(name: str, script: str, *, after: tuple[str, ...] = ()) -> Service:
    return Service(name, (sys.executable, "-c", script), os.environ, after=after)


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    """Makes supervisors whose processes all end with the test."""
    made: list[Supervisor] = []

    def make(*services: Service) -> Supervisor:
        made.append(Supervisor(services, tmp_path, Report(), lambda: None))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.stop(list(supervisor.recorded()), patience=0.2)


def watch_until(supervisor: Supervisor, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        supervisor.watch()
        time.sleep(0.02)


def test_nobody_starts_before_what_it_needs_is_ready(
    supervise: Callable[..., Supervisor], capsys: pytest.CaptureFixture[str]
) -> None:
    """A service waits for the end of a step and for the health of a server."""
    supervisor = supervise(server("last", after=("first", "step")), server("first"), step("step", ""))
    supervisor.start(threading.Event())
    order = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert sorted(order[:2]) == ["first", "step"]
    assert order[2] == "last"


def test_what_waits_for_someone_else_waits(supervise: Callable[..., Supervisor]) -> None:
    """A service that needs PostgreSQL is not spawned until that is marked ready."""
    supervisor = supervise(step("database", "", after=("postgres",)))
    supervisor.spawn_possible()
    assert supervisor.recorded() == {}
    supervisor.mark_ready("postgres")
    supervisor.spawn_possible()
    assert list(supervisor.recorded()) == ["database"]


def test_a_failed_start_tells_the_last_words(supervise: Callable[..., Supervisor], tmp_path: Path) -> None:
    """Who ends while the platform starts is named with status, cause and log."""
    supervisor = supervise(step("database", "raise SystemExit('no room on disk')"))
    with pytest.raises(ServiceFailedError, match=r"database ended with status 1 .*no room on disk.*database\.log"):
        supervisor.start(threading.Event())


def test_a_server_that_ends_with_success_while_starting_has_failed(supervise: Callable[..., Supervisor]) -> None:
    """Only a step may end; a server that ends is not ready, whatever its status."""
    ended = Service("web", (sys.executable, "-c", ""), os.environ, Port("web", free_port(), "WEB_PORT"), "/")
    with pytest.raises(ServiceFailedError, match="web ended with status 0"):
        supervise(ended).start(threading.Event())


def test_who_never_becomes_ready_is_named(supervise: Callable[..., Supervisor]) -> None:
    """The wait for readiness ends with the names of those still awaited."""
    mute = Service(
        "mute", (sys.executable, "-c", SERVER, str(free_port())), os.environ, Port("m", free_port(), "M"), "/"
    )
    with pytest.raises(ServiceFailedError, match="mute"):
        supervise(mute).start(threading.Event(), timeout=0.5)


def test_a_start_can_be_cancelled(supervise: Callable[..., Supervisor]) -> None:
    """Ctrl-C while something hangs ends the wait at once."""
    cancelled = threading.Event()
    cancelled.set()
    began = time.monotonic()
    supervise(step("hangs", "import time; time.sleep(60)")).start(cancelled)
    assert time.monotonic() - began < 5


def test_a_killed_child_is_restarted(supervise: Callable[..., Supervisor], capsys: pytest.CaptureFixture[str]) -> None:
    """kill -9 of a service brings it back under a new pid, with a visible line for the end and for the return."""
    service = server("web")
    supervisor = supervise(service)
    supervisor.start(threading.Event())
    before = supervisor.recorded()["web"]
    os.kill(before.pid, signal.SIGKILL)
    watch_until(supervisor, lambda: "web is back" in capsys.readouterr().out)
    after = supervisor.recorded()["web"]
    assert after.pid != before.pid
    assert after.restarts == 1
    assert service.port
    assert health.answers(service.port.number, "/", (200,))


def test_who_is_back_is_written_down_before_it_is_told(tmp_path: Path) -> None:
    """Who reads the line and looks at the state finds there what it says."""
    told: list[str] = []

    class Listening(Report):
        def line(self, mark: str, text: str) -> None:
            told.append(text)

    supervisor = Supervisor([server("web")], tmp_path, Listening(), lambda: told.append("written"))
    try:
        supervisor.start(threading.Event())
        os.kill(supervisor.recorded()["web"].pid, signal.SIGKILL)
        watch_until(supervisor, lambda: any("is back" in text for text in told))
    finally:
        supervisor.stop(["web"], patience=0.2)
    back = next(at for at, text in enumerate(told) if "is back" in text)
    assert told[back - 2 : back] == ["written", "written"]  # once when it was started, once when it was ready


def test_workers_of_a_killed_leader_do_not_keep_its_port(supervise: Callable[..., Supervisor]) -> None:
    """The forked worker that outlives its leader holds the socket: it is ended, so that the restart can listen."""
    supervisor = supervise(server("web", forks=True))
    supervisor.start(threading.Event())
    before = supervisor.recorded()["web"]
    (worker,) = psutil.Process(before.pid).children()
    os.kill(before.pid, signal.SIGKILL)
    watch_until(supervisor, lambda: not _runs(worker))
    watch_until(supervisor, lambda: supervisor.recorded()["web"].pid != before.pid)


def test_restarts_back_off(supervise: Callable[..., Supervisor], capsys: pytest.CaptureFixture[str]) -> None:
    """A child that dies again and again is started at growing distances, not in a busy loop."""
    supervisor = supervise(server("web"))
    supervisor.start(threading.Event())
    said: list[str] = []

    def ended_twice() -> bool:
        said.extend(line for line in capsys.readouterr().out.splitlines() if "starts again in" in line)
        if len(said) == 1 and supervisor.recorded()["web"].restarts == 1:
            os.kill(supervisor.recorded()["web"].pid, signal.SIGKILL)
        return len(said) == 2

    os.kill(supervisor.recorded()["web"].pid, signal.SIGKILL)
    watch_until(supervisor, ended_twice)
    assert [line.split("starts again in ")[1].split(" s")[0] for line in said] == ["0.5", "1"]


def test_a_finished_step_is_not_restarted(supervise: Callable[..., Supervisor]) -> None:
    """The migration runs once at the start, not again and again."""
    supervisor = supervise(step("database", ""))
    supervisor.start(threading.Event())
    supervisor.watch()
    assert supervisor.recorded() == {}


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
