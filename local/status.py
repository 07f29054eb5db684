"""How the platform is: processes, health, memory, ports, backlog."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from local import health, postgres, services
from local import state as states
from local.state import Recorded

MIB = 1024 * 1024


@dataclass(frozen=True)
class ServiceStatus:
    """One service with all processes below it. Memory in MiB; `pss` counts shared pages once over all processes."""

    name: str
    healthy: bool
    detail: str
    pid: int | None = None
    port: int | None = None
    processes: int = 0
    restarts: int = 0
    uptime: float = 0.0
    rss: float = 0.0
    pss: float = 0.0


@dataclass(frozen=True)
class PlatformStatus:
    """The whole platform; `healthy` only when the runner and every service that belongs to it are."""

    home: str
    phase: str
    healthy: bool
    rss: float
    pss: float
    services: list[ServiceStatus] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)
    bus: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def collect(home: Path) -> PlatformStatus:
    """Ask every service of `home`; never raises because of one that is down."""
    state = states.read(home)
    if state is None:
        return PlatformStatus(str(home), "absent", False, 0.0, 0.0)
    runner_runs = state.runner.identity.process() is not None
    phase = state.phase if runner_runs or state.phase in ("stopped", "failed") else "killed"
    found = [_status("runner", state.runner, home)]
    found += [_status(name, recorded, home) for name, recorded in state.services.items()]
    if runner_runs:
        missing = [name for name in _expected() if name not in state.services]
        found += [ServiceStatus(name, False, "not started") for name in missing]
    bus = health.read_json(state.ports["bus-http"], "/_status") if runner_runs and "bus-http" in state.ports else None
    return PlatformStatus(
        home=str(home),
        phase=phase,
        healthy=phase == "ready" and all(service.healthy for service in found),
        rss=sum(service.rss for service in found),
        pss=sum(service.pss for service in found),
        services=found,
        addresses=state.addresses,
        bus=bus or {},
        error=state.error,
    )


def _expected() -> list[str]:
    return ["postgres", "litellm", *services.function_names(services.topology()), "web", "bus"]


def _status(name: str, recorded: Recorded, home: Path) -> ServiceStatus:
    process = recorded.identity.process()
    if process is None:
        return ServiceStatus(name, False, "not running", port=recorded.port, restarts=recorded.restarts)
    healthy, detail = _healthy(name, recorded, home)
    # The runner's children are the services, which are counted as themselves.
    tree = [process] if name == "runner" else _tree(process)
    rss, pss = memory(tree)
    return ServiceStatus(
        name=name,
        healthy=healthy,
        detail=detail,
        pid=recorded.pid,
        port=recorded.port,
        processes=len(tree),
        restarts=recorded.restarts,
        uptime=time.time() - recorded.started,
        rss=rss,
        pss=pss,
    )


def _healthy(name: str, recorded: Recorded, home: Path) -> tuple[bool, str]:
    if name == "postgres":
        accepts = recorded.port is not None and postgres.is_running(home, recorded.port)
        return accepts, "ready" if accepts else "does not accept connections"
    if recorded.port is None or not recorded.health:
        return True, "running"
    if health.answers(recorded.port, recorded.health, recorded.healthy):
        return True, "ready"
    if recorded.queues and health.listens(recorded.port):
        return True, "busy"
    return False, f"no answer on {recorded.health}"


def _tree(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return [process]


def memory(tree: list[psutil.Process]) -> tuple[float, float]:
    """Resident and proportional memory of some processes in MiB; where PSS is not told (macOS) it equals RSS."""
    rss = pss = 0.0
    for process in tree:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            resident = process.memory_info().rss / MIB
            rss += resident
            pss += _pss(process.pid, resident)
    return rss, pss


def _pss(pid: int, otherwise: float) -> float:
    # smaps_rollup is one read; psutil's own figure adds up every mapping of smaps.
    if os.name == "posix":
        with suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
                if line.startswith("Pss:"):
                    return int(line.split()[1]) / 1024
    return otherwise
