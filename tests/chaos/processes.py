"""Real processes: the bus, ingest, embed and maintenance as `make up` starts them, with the counting provider."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from sqlalchemy import create_engine, text

from local.bus.trial import OurBus
from local.ports import free_ports
from local.processes import spawn
from shared.database import operator_session
from shared.events import Message
from shared.money.prices import set_price
from tests.chaos.forks import ROOT
from tests.chaos.invariants import Database
from tests.chaos.sweeping import PRICE
from tests.chaos.wire import Provider, running_provider
from tests.conftest import DIMENSION, MODEL

SERVICES = ("ingest", "embed", "maintenance")
BUS_ACCOUNT = "pubsub-push@noesis-local.iam.gserviceaccount.com"


@dataclass
class Machines:
    """The processes, the bus between them, the provider behind them, and a look into the database."""

    folder: Path
    provider: Provider
    database: Database
    bus: OurBus
    ports: dict[str, int]
    environment: dict[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Start a service; it is ready later."""
        own = {
            "PUSH_AUDIENCE": f"http://127.0.0.1:{self.ports[name]}",
            "XDG_RUNTIME_DIR": str(self.folder / "run" / name),
            "THREADS": "2",
            "WORKERS": "1",
        }
        command = [sys.executable, "-m", "functions_framework", "--source", str(ROOT / "functions" / name / "main.py")]
        command += ["--target", name, "--signature-type", "http", "--host", "127.0.0.1"]
        command += ["--port", str(self.ports[name])]
        log = self.folder / f"{name}.log"
        self.running[name] = spawn(command, self.environment | own, log, ROOT)

    def kill(self, name: str) -> None:
        """kill -9 a service with its workers."""
        process = self.running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def ready(self, name: str) -> bool:
        """Whether a service answers."""
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}/robots.txt", timeout=5).close()
        except urllib.error.HTTPError as answer:
            return answer.code == 404
        except OSError:
            return False
        return True

    def await_ready(self) -> None:
        """Wait until every service answers."""
        for name in SERVICES:
            await_true(lambda name=name: self.ready(name), 90, f"{name} answers")  # type: ignore[misc]

    def publish(self, *messages: Message) -> None:
        """Publish to the topic of upstream systems, by the REST call that any system can make."""
        self.send([(message.data(), message.attributes()) for message in messages])

    def send(self, raw: list[tuple[bytes, dict[str, str]]]) -> None:
        """Publish bytes and attributes, whatever they are."""
        body = {"messages": [{"data": base64.b64encode(data).decode(), "attributes": given} for data, given in raw]}
        self.bus.post("/v1/projects/noesis-local/topics/documents-upstream:publish", json.dumps(body).encode())


def await_true(
    condition: Callable[[], object], seconds: float, what: str, nudge: Callable[[], None] | None = None
) -> None:
    """Wait for a condition; `nudge` is called every second meanwhile (it moves a clock, say)."""
    deadline = time.monotonic() + seconds
    nudged = time.monotonic()
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        if nudge is not None and time.monotonic() - nudged > 1:
            nudge()
            nudged = time.monotonic()
        time.sleep(0.02)


@contextmanager
def running_machines(folder: Path, owner_url: str, *, schedules: bool = True, **settings: str) -> Iterator[Machines]:
    """Everything started and ready; nothing of it is left afterwards. `settings` go into the environment.

    Without `schedules` no job runs by itself: a dead letter is not replayed before somebody has looked at it.
    """
    ports = dict(zip((*SERVICES, "agent"), free_ports(4), strict=True))
    bases = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    home = folder / "bus"
    home.mkdir()
    topology = yaml.safe_load((ROOT / "terraform" / "topology.yaml").read_text(encoding="utf-8"))
    if not schedules:
        topology["schedules"] = {}
    bus = OurBus(home, yaml.safe_dump(topology), bases)
    with operator_session() as operator:
        set_price(operator, MODEL, PRICE, datetime.now(UTC) - timedelta(days=1))
        operator.execute(text("delete from core.provider_gates"))
    engine = create_engine(owner_url)
    with running_provider(folder / "provider", DIMENSION) as provider:
        environment = dict(os.environ) | {
            "LITELLM_URL": provider.url,
            "BLOB_URL": (folder / "blobs").as_uri(),
            "PUBSUB_EMULATOR_HOST": bus.pubsub,
            "CLOUD_TASKS_EMULATOR_HOST": bus.tasks,
            "PUBSUB_REST_URL": f"http://{bus.http}",
            "PUSH_ISSUER": f"http://{bus.http}",
            "PUSH_JWKS_URL": f"http://{bus.http}/jwks",
            "PUSH_SERVICE_ACCOUNT": BUS_ACCOUNT,
            "DATABASE_POOL": "2",
            "OPENBLAS_NUM_THREADS": "1",
            **settings,
        }  # fmt: skip
        machines = Machines(folder, provider, Database(engine), bus, ports, environment)
        try:
            for name in SERVICES:
                machines.start(name)
            machines.await_ready()
            bus.start()
            yield machines
        finally:
            bus.kill()
            for name in list(machines.running):
                machines.kill(name)
            engine.dispose()
