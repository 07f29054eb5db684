"""Looking after a platform from another process: start it in the background, stop it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from local import postgres, runner
from local import state as states
from local.report import Report
from local.state import State
from local.supervisor import START_SECONDS
from shared.errors import NoesisError
from shared.settings import CHECKOUT

# The runner itself ends within about ten seconds; a machine that is swapping gets more.
DOWN_SECONDS = 30.0


class NotStartedError(NoesisError):
    """The platform in the background did not become ready; the message is the runner's own."""


class NotStoppedError(NoesisError):
    """The runner does not end."""


def detach(home: Path, show: Callable[[str], None], timeout: float = START_SECONDS + 60) -> State:
    """Start the platform in the background and return when it is ready; its progress goes line by line to `show`.

    Raises AlreadyRunningError, or NotStartedError when it fails or is not ready in time (it is stopped again then).
    """
    postgres.make_home(home)
    states.lock(home).close()
    log = home / "logs" / "runner.log"
    with log.open("ab") as output:
        seen = output.tell()
        child = subprocess.Popen(
            [sys.executable, "-m", "local.runner"],
            env=dict(os.environ) | {"NOESIS_HOME": str(home), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=CHECKOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + timeout
    while True:
        ended = child.poll() is not None
        seen = _follow(log, seen, show)
        state = states.read(home)
        if state and state.runner.pid == child.pid and state.phase == "ready" and not ended:
            _leave(child)
            return state
        if ended:
            raise NotStartedError(
                (state.error if state else "") or f"the runner ended with status {child.returncode}: {log}"
            )
        if time.monotonic() > deadline:
            child.terminate()
            raise NotStartedError(f"the platform was not ready after {timeout:.0f} s: see {log}")
        time.sleep(0.1)


def down(home: Path, report: Report) -> bool:
    """Stop the platform of `home`, also one whose runner was killed; False when nothing ran. Raises NotStoppedError."""
    state = states.read(home)
    process = state.runner.identity.process() if state else None
    if process is not None:
        process.terminate()
        deadline = time.monotonic() + DOWN_SECONDS
        while state and state.runner.identity.process() is not None:
            if time.monotonic() > deadline:
                raise NotStoppedError(
                    f"the runner (pid {process.pid}) did not end in {DOWN_SECONDS:.0f} s: see its log"
                )
            time.sleep(0.05)
    if not (home / "run").is_dir():
        return False
    lock = states.lock(home)  # nobody starts one while we clean up
    try:
        leftover = runner.stop_leftovers(home, report)
        return postgres.stop(home) or leftover or process is not None
    finally:
        lock.close()


def _follow(log: Path, seen: int, show: Callable[[str], None]) -> int:
    with log.open("rb") as file:
        file.seek(seen)
        said = file.read()
    whole = said[: said.rfind(b"\n") + 1]
    for line in whole.decode("utf-8", "replace").splitlines():
        show(line)
    return seen + len(whole)


def _leave(child: subprocess.Popen[bytes]) -> None:
    # It outlives us on purpose; without this Popen would warn that its child is still running.
    child.returncode = 0
