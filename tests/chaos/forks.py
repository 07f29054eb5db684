"""A warm process that forks one worker a job: a fresh process in milliseconds, to be killed without regret.

The server is a program of its own (`python -m tests.chaos.forks MODULE:FUNCTION FD FOLDER`) without threads or
connections, because only such a one can be forked safely. It keeps one parser process for its workers: they use the
real sandbox over the real socket, only the half second of its start is shared.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.chaos.crash_points import STRAYED, CrashPoints, Point

ROOT = Path(__file__).parents[2]
Work = Callable[[dict[str, Any], CrashPoints], Any]


class WorkFailed(AssertionError):
    """A worker ended otherwise than it should have; the message is what it said."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """A worker that stands still in the middle of its work."""

    forks: ForkServer
    pid: int

    def resume(self) -> Any:
        """Let it go on to its end, late; returns what `work` returned."""
        return self.forks.order(op="resume", pid=self.pid)["result"]


class ForkServer:
    """The server and what to ask of it. Files are put below `folder`; one caller at a time."""

    def __init__(self, work: str, environment: Mapping[str, str], folder: Path, patience: float = 120) -> None:
        """`patience` is how long one order may take, in seconds."""
        ours, theirs = socket.socketpair()
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "workers.log"
        command = [sys.executable, "-m", "tests.chaos.forks", work, str(theirs.fileno()), str(folder)]
        with theirs, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        ours.settimeout(patience)
        self._socket = ours
        self._lines = ours.makefile("rwb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self._lines.close()
        self._socket.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def order(self, **order: Any) -> dict[str, Any]:
        """Send an order, wait for its answer. Raises WorkFailed when the worker failed."""
        self._lines.write(json.dumps(order).encode() + b"\n")
        self._lines.flush()
        line = self._lines.readline()
        if not line:
            raise WorkFailed(f"the server is gone: {self.said()}")
        answer: dict[str, Any] = json.loads(line)
        if answer.get("failed"):
            raise WorkFailed(f"{answer['failed']}\n{self.said()}")
        return answer

    def said(self) -> str:
        """The last words of the workers."""
        return self._log.read_text(errors="replace")[-3000:]

    def run(self, job: Mapping[str, Any]) -> Any:
        """Do the work undisturbed; returns what `work` returned."""
        return self.order(op="run", job=job)["result"]

    def record(self, job: Mapping[str, Any]) -> list[Point]:
        """Do the work; returns its points."""
        return [Point(**point) for point in self.order(op="run", job=job, record=True)["points"]]

    def kill(self, job: Mapping[str, Any], point: Point) -> None:
        """Do the work up to a point and die there of SIGKILL."""
        answer = self.order(op="run", job=job, at=asdict(point), signal=int(signal.SIGKILL))
        if answer["status"] != -signal.SIGKILL:
            raise WorkFailed(f"not killed at {point}: status {answer['status']}\n{self.said()}")

    def stop(self, job: Mapping[str, Any], point: Point) -> Stopped:
        """Do the work up to a point and stand still there."""
        answer = self.order(op="run", job=job, at=asdict(point), signal=int(signal.SIGSTOP))
        if "stopped" not in answer:
            raise WorkFailed(f"not stopped at {point}: {answer}\n{self.said()}")
        return Stopped(self, answer["stopped"])


class _Parser:
    """The parser process that workers share one after another."""

    def __init__(self) -> None:
        self._child: Any = None

    def lend(self) -> Callable[[], None]:
        """What a worker calls after the fork to have the parser as its own."""
        from functions.ingest.parsing import sandbox

        if self._child is None or self._child._process.poll() is not None:
            self._child = sandbox._Child()
        # The sandbox closes inherited sockets after a fork; a copy of the descriptor is not one of those it knows.
        copy, process = os.dup(self._child._socket.fileno()), self._child._process

        def take() -> None:
            mine = sandbox._Child.__new__(sandbox._Child)
            mine._socket, mine._process, mine.served = socket.socket(fileno=copy), process, 1
            sandbox._idle.append(mine)

        def give() -> None:
            os.close(copy)

        self.give = give
        return take

    def end(self) -> None:
        if self._child is not None:
            self._child.end()


def _serve(work: Work, connection: socket.socket, folder: Path) -> None:
    parser = _Parser()
    jobs: dict[int, Path] = {}
    with connection.makefile("rwb") as lines:
        for number, line in enumerate(lines):
            order = json.loads(line)
            if order["op"] == "resume":
                pid = order["pid"]
                os.kill(pid, signal.SIGCONT)
            else:
                take = parser.lend()
                result = folder / f"result-{number}.json"
                pid = os.fork()
                if pid == 0:
                    _work(work, order, take, result, connection)
                parser.give()
                jobs[pid] = result
            answer = _ending(pid, jobs)
            lines.write(json.dumps(answer).encode() + b"\n")
            lines.flush()
    for pid in jobs:  # whoever still stands there
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    parser.end()


def _ending(pid: int, jobs: dict[int, Path]) -> dict[str, Any]:
    """Wait until a worker ends or stands still."""
    _, status = os.waitpid(pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return {"stopped": pid}
    code, result = os.waitstatus_to_exitcode(status), jobs.pop(pid)
    if code == STRAYED:
        return {"failed": "the run was not the one that was recorded"}
    if code not in (0, -signal.SIGKILL):
        return {"failed": f"the worker ended with status {code}"}
    answer: dict[str, Any] = json.loads(result.read_text()) if code == 0 else {}
    result.unlink(missing_ok=True)
    return answer | {"status": code}


def _work(work: Work, order: dict[str, Any], take: Callable[[], None], result: Path, connection: socket.socket) -> None:
    """The worker's life; it never returns."""
    try:
        connection.close()
        take()
        at = Point(**order["at"]) if "at" in order else None
        points = CrashPoints(at, order.get("signal", signal.SIGKILL), idle=at is None and not order.get("record"))
        points.install()
        value = work(order["job"], points)
        result.write_text(json.dumps({"result": value, "points": [asdict(point) for point in points.seen]}))
        sys.stderr.flush()
        os._exit(0)
    except BaseException:  # noqa: BLE001 - the process ends here, whatever it was
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    _serve(
        getattr(importlib.import_module(module), function), socket.socket(fileno=int(sys.argv[2])), Path(sys.argv[3])
    )
