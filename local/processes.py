"""Processes that must not be mixed up: a pid alone is recycled, so identity is pid and start time."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

# psutil computes the start time from the boot time, which may move by a second when the clock is set.
_CLOCK_SLACK = 3.0


@dataclass(frozen=True)
class Identity:
    """A process that was started: its pid (also its process group and session) and when (Unix seconds)."""

    pid: int
    started: float

    @staticmethod
    def of(pid: int) -> Identity:
        """The identity of a running process. Raises psutil.NoSuchProcess."""
        return Identity(pid, psutil.Process(pid).create_time())

    def process(self) -> psutil.Process | None:
        """The process, or None when it has ended or its number belongs to another one by now."""
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - self.started) > _CLOCK_SLACK:
                return None
        except psutil.NoSuchProcess:
            return None
        return process

    def recycled(self) -> bool:
        """Whether the number belongs to another process by now."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > _CLOCK_SLACK
        except psutil.NoSuchProcess:
            return False


def spawn(command: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own that ends with us (Linux), its output appended to `log`.

    Call it from the main thread only: the kernel sends the death signal when the *thread* that started a process ends.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [*_ends_with_us(), *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            start_new_session=True,
        )


def end_group(pid: int, since: float) -> None:
    """SIGKILL whoever is left in the process group of a child that has ended (gunicorn workers hold its port)."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == pid and process.create_time() >= since - _CLOCK_SLACK:
                process.kill()


def stop(identities: Iterable[Identity], patience: float) -> list[int]:
    """SIGTERM, after `patience` seconds SIGKILL, then the rest of each group; returns the pids it had to kill."""
    # A number that belongs to a stranger by now names the stranger's group, too: hands off.
    known = [identity for identity in identities if not identity.recycled()]
    running = [process for process in (identity.process() for identity in known) if process is not None]
    for process in running:
        _send(process, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while running and time.monotonic() < deadline:
        time.sleep(0.02)
        running = [process for process in running if _runs(process)]
    for process in running:
        _send(process, signal.SIGKILL)
    for identity in known:
        end_group(identity.pid, identity.started)
    return [process.pid for process in running]


def _ends_with_us() -> list[str]:
    # Without setpriv (macOS) the next start finds and stops what a killed runner left behind.
    found = shutil.which("setpriv") if sys.platform == "linux" else None
    return [found, "--pdeathsig", "TERM", "--"] if found else []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
