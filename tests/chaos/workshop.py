"""What the sweeps over documents and over runs share: warm workers that several threads take turns with."""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.forks import ForkServer
from tests.chaos.invariants import Database
from tests.chaos.wire import ACCOUNT, AUDIENCE, ISSUER


@dataclass(kw_only=True)
class Workshop:
    """A database, a folder and fork servers for all threads; each telling gets a number."""

    database: Database
    folder: Path
    servers: queue.SimpleQueue[ForkServer]
    numbers: Iterator[int] = field(default_factory=itertools.count)
    mending: threading.Lock = field(default_factory=threading.Lock)
    """The sweep is for all tenants: two at once would flush each other's outbox into the wrong queue."""

    @contextmanager
    def forks(self) -> Iterator[ForkServer]:
        """A fork server that nobody else uses now."""
        server = self.servers.get(timeout=600)
        try:
            yield server
        finally:
            self.servers.put(server)


def start_servers(
    stack: ExitStack, work: str, environment: Mapping[str, str], folder: Path, servers: int, patience: float = 120
) -> queue.SimpleQueue[ForkServer]:
    """Fork servers for `work` that end with the stack; `patience` is how long one order may take, in seconds."""
    free: queue.SimpleQueue[ForkServer] = queue.SimpleQueue()
    for number in range(servers):
        free.put(stack.enter_context(ForkServer(work, environment, folder / f"workers-{number}", patience)))
    return free


def environment_of(url: str, authority: Path) -> dict[str, str]:
    """What workers get as their environment, with models and keys at `url`; the process points at a database."""
    return dict(os.environ) | {
        # Loading the authorities of the world takes every worker 50 ms a connection, and all is loopback.
        "SSL_CERT_FILE": str(authority),
        "LITELLM_URL": url,
        "PUSH_ISSUER": ISSUER,
        "PUSH_JWKS_URL": f"{url}/jwks",
        "PUSH_AUDIENCE": AUDIENCE,
        "PUSH_SERVICE_ACCOUNT": ACCOUNT,
    }
