"""What tracing costs a document and a question: off, with a collector, with one that refuses, with one that hangs.

    .venv/bin/python -m benchmarks.tracing [ROUNDS] [--model-ms 200]

Real doors on a real PostgreSQL with the twins of bus, storage and models. First a document and a question with models
that take no time, so that tracing shows most; then a question behind a model that takes its time. The variants take
turns within one run, because times on a busy machine drift: median of the ratios within a round, and CPU seconds, which
hardly depend on what else the machine does (a living or hanging receiver is in this process, so its CPU counts too).
Exit status 1 when a dead collector costs a question 1 % or more, or any question is not answered.
"""

from __future__ import annotations

import argparse
import base64
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from shared.completions import ChatReply
from shared.conversations.runs import ask, read_run
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


@dataclass
class Slow(FakeModels):
    """A model that takes its time and always says the same."""

    seconds: float = 0.2

    def chat(self, messages: Sequence[dict[str, Any]], **_: Any) -> Iterator[str | ChatReply]:
        """Silent for half of its time, then word by word."""
        words = [f"{word} " for word in REPLY.split()]
        time.sleep(self.seconds / 2)
        for word in words:
            time.sleep(self.seconds / 2 / len(words))
            yield word
        yield ChatReply("".join(words), "scripted", 900, len(words))


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
    question(tenant, bus)


def question(tenant: Principal, bus: FakeBus) -> None:
    """One question to its answer. Raises AssertionError when it has none."""
    bus.published.clear()
    with tenant_session(tenant.tenant_id) as session:
        run_id = ask(session, tenant, "Wie viele Arbeitstage Jahresurlaub?")
    push(agent.agent, next(m for m in bus.published if m.attributes["name"] == "answer-question"))
    with tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, run_id)
    assert run is not None
    assert (run.state, run.no_evidence) == ("answered", False), run


@dataclass
class Taken:
    """Wall and CPU seconds of each round, and how many failed."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    errors: int = 0


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
            "off again (noise)": None,
            "all traces": exporter(alive.url, 1.0),
            "5 % (prod)": exporter(alive.url, 0.05),
            "collector refuses": exporter(refused, 1.0),
            "collector hangs": exporter(hanging.url, 1.0),
        }


def measure(once: Callable[[], None], rounds: int) -> dict[str, Taken]:
    """Every variant once a round, in turns."""
    times: dict[str, Taken] = {}
    with variants() as sinks:
        for sink in sinks.values():
            tracing.use_sink(sink)
            once()  # warm, and the broken ones open their breakers
        for turn in range(rounds):
            names = list(sinks)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                tracing.use_sink(sinks[name])
                taken = times.setdefault(name, Taken())
                began, cpu = time.perf_counter(), time.process_time()
                try:
                    once()
                except AssertionError:
                    taken.errors += 1
                taken.cpu.append(time.process_time() - cpu)
                taken.wall.append(time.perf_counter() - began)
        tracing.use_sink(None)
    return times


def cost_of_spans(count: int) -> float:
    """CPU seconds that recording so many spans takes, measured apart: what a dead collector leaves to pay."""

    class Nowhere:
        def is_sampled(self, trace_id: str, rate: float | None) -> bool:
            return True

        def take(self, recording: object) -> None:
            """Nothing."""

    def once(sink: Any) -> float:
        tracing.use_sink(sink)
        began = time.thread_time()
        for _ in range(200):
            with tracing.operation("x"):
                for _ in range(count - 1):
                    with tracing.span("y", kind="client", model="m"):
                        pass
        return (time.thread_time() - began) / 200

    found = statistics.median(once(Nowhere()) - once(None) for _ in range(9))
    tracing.use_sink(None)
    return found


def main() -> int:
    """Measure and print; the exit status."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("rounds", type=int, nargs="?", default=40)
    arguments.add_argument("--model-ms", type=float, default=200)
    chosen = arguments.parse_args()
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
            print("a document and a question, models that take no time")
            report(measure(lambda: work(member, bus, models), chosen.rounds))
            spans = spans_of(lambda: question(member, bus), models)
            services._models = Slow(seconds=chosen.model_ms / 1000)
            print(f"a question, a model of {chosen.model_ms:.0f} ms")
            times = measure(lambda: question(member, bus), chosen.rounds)
            report(times)
            return verdict(times, spans, chosen.model_ms / 1000)
        finally:
            messaging.use_bus(None)
            db.forget_engines()


def spans_of(once: Callable[[], None], models: FakeModels) -> int:
    """How many spans one question makes."""
    models.replies = [REPLY]
    with receiving() as receiver:
        found = [Destination("it", f"{receiver.url}/v1/traces", {}, httpx.Client(timeout=5))]
        tracing.use_sink(Exporter(found, "bench", "dev", 1.0, False))
        once()
        tracing.use_sink(None)
        return len(receiver.spans)


def report(times: dict[str, Taken]) -> None:
    """A line a variant; ratios are medians of the ratios within a round."""
    off = times["off"]
    print(f"  {'variant':<20}{'median ms':>10}{'p95 ms':>10}{'to off':>10}{'CPU ms':>10}{'to off':>10}{'errors':>8}")
    for name, found in times.items():
        wall, cpu = (
            statistics.median(one / other for one, other in zip(mine, others, strict=True))
            for mine, others in ((found.wall, off.wall), (found.cpu, off.cpu))
        )
        p95 = statistics.quantiles(found.wall, n=20)[-1]
        print(
            f"  {name:<20}{1e3 * statistics.median(found.wall):>10.1f}{1e3 * p95:>10.1f}{wall:>10.3f}"
            f"{1e3 * statistics.median(found.cpu):>10.1f}{cpu:>10.3f}{found.errors:>8}"
        )


def verdict(times: dict[str, Taken], spans: int, model: float) -> int:
    """What a dead collector leaves to pay as a part of a question, and whether all were answered; the exit status.

    CPU against the least a question can take (its model and its own CPU): neither hangs on what else the machine does.
    """
    recording = cost_of_spans(spans)
    least = model + statistics.median(times["off"].cpu)
    part = recording / least
    errors = sum(taken.errors for taken in times.values())
    print(f"{spans} spans of a question recorded: {1e3 * recording:.2f} ms CPU, {part:.2%} of {1e3 * least:.0f} ms")
    print(f"{errors} of {sum(len(taken.wall) for taken in times.values())} questions not answered")
    return int(part >= 0.01 or errors > 0)


if __name__ == "__main__":
    sys.exit(main())
