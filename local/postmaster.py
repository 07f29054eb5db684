"""Which process serves a cluster: what postmaster.pid says, believed only as far as the process table agrees."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil

# Where postmaster.pid keeps what (PostgreSQL's src/include/utils/pidfile.h), counted from zero.
_PID_LINE, _PORT_LINE, _STATUS_LINE = 0, 3, 7

# The servers this process started: an unreferenced Popen of a running child would warn, and nobody would reap it.
_children: dict[int, subprocess.Popen[bytes]] = {}


def keep(child: subprocess.Popen[bytes]) -> None:
    """Remember a server we started until it ends."""
    for pid in [pid for pid, known in _children.items() if known.poll() is not None]:
        del _children[pid]
    _children[child.pid] = child


def _pid_file(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def process(data: Path) -> psutil.Process | None:
    """The process the pid file names, if it is a PostgreSQL server of this very folder and not a recycled number."""
    lines = _pid_file(data)
    if not lines or not lines[_PID_LINE].strip().lstrip("-").isdigit():
        return None
    try:
        process = psutil.Process(abs(int(lines[_PID_LINE])))
        if process.status() == psutil.STATUS_ZOMBIE or str(data) not in process.cmdline():
            return None
    except psutil.NoSuchProcess:
        return None
    return process


def forget_recycled(data: Path) -> None:
    """Remove a pid file whose number belongs to somebody else by now (after a reboot, in a container).

    PostgreSQL would refuse to start over it. One whose process is gone stays: PostgreSQL reads there whether orphaned
    backends still use the shared memory.
    """
    lines = _pid_file(data)
    if lines and lines[_PID_LINE].isdigit() and process(data) is None and psutil.pid_exists(int(lines[_PID_LINE])):
        (data / "postmaster.pid").unlink(missing_ok=True)


def running(data: Path) -> tuple[int, int] | None:
    """Pid and port of a server that accepts connections on this folder."""
    lines = _pid_file(data)
    if len(lines) <= _STATUS_LINE or lines[_STATUS_LINE].strip() != "ready" or process(data) is None:
        return None
    return int(lines[_PID_LINE]), int(lines[_PORT_LINE])


def settled(data: Path, timeout: float) -> tuple[int, int] | None:
    """As `running`, after waiting for a server that is just starting, recovering from a crash or shutting down."""
    deadline = time.monotonic() + timeout
    while (found := running(data)) is None and process(data) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def ended(process: psutil.Process, timeout: float) -> bool:
    """Wait until a server has ended, at most `timeout` seconds; reaps it when it is our child."""
    deadline = time.monotonic() + timeout
    child = _children.get(process.pid)
    while time.monotonic() < deadline:
        try:
            # A zombie holds nothing; in a container without init it may stay one for ever.
            if child is not None and child.poll() is not None:
                return True
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.02)
                continue
        except psutil.NoSuchProcess:
            pass
        if child is not None:
            # It ended after the poll above: without this a child of ours would stay a zombie until the next start.
            child.wait()
        return True
    return False
