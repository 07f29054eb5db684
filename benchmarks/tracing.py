"""What tracing costs a document and a question: off, with a collector, with one that refuses, with one that hangs.

    .venv/bin/python -m benchmarks.tracing [ROUNDS]

Real doors on a real PostgreSQL with the twins of bus, storage and models, so the work is short and tracing shows most:
behind a real model the same milliseconds are a far smaller part. The variants take turns within one run, because times
on a busy machine drift; ratios of medians and of sums are what counts. Exit status 1 when a dead collector costs 1 %
or more of the summed time.
"""

from __future__ import annotations

import base64
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest
from flask import Flask, request

from functions.agent import main as agent
from functions.embed import main as embed
from functions.ingest import ingestion, parsing
from functions.ingest import main as ingest
from local import postgres
from schema import migrate, roles
from shared import database as db
from shared import doors, messaging, tracing
from shared.conversations.runs import ask
from shared.database import tenant_session
from shared.events import DocumentSubmitted
from shared.fakes import FakeBus, FakeModels, FakeStorage
from shared.messaging import Outgoing
from shared.retrieval.spaces import activate_first, ensure_space
from shared.services import Services
from shared.settings import get_settings
from shared.tenants.directory import Principal, create_tenant, memberships
from shared.tracing.export import Destination, Exporter
from tests.otlp_receiver import receiving

REPLY = "„Der Jahresurlaub beträgt 30 Arbeitstage.“ [1]"
BODY = "Der Jahresurlaub beträgt 30 Arbeitstage. Der Antrag wird im Portal gestellt. " * 40


class Open:
    """The token is not what is measured."""

    def verify(self, authorization: str, path: str) -> None:
        """Let everyone in."""


def push(door: Any, message: Any, path: str = "/") -> None:
    outgoing = isinstance(message, Outgoing)
    data = message.data.encode() if outgoing else message.data()
    attributes = message.attributes if outgoing else message.attributes()
    body = {"message": {"data": base64.b64encode(data).decode(), "attributes": attributes, "messageId": uuid4().hex}}
    with Flask("bench").test_request_context(path, method="POST", json=body):
        answer = cast(Any, door)(request)
    assert answer.status_code == 204, answer.status


def work(tenant: Principal, bus: FakeBus, models: FakeModels) -> None:
    """One document to searchable, one question to its answer."""
    bus.published.clear()
    event = DocumentSubmitted(
        tenant_id=tenant.tenant_id,
        external_id="handbook",
        source_version=time.time_ns(),
        file_name="a.txt",
        content=base64.b64encode(f"{BODY} {uuid4()}".encode()).decode(),
    )
    push(ingest.ingest, event, "/sources/upstream")
    for message in [m for m in bus.published if m.attributes["name"] == "embed-chunks"]:
        push(embed.embed, message)
    models.replies = [REPLY] * 3
    with tenant_session(tenant.tenant_id) as session:
        ask(session, tenant, "Wie viele Arbeitstage Jahresurlaub?")
    push(agent.agent, next(m for m in bus.published if m.attributes["name"] == "answer-question"))


@contextmanager
def variants() -> Iterator[dict[str, Exporter | None]]:
    """Sinks by name; the clock of the breaker is the real one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with receiving() as alive, receiving() as hanging:
        hanging.hold = threading.Event()

        def exporter(url: str, rate: float) -> Exporter:
            found = [Destination("it", f"{url}/v1/traces", {}, httpx.Client(timeout=1))]
            return Exporter(found, "bench", "prod", rate, rate == 1)

        yield {
            "off": None,
            "all traces": exporter(alive.url, 1.0),
            "5 % (prod)": exporter(alive.url, 0.05),
            "collector refuses": exporter(refused, 1.0),
            "collector hangs": exporter(hanging.url, 1.0),
        }


def measure(once: Callable[[], None], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {}
    with variants() as sinks:
        for sink in sinks.values():
            tracing.use_sink(sink)
            once()  # warm, and the broken ones open their breakers
        for turn in range(rounds):
            names = list(sinks)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                tracing.use_sink(sinks[name])
                began = time.perf_counter()
                once()
                times.setdefault(name, []).append(time.perf_counter() - began)
        tracing.use_sink(None)
    return times


def cost_of_spans(count: int) -> float:
    """Seconds that recording so many spans takes, measured apart: what a dead collector leaves to pay."""

    class Nowhere:
        def is_sampled(self, trace_id: str, rate: float | None) -> bool:
            return True

        def take(self, recording: object) -> None:
            """Nothing."""

    def once(sink: Any) -> float:
        tracing.use_sink(sink)
        began = time.perf_counter()
        for _ in range(200):
            with tracing.operation("x"):
                for _ in range(count - 1):
                    with tracing.span("y", kind="client", model="m"):
                        pass
        return (time.perf_counter() - began) / 200

    found = statistics.median(once(Nowhere()) - once(None) for _ in range(9))
    tracing.use_sink(None)
    return found


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    with postgres.temporary() as server, pytest.MonkeyPatch.context() as patch:
        passwords = dict.fromkeys((roles.OWNER, roles.APPLICATION, roles.OPERATOR), uuid4().hex)
        roles.bootstrap(server.admin_dsn, passwords)
        urls = {
            role: f"postgresql+pg8000://{role}:{word}@{server.host}:{server.port}/noesis2"
            for role, word in passwords.items()
        }
        migrate.upgrade(urls[roles.OWNER])
        patch.setenv("NOESIS_HOME", str(server.data.parent / "home"))
        patch.setenv("DATABASE_URL", urls[roles.APPLICATION])
        patch.setenv("OPERATOR_DATABASE_URL", urls[roles.OPERATOR])
        patch.setenv("LITELLM_MASTER_KEY", "unused")
        patch.setenv("SECRET_KEY", "for-this-benchmark-only-0123456789abcdef")
        get_settings.cache_clear()
        db.forget_engines()
        # No child process for every parse: what is measured is short enough to show a percent.
        patch.setattr(
            ingestion,
            "parse_in_child",
            lambda data, name, media_type, **_: parsing.parse(data, name=name, media_type=media_type),
        )
        patch.setattr(doors, "_verifier", Open)
        bus, models = FakeBus(), FakeModels()
        services = Services(get_settings(), _storage=FakeStorage(), _models=models)
        for function in (ingest, embed, agent):
            patch.setattr(function, "services", lambda: services)
        messaging.use_bus(bus)
        with db.operator_session() as operator:
            tenant = create_tenant(operator, "bench", "Bench", "admin@bench.example")
            space = ensure_space(operator, "fake", 64)
            activate_first(operator, tenant.tenant_id, space)
        member = memberships("admin@bench.example")[0]
        try:
            return report(measure(lambda: work(member, bus, models), rounds), spans_of(member, bus, models))
        finally:
            messaging.use_bus(None)
            db.forget_engines()


def spans_of(tenant: Principal, bus: FakeBus, models: FakeModels) -> int:
    """How many spans one document and one question make."""
    with receiving() as receiver:
        found = [Destination("it", f"{receiver.url}/v1/traces", {}, httpx.Client(timeout=5))]
        tracing.use_sink(Exporter(found, "bench", "dev", 1.0, False))
        work(tenant, bus, models)
        tracing.use_sink(None)
        return len(receiver.spans)


def report(times: dict[str, list[float]], spans: int) -> int:
    off = times["off"]
    print(f"{'variant':<20}{'median ms':>10}{'p95 ms':>10}{'to off':>10}   (median of the ratios within a round)")
    for name, found in times.items():
        ratio = statistics.median(one / other for one, other in zip(found, off, strict=True))
        p95 = statistics.quantiles(found, n=20)[-1]
        print(f"{name:<20}{1e3 * statistics.median(found):>10.1f}{1e3 * p95:>10.1f}{ratio:>10.3f}")
    recording = cost_of_spans(spans)
    part = recording / statistics.median(off)
    print(f"{spans} spans recorded for a document and a question: {1e3 * recording:.2f} ms, {part:.2%} of the median")
    return int(part >= 0.01)


if __name__ == "__main__":
    sys.exit(main())
