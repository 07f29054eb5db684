"""The parts of the runner: ports, credentials, lock, process identity, logs, what is planned."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psutil
import pytest

from local import credentials, logs, ports, postgres, processes, runner, services
from local import state as states
from local.ports import Port
from local.processes import Identity
from local.report import Report
from local.state import Recorded, State
from schema import roles
from shared.settings import CHECKOUT, Settings, load_settings

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(database_url="postgresql+pg8000://none@127.0.0.1/none", noesis_home=tmp_path)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(SLEEP, start_new_session=True)
    yield process
    process.kill()
    process.wait()


def planned(settings: Settings) -> dict[str, services.Service]:
    listed = ports.of_platform(settings, services.function_names(services.topology()))
    shared = services.platform_settings(settings, listed, credentials.load(settings.noesis_home))
    return {service.name: service for service in services.of_platform(settings, listed, shared)}


# ---- ports


def test_a_taken_port_is_named_with_its_setting_and_its_holder() -> None:
    """The message says which port, which setting moves it, and which process holds it."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        number = held.getsockname()[1]
        with pytest.raises(ports.PortTakenError, match=rf"port {number} \(WEB_PORT, for web\).*pid {os.getpid()}"):
            ports.check([Port("web", number, "WEB_PORT")])


def test_every_taken_port_is_named_at_once() -> None:
    """Nobody has to start the platform once for each port to find out."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("0.0.0.0", 0)) as two:
        taken = [Port("web", one.getsockname()[1], "WEB_PORT"), Port("bus", two.getsockname()[1], "BUS_PUBSUB_PORT")]
        with pytest.raises(ports.PortTakenError, match=r"WEB_PORT.*BUS_PUBSUB_PORT"):
            ports.check(taken)


def test_one_port_for_two_services_is_refused() -> None:
    """Two settings with the same number are a mistake that no bind would explain."""
    with pytest.raises(ports.PortTakenError, match="B and A are both 1234"):
        ports.check([Port("a", 1234, "A"), Port("b", 1234, "B")])


def test_free_ports_pass_even_right_after_a_connection_ended() -> None:
    """A connection in TIME_WAIT, left by the platform that was stopped a moment ago, does not block the next one."""
    server = socket.create_server(("127.0.0.1", 0))
    number = server.getsockname()[1]
    client = socket.create_connection(("127.0.0.1", number))
    accepted, _ = server.accept()
    for each in (accepted, client, server):  # the server's side closes first and keeps the TIME_WAIT
        each.close()
    ports.check([Port("web", number, "WEB_PORT")])


@pytest.mark.parametrize(("given", "below"), [("32768\t60999", 32_768), ("1024\t65535", 65_536), (None, 49_152)])
def test_ports_for_services_are_not_those_that_the_system_gives_out(
    given: str | None, below: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is room below: nobody who asks for any port can come before the service that is being started."""
    if given is not None:
        (tmp_path / "range").write_text(given + "\n")
    monkeypatch.setattr(ports, "_GIVEN_BY_LINUX", tmp_path / "range")
    found = ports.free_ports(20)
    assert len(set(found)) == 20
    assert max(found) < below


# ---- credentials


def test_credentials_are_made_once_and_readable_by_their_owner_only(settings: Settings) -> None:
    """A second start, on other ports too, finds the same passwords and keys; the file has mode 0600."""
    listed = ports.of_platform(settings, ["ingest"])
    made = credentials.load(settings.noesis_home)
    path = credentials.write_platform_env(settings.noesis_home, services.platform_settings(settings, listed, made))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert credentials.load(settings.noesis_home) == made
    moved = listed | {"postgres": Port("postgres", 1, "POSTGRES_PORT")}
    credentials.write_platform_env(settings.noesis_home, services.platform_settings(settings, moved, made))
    assert credentials.load(settings.noesis_home) == made


def test_two_homes_share_no_secret(tmp_path: Path) -> None:
    """Every secret is chance: no default, nothing derived from a path or a name."""
    one, two = credentials.load(tmp_path), credentials.load(tmp_path)
    secrets = [*one.passwords.values(), one.litellm_master_key, one.secret_key]
    secrets += [*two.passwords.values(), two.litellm_master_key, two.secret_key]
    assert len(set(secrets)) == len(secrets) == 10
    assert all(len(secret) >= 32 for secret in secrets)


def test_the_roles_of_the_credentials_are_those_of_the_schema() -> None:
    """The runner does not import the schema (it would carry SQLAlchemy); their names still agree."""
    assert set(credentials.ROLE_SETTINGS.values()) == {roles.OWNER, roles.APPLICATION, roles.OPERATOR}


def test_platform_env_holds_only_settings_the_product_knows(settings: Settings) -> None:
    """An unknown name there would stop every command (shared.settings refuses it)."""
    listed = ports.of_platform(settings, ["ingest"])
    values = services.platform_settings(settings, listed, credentials.load(settings.noesis_home))
    assert set(values) <= {name.upper() for name in Settings.model_fields}


# ---- what is planned


def test_every_service_of_the_topology_runs_on_the_laptop(settings: Settings) -> None:
    """A service added to topology.yaml is started here without another change."""
    declared = services.topology()["services"]
    assert set(planned(settings)) == {*declared, "litellm", "bus", "database"}


def test_a_function_runs_as_the_topology_says(settings: Settings) -> None:
    """Threads, timeout and pool come from the declaration Terraform reads; the audience is its own address."""
    declared = services.topology()["services"]
    for name in services.function_names(services.topology()):
        service = planned(settings)[name]
        assert service.port
        threads = declared[name].get("laptop_threads", declared[name]["concurrency"])
        assert service.environment["THREADS"] == str(threads)
        assert service.environment["CLOUD_RUN_TIMEOUT_SECONDS"] == str(declared[name]["timeout"])
        assert service.environment["DATABASE_POOL"] == str(declared[name]["pool"])
        assert service.environment["PUSH_AUDIENCE"] == f"http://127.0.0.1:{service.port.number}"
        assert (CHECKOUT / declared[name]["source"]).as_posix() in service.command


def test_the_bus_pushes_to_where_the_functions_listen(settings: Settings) -> None:
    """Every function is known to the bus, which starts last: a push nobody hears costs 30 s of backoff."""
    found = planned(settings)
    functions = services.function_names(services.topology())
    for name in functions:
        port = found[name].port
        assert port
        assert f"{name}=http://127.0.0.1:{port.number}" in found["bus"].command
    assert {*functions, "web", "litellm"} <= set(found["bus"].after)


def test_the_model_service_gets_neither_database_nor_cookie_key(settings: Settings) -> None:
    """LiteLLM's environment carries its own key and nothing that opens our data."""
    environment = planned(settings)["litellm"].environment
    assert environment["LITELLM_MASTER_KEY"]
    assert not {*credentials.ROLE_SETTINGS, "SECRET_KEY"} & set(environment)


# ---- lock, state, identity


def test_one_home_has_one_runner(tmp_path: Path) -> None:
    """The second runner is told who has the home and what to do."""
    held = states.lock(tmp_path)
    with pytest.raises(states.AlreadyRunningError, match=rf"runner pid {os.getpid()}.*noesis down"):
        states.lock(tmp_path)
    held.close()
    states.lock(tmp_path).close()


def test_a_killed_runner_leaves_no_lock(tmp_path: Path) -> None:
    """kill -9 cannot leave a lock behind, because the kernel holds it for the process."""
    script = f"import pathlib, time; from local import state\nf = state.lock(pathlib.Path({str(tmp_path)!r}))\n"
    child = subprocess.Popen(
        [sys.executable, "-c", script + "print('held', flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
    )
    assert child.stdout
    with child.stdout:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(states.AlreadyRunningError, match=str(child.pid)):
            states.lock(tmp_path)
        child.kill()
        child.wait()
    states.lock(tmp_path).close()


def test_the_state_survives_writing_and_reading(tmp_path: Path) -> None:
    """What one process writes another one reads unchanged."""
    (tmp_path / "run").mkdir()
    state = State(
        Recorded(1, 2.0), "ready", services={"web": Recorded(3, 4.0, 8000, "/", [200], 1)}, ports={"web": 8000}
    )
    state.write(tmp_path)
    assert states.read(tmp_path) == state


@pytest.mark.parametrize("content", ["", "{", "{}", '{"runner": 1, "services": {}}', "[]"])
def test_a_damaged_state_file_is_no_state(tmp_path: Path, content: str) -> None:
    """A file cut off by a full disk does not keep the next runner from starting."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "platform.json").write_text(content, encoding="utf-8")
    assert states.read(tmp_path) is None


def test_a_recycled_pid_is_another_process(sleeper: subprocess.Popen[bytes]) -> None:
    """The same number with another start time is a stranger."""
    identity = Identity.of(sleeper.pid)
    assert identity.process() is not None
    assert Identity(sleeper.pid, identity.started - 100).process() is None


def test_a_database_that_is_back_is_written_down_before_it_is_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads the line and looks at the state finds the new pid there."""
    seen: list[int] = []

    class Looking(Report):
        def line(self, mark: str, text: str) -> None:
            state = states.read(settings.noesis_home)
            if state and "is back" in text:
                seen.append(state.services["postgres"].pid)

    platform = _with_database(settings, Looking(), _ended())
    monkeypatch.setattr(postgres, "start", lambda *_: SimpleNamespace(pid=os.getpid(), port=1))
    platform._revive_database()
    assert seen == [os.getpid()]


def test_a_database_that_died_a_moment_ago_does_not_keep_the_platform_from_stopping(settings: Settings) -> None:
    """Its number is in nobody's process table any more; what is left is written down all the same."""
    platform = _with_database(settings, Report(), _ended())
    platform._change("stopping")
    state = states.read(settings.noesis_home)
    assert state
    assert (state.phase, state.services) == ("stopping", {})


def _with_database(settings: Settings, report: Report, pid: int) -> runner._Platform:
    """A platform that believes that its database has this pid."""
    (settings.noesis_home / "run").mkdir()
    platform = runner._Platform(settings, report)
    platform._server = cast("postgres.Server", SimpleNamespace(pid=pid, port=1))
    return platform


def _ended() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_a_killed_runner_are_stopped_and_strangers_are_not(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """The next start stops what is left of the earlier platform, by process identity; a recycled pid is left alone."""
    stranger = subprocess.Popen(SLEEP, start_new_session=True)
    try:
        (tmp_path / "run").mkdir()
        left = Identity.of(sleeper.pid)
        found = {"embed": Recorded(left.pid, left.started), "web": Recorded(stranger.pid, left.started - 1000)}
        State(Recorded(1, 2.0), "ready", services=found).write(tmp_path)
        assert runner.stop_leftovers(tmp_path, Report())
        assert sleeper.wait(timeout=5) == -signal.SIGTERM
        with pytest.raises(subprocess.TimeoutExpired):
            stranger.wait(timeout=0.2)
        assert "stopping embed" in capsys.readouterr().out
    finally:
        stranger.kill()
        stranger.wait()


# ---- processes, logs


def test_stopping_ends_who_does_not_listen(tmp_path: Path) -> None:
    """A process that ignores SIGTERM is killed after the patience, and its name is told."""
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    child = processes.spawn([sys.executable, "-c", deaf], os.environ, tmp_path / "deaf.log", tmp_path)
    _until_written(tmp_path / "deaf.log")
    assert processes.stop([Identity.of(child.pid)], patience=0.1) == [child.pid]
    assert child.wait() == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a death signal for children")
def test_children_end_with_a_killed_runner(tmp_path: Path) -> None:
    """kill -9 of the parent ends its children: nobody keeps ports and memory."""
    script = (
        "import os, pathlib, sys, time; from local import processes\n"
        f"child = processes.spawn({SLEEP!r}, os.environ, pathlib.Path({str(tmp_path / 'log')!r}), pathlib.Path('/'))\n"
        "print(child.pid, flush=True); time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout
    with parent.stdout:
        child = psutil.Process(int(parent.stdout.readline()))
    _until_written(tmp_path / "log")
    parent.kill()
    parent.wait()
    _until_ended(child)


def test_logs_stay_small_while_their_writer_goes_on(tmp_path: Path) -> None:
    """Rotation moves the old lines aside; the process that holds the file open writes on at its new end."""
    path = tmp_path / "web.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"old\n" * 100)
        logs.rotate(tmp_path, limit=100)
        writer.write(b"new\n")
    assert path.read_bytes() == b"new\n"
    assert (tmp_path / "web.log.1").read_bytes() == b"old\n" * 100


def test_last_words_are_the_cause(tmp_path: Path) -> None:
    """An error message shows the end of this start's log, without pointer lines and without earlier starts."""
    path = tmp_path / "web.log"
    path.write_bytes(b"earlier\n")
    path.write_bytes(b"earlier\n" + b"  boom()\n  ^^^^\nValueError: no\n")
    assert logs.last_words(path, since=8) == "boom() | ValueError: no"
    assert logs.last_words(tmp_path / "absent.log") == "it said nothing"


def _until_ended(process: psutil.Process) -> None:
    """Of a stranger's child: whoever inherits it reaps it at once, later, or (in a container without init) never."""
    deadline = time.monotonic() + 5
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the child outlived its parent"
            time.sleep(0.01)


def _until_written(path: Path) -> None:
    deadline = time.monotonic() + 10
    while not path.read_bytes():
        assert time.monotonic() < deadline, f"nothing was written to {path}"
        time.sleep(0.01)
