"""PostgreSQL out of the wheel: durable, adopted, recovered, reachable from anywhere a checkout may lie."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from local import account, postgres, postmaster
from shared.errors import NoesisError

PACKAGE = os.environ.get("POSTGRES_PACKAGE", postgres.EMBEDDED)
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home whose cluster is stopped afterwards, whatever the test did to it."""
    yield tmp_path / "home"
    postgres.stop(tmp_path / "home")


def start(home: Path, port: int | None = None) -> postgres.Server:
    return postgres.start(home, port or postgres.free_port(), PACKAGE)


def run(server: postgres.Server, *statements: str) -> object:
    """Run statements as superuser, each committed; the first value of the last one, if it returns rows."""
    engine = sa.create_engine(server.admin_dsn, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    value: object = None
    with engine.connect() as connection:
        for statement in statements:
            result = connection.execute(sa.text(statement))
            value = result.scalar() if result.returns_rows else None
    return value


def test_a_cluster_keeps_its_rows_over_stop_and_start(home: Path) -> None:
    """What was committed is there after an orderly stop, on another port, with the same password."""
    run(start(home), "create table kept as select 42 as n")
    assert postgres.stop(home)
    assert run(start(home), "select n from kept") == 42


def test_starting_twice_adopts_the_running_server(home: Path) -> None:
    """A second start with the same port finds the first server and does not disturb it."""
    first = start(home)
    assert start(home, first.port) == first
    assert first.alive()


def test_another_port_moves_the_server(home: Path) -> None:
    """The port is a setting: a start with another one restarts the server there."""
    first = start(home)
    second = start(home)
    assert second.port != first.port
    assert not first.alive()
    assert run(second, "select 1") == 1


def test_stop_says_when_there_is_nothing_to_stop(home: Path) -> None:
    """Stopping what never ran is no error."""
    assert postgres.stop(home) is False


def test_a_commit_survives_kill_9_of_every_process(home: Path) -> None:
    """The postmaster and its backends die at once; the next start recovers every committed row."""
    server = start(home)
    run(server, "create table kept as select generate_series(1, 1000) as n")
    postmaster = psutil.Process(server.pid)
    for process in [postmaster, *postmaster.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # a backend that noticed by itself
            process.kill()
    assert run(start(home, server.port), "select count(*) from kept") == 1000


def test_a_start_right_after_kill_9_of_the_postmaster_waits_for_its_orphans(home: Path) -> None:
    """Backends outlive a killed postmaster for a moment and hold the shared memory: start waits and succeeds."""
    server = start(home)
    engine = sa.create_engine(server.admin_dsn, poolclass=sa.NullPool)
    connection = engine.connect()
    connection.execute(sa.text("select 1"))
    os.kill(server.pid, signal.SIGKILL)
    try:
        assert run(start(home, server.port), "select 1") == 1
    finally:
        connection.invalidate()
        connection.close()


def test_a_pid_file_with_a_recycled_number_is_no_obstacle(home: Path) -> None:
    """After a reboot the number in postmaster.pid may belong to a stranger: start neither adopts nor kills it."""
    port = start(home).port
    postgres.stop(home)
    who = (home / "postgres" / "data").stat()
    sleeper = subprocess.Popen(["sleep", "60"], user=who.st_uid if os.geteuid() == 0 else None)
    try:
        lines = [str(sleeper.pid), str(home / "postgres" / "data"), "1", str(port), "", "127.0.0.1", "1 1", "ready   "]
        (home / "postgres" / "data" / "postmaster.pid").write_text("\n".join(lines) + "\n", encoding="utf-8")
        assert start(home, port).pid != sleeper.pid
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_killed_initdb_leaves_nothing_that_looks_done(home: Path) -> None:
    """The cluster is made beside its place: half of one from an earlier attempt is thrown away."""
    half = home / "postgres" / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n", encoding="ascii")
    home.chmod(0o711)
    assert run(start(home), "select 1") == 1
    assert not half.exists()


def test_nobody_gets_in_without_the_password(home: Path) -> None:
    """Loopback is not trust: a wrong password is refused, and the right one is readable by its owner only."""
    server = start(home)
    assert stat.S_IMODE(server.password_file.stat().st_mode) == 0o600
    wrong = sa.create_engine(sa.make_url(server.admin_dsn).set(password="wrong"), poolclass=sa.NullPool)
    with pytest.raises(sa.exc.DBAPIError, match="28P01"):
        wrong.connect()


def test_only_loopback_is_listened_on(home: Path) -> None:
    """No other machine reaches the laptop's database."""
    server = start(home)
    listening = [c.laddr.ip for c in psutil.Process(server.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]


def test_durability_is_on_outside_temporary_clusters(home: Path) -> None:
    """fsync is off only where a cluster is thrown away."""
    assert run(start(home), "show fsync") == "on"
    with postgres.temporary(PACKAGE) as server:
        assert run(server, "show fsync") == "off"


def test_the_extensions_of_the_schema_are_in_the_wheel(home: Path) -> None:
    """pgvector and pg_trgm can be created (the wheel with 16 brings no contrib), and text sorts by code point."""
    server = start(home)
    run(server, "create extension vector")
    if PACKAGE == postgres.EMBEDDED:
        run(server, "create extension pg_trgm", "create extension unaccent")
    assert run(server, "select '[1,2]'::vector <-> '[1,2]'::vector") == 0
    assert run(server, "select 'B' < 'a'") is True


def test_a_temporary_cluster_leaves_nothing() -> None:
    """No process and no folder stay behind."""
    with postgres.temporary(PACKAGE) as server:
        assert run(server, "select 1") == 1
    assert not psutil.pid_exists(server.pid)
    assert not server.data.exists()


def test_a_server_that_ends_between_two_looks_is_reaped() -> None:
    """A child that still ran when it was asked and is a zombie a moment later does not stay one."""

    class SeenRunning(subprocess.Popen[bytes]):
        """Says once that it runs although it has ended: the moment between poll and the process table."""

        asked = False

        def poll(self) -> int | None:
            if not self.asked:
                self.asked = True
                return None
            return super().poll()

    child = SeenRunning([sys.executable, "-c", ""])
    process = psutil.Process(child.pid)
    while process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    postmaster.keep(child)
    assert postmaster.ended(process, timeout=5)
    assert not psutil.pid_exists(child.pid)


def test_data_of_another_major_version_is_refused_and_kept(home: Path) -> None:
    """A newer or older server never touches a cluster it cannot read; the message says which is which."""
    start(home)
    postgres.stop(home)
    (home / "postgres" / "data" / "PG_VERSION").write_text("12\n", encoding="ascii")
    with pytest.raises(postgres.PostgresError, match="written by PostgreSQL 12"):
        start(home)


def test_a_server_that_cannot_start_says_why(home: Path) -> None:
    """The server's own last words are the message."""
    with postgres.temporary(PACKAGE) as other, pytest.raises(postgres.PostgresError, match="Address already in use"):
        start(home, other.port)


def test_an_absent_package_names_the_cure(home: Path) -> None:
    """Without the wheel the message says what to run."""
    with pytest.raises(postgres.PostgresError, match="make up"):
        postgres.start(home, postgres.free_port(), "no_such_postgres")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
def test_as_root_a_clone_and_a_home_under_a_closed_folder_work(tmp_path: Path) -> None:
    """Binaries and data below a folder of mode 0700: PostgreSQL runs as a plain user, no permission is loosened."""
    closed = tmp_path / "closed"
    packages = closed / "packages"
    packages.mkdir(parents=True)
    _link_package(packages)
    closed.chmod(0o700)
    script = (
        "import sys, pathlib, psutil\n"
        "from local import postgres\n"
        "home = pathlib.Path(sys.argv[1])\n"
        "server = postgres.start(home, postgres.free_port(), sys.argv[2])\n"
        "process = psutil.Process(server.pid)\n"
        "print(process.uids().effective, process.exe())\n"
        "postgres.stop(home)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(packages), str(CHECKOUT)])}
    command = [sys.executable, "-c", script, str(closed / "home"), PACKAGE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=closed)
    user, program = done.stdout.split()
    assert int(user) != 0
    assert program.startswith(str(closed))
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become a normal user")
def test_a_normal_user_needs_no_root(tmp_path: Path) -> None:
    """The same code under an ordinary account keeps everything its own, in folders closed to others."""
    who = account.for_data(tmp_path / "absent", [tmp_path])
    tmp_path.chmod(0o711)
    os.chown(tmp_path, who.uid, who.gid)
    script = (
        "import sys, pathlib, psutil, os\n"
        "from local import postgres\n"
        "home = pathlib.Path(sys.argv[1])\n"
        "server = postgres.start(home, postgres.free_port(), sys.argv[2])\n"
        "print(os.geteuid(), psutil.Process(server.pid).uids().effective, oct(home.stat().st_mode & 0o777))\n"
        "postgres.stop(home)\n"
    )
    # The interpreter itself may lie below /root: the ambient capability only helps this test to reach it.
    command = account.Account(who.name, who.uid, who.gid, reaches_through=True).command(
        [sys.executable, "-c", script, str(tmp_path / "home"), PACKAGE]
    )
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.split() == [str(who.uid), str(who.uid), "0o700"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another account")
def test_an_account_that_cannot_reach_the_files_is_a_clear_error(tmp_path: Path) -> None:
    """Files that not even the capability opens (here: absent) are named together with what to do."""
    with pytest.raises(NoesisError, match="cannot reach"):
        account.for_data(tmp_path / "absent", [tmp_path / "nowhere" / "postgres", tmp_path])


def _link_package(target: Path) -> None:
    """The wheel once more below `target`, as hard links where the file system allows it."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec
    assert spec.origin
    source = Path(spec.origin).parent
    for folder in (source, source.with_name(source.name + ".libs")):
        if folder.exists():
            shutil.copytree(folder, target / folder.name, symlinks=True, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
