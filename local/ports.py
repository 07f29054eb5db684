"""The ports of the platform: settings with defaults, checked before anything starts."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from shared.errors import NoesisError
from shared.settings import Settings

HOST = "127.0.0.1"

_LOWEST = 16_384
_GIVEN_BY_LINUX = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""First and last of the ports that the system itself gives to connections and to whoever asks for any (ip(7))."""
_GIVEN_BY_OTHERS = 49_152
"""The first of the dynamic ports where nothing else is said (RFC 6335, section 6)."""


class PortTakenError(NoesisError):
    """A port of the platform is in use or given twice; the message names port, setting and, if known, the holder."""


@dataclass(frozen=True)
class Port:
    """One port: which service listens on it and which setting moves it."""

    service: str
    number: int
    setting: str


def of_platform(settings: Settings, functions: Iterable[str]) -> dict[str, Port]:
    """Every port by a name; the functions take consecutive ones from FUNCTIONS_PORT in the order of the topology."""
    listed = [
        Port("postgres", settings.postgres_port, "POSTGRES_PORT"),
        Port("bus", settings.bus_pubsub_port, "BUS_PUBSUB_PORT"),
        Port("bus-http", settings.bus_http_port, "BUS_HTTP_PORT"),
        Port("bus-tasks", settings.bus_tasks_port, "BUS_TASKS_PORT"),
        Port("litellm", settings.litellm_port, "LITELLM_PORT"),
        Port("web", settings.web_port, "WEB_PORT"),
    ]
    listed += [
        Port(name, settings.functions_port + number, "FUNCTIONS_PORT" + (f" (+{number})" if number else ""))
        for number, name in enumerate(functions)
    ]
    return {port.service: port for port in listed}


def check(ports: Iterable[Port]) -> None:
    """Raise PortTakenError, naming every port that cannot be listened on, before the first process is started."""
    problems: list[str] = []
    seen: dict[int, Port] = {}
    for port in ports:
        if port.number in seen:
            problems.append(f"{port.setting} and {seen[port.number].setting} are both {port.number}")
        elif not _free(port.number):
            holder = _holder(port.number)
            problems.append(f"port {port.number} ({port.setting}, for {port.service}) is taken{holder}")
        seen[port.number] = port
    if problems:
        raise PortTakenError(
            "; ".join(problems) + ": stop what holds it, or set another port, e.g. `WEB_PORT=9000 make up`"
        )


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on right now, for services that are about to be started.

    Below those that the system gives out by itself: until the service listens, another process that asks for any port,
    or only connects somewhere, could get the same one. Where there is no room below, any port.
    """
    try:
        given = int(_GIVEN_BY_LINUX.read_text(encoding="ascii").split()[0])
    except OSError:
        given = _GIVEN_BY_OTHERS
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            number = _LOWEST + secrets.randbelow(given - _LOWEST) if given > _LOWEST + 1000 else 0
            with contextlib.suppress(OSError):
                listener = held.enter_context(socket.create_server((HOST, number)))
                found.append(int(listener.getsockname()[1]))
    return found


def _free(number: int) -> bool:
    with socket.socket() as probe:
        # Connections that ended a moment ago (TIME_WAIT) are no obstacle for the servers, so not for the check.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, number))
        except OSError:
            return False
        return True


def _holder(number: int) -> str:
    """` by python3 (pid 17: …)`, or nothing where the system does not tell us about other people's processes."""
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr
            if listens and listens.port == number and connection.pid:
                process = psutil.Process(connection.pid)
                return f" by {process.name()} (pid {process.pid}: {' '.join(process.cmdline())[:80]})"
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        pass
    return ""
