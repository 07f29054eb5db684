"""What a runner leaves on disk for other commands and for the runner after it: `<home>/run/`.

run/lock          held (flock) for as long as a runner lives      run/platform.json   who runs where
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from local.processes import Identity
from shared.errors import NoesisError

Phase = Literal["starting", "ready", "stopping", "stopped", "failed"]


class AlreadyRunningError(NoesisError):
    """Another runner serves this home."""


@dataclass
class Recorded:
    """One service as last written: its process, the port it listens on, how to ask for its health."""

    pid: int
    started: float
    port: int | None = None
    health: str = ""
    healthy: list[int] = field(default_factory=list)
    restarts: int = 0
    queues: bool = False

    @property
    def identity(self) -> Identity:
        """The process, safe against recycled pids."""
        return Identity(self.pid, self.started)


@dataclass
class State:
    """The platform of one home: its runner, the phase it is in and every service that was started."""

    runner: Recorded
    phase: Phase = "starting"
    error: str = ""
    ports: dict[str, int] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    services: dict[str, Recorded] = field(default_factory=dict)

    def write(self, home: Path) -> None:
        """Replace the file as a whole, so that a reader never sees half of it."""
        path = home / "run" / "platform.json"
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        draft.replace(path)


def read(home: Path) -> State | None:
    """The last written state, or None when no runner was ever here (or what it wrote is not readable)."""
    try:
        loaded: dict[str, Any] = json.loads((home / "run" / "platform.json").read_text(encoding="utf-8"))
        services = {name: Recorded(**service) for name, service in loaded.pop("services").items()}
        return State(**loaded | {"runner": Recorded(**loaded["runner"]), "services": services})
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        return None


def lock(home: Path) -> TextIO:
    """Become the one runner of this home; the lock ends with the returned file. Raises AlreadyRunningError."""
    (home / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
    file = (home / "run" / "lock").open("a+", encoding="ascii")
    try:
        # The kernel lets go of it however the runner ends, so there is no stale lock.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        pid = file.read().strip() or "unknown"
        file.close()
        raise AlreadyRunningError(
            f"a platform already runs in {home} (runner pid {pid}): see `noesis status`, stop it with `noesis down`"
        ) from None
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file
