"""Embedding tokens a second through the pipeline against the bare model behind the same proxy, in one run.

    python -m benchmarks.embedding [--laws 90] [--rounds 3]

Starts a platform of its own (stop yours first, or set other ports). The subscription of the embed function does not
push until a round's laws are parsed and their batches lie on the bus, so that only the stage itself is timed: push,
database, proxy, vectors, completion. (Stopping the process of the function instead broke a push now and then: a
connection that gunicorn keeps for two seconds had run out when the process went on, and was closed over the request
that lay in it; the message came again after its backoff of 30 s, which was then most of the round.)

The bare model gets the same texts in the same batches, as many at once, before the stage and again after it, and the
mean counts: what a machine does more slowly for being busy or warm is on both sides of the ratio. A third figure is the
model in a process of its own, without proxy.

Whatever else the machine does falsifies seconds; the CPU seconds of every process beside them stay nearly true. With
all processors busy the ratio of the seconds is that of the CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil

from benchmarks.platform import laws, noesis, own_home, submit

PARALLEL = 2
"""Batches at once: the concurrency of the embed service in terraform/topology.yaml."""

ROOT = Path(__file__).parents[1]


@dataclass
class Took:
    """What a stage took: wall seconds, and CPU seconds by service."""

    seconds: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)

    def add(self, other: Took, share: float = 1.0) -> None:
        """Sum the stages of several rounds; of a stage that was measured several times only its `share`."""
        self.seconds += share * other.seconds
        for name, seconds in other.cpu.items():
            self.cpu[name] = self.cpu.get(name, 0.0) + share * seconds

    @property
    def cpu_seconds(self) -> float:
        """Of all services together."""
        return sum(self.cpu.values())


def service_roots() -> dict[str, psutil.Process]:
    """The first process of every service, and this one, which is the client of the bare model."""
    found = json.loads(noesis("status", "--json"))
    roots = {service["name"]: psutil.Process(service["pid"]) for service in found["services"] if service["pid"]}
    return roots | {"benchmark": psutil.Process()}


def cpu_seconds(root: psutil.Process, *, family: bool = True) -> float:
    """User and system time of a process with its children, also those that have ended."""
    total = 0.0
    for process in [root, *(root.children(recursive=True) if family else ())]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
        total += times.children_user + times.children_system if process == root and family else 0.0
    return total


@contextmanager
def measured(roots: dict[str, psutil.Process]) -> Iterator[Took]:
    """Fills in what happened between its beginning and its end."""
    # The runner's children are the other services.
    alone = ("runner", "benchmark")
    took = Took()
    before = {name: cpu_seconds(root, family=name not in alone) for name, root in roots.items()}
    begun = time.perf_counter()
    yield took
    took.seconds = time.perf_counter() - begun
    took.cpu = {name: cpu_seconds(root, family=name not in alone) - before[name] for name, root in roots.items()}


class Doorkeeper:
    """Holds the batches back on the bus: without an endpoint a subscription keeps its messages for whoever pulls."""

    def __init__(self) -> None:
        from google.cloud import pubsub_v1

        from shared.services import services

        settings = services().settings
        # The client reads its own variable and nothing else.
        os.environ["PUBSUB_EMULATOR_HOST"] = settings.pubsub_emulator_host
        self._subscriber = pubsub_v1.SubscriberClient()
        self._name = self._subscriber.subscription_path(settings.google_cloud_project, "embed")
        self._push = self._subscriber.get_subscription(subscription=self._name).push_config

    def close(self) -> None:
        """Nothing is pushed from now on; what is under way ends."""
        self._subscriber.modify_push_config(subscription=self._name, push_config={})

    def open(self) -> None:
        """Push to the embed function again."""
        self._subscriber.modify_push_config(subscription=self._name, push_config=self._push)


def wait(what: str, ready: Any, seconds: float = 900) -> None:
    """Until `ready()`, looked at every second: more would be work beside what is measured. Raises TimeoutError."""
    until = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > until:
            raise TimeoutError(what)
        time.sleep(1)


def value(statement: str, tenant_id: UUID, prefix: str = "") -> Any:
    """One value from the database, as an operator; `prefix` is that of a round's documents."""
    from sqlalchemy import text

    from shared.database import operator_session

    with operator_session() as session:
        return session.execute(text(statement), {"t": tenant_id, "prefix": prefix}).scalar_one()


def batches(tenant_id: UUID, prefix: str) -> list[list[tuple[str, int]]]:
    """What the model is shown and the tokens of every chunk, in the batches in which the pipeline embeds them."""
    from sqlalchemy import text

    from shared.database import operator_session
    from shared.documents.vectors import embedding_text
    from shared.services import services

    size = services().settings.batch_size
    found: dict[UUID, list[tuple[str, int]]] = {}
    with operator_session() as session:
        for row in session.execute(
            text(
                "select c.version_id, c.heading_path, c.text, c.tokens from rag.chunks c join rag.documents d "
                "using (tenant_id, document_id) where c.tenant_id = :t and starts_with(d.external_id, :prefix) "
                "order by c.version_id, c.ordinal"
            ),
            {"t": tenant_id, "prefix": prefix},
        ):
            found.setdefault(row.version_id, []).append((embedding_text(row.heading_path, row.text), row.tokens))
    return [group[begun : begun + size] for group in found.values() for begun in range(0, len(group), size)]


def bare(roots: dict[str, psutil.Process], groups: list[list[tuple[str, int]]]) -> Took:
    """The model behind the proxy with the same batches, PARALLEL at once."""
    from shared.services import services

    settings = services().settings

    def embed(group: list[tuple[str, int]]) -> None:
        services().models.embed(
            [text for text, _ in group],
            model=settings.embeddings_model,
            dimension=settings.embeddings_dim,
            input_type="passage",
        )

    with measured(roots) as took, ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(embed, groups))
    return took


ALONE = """
import asyncio, json, resource, sys, time
from litellm_service import vectors
name, parallel, groups = json.load(sys.stdin)
async def main():
    await vectors.embed(name, groups[0][:1], "passage")
    turns = asyncio.Semaphore(parallel)
    async def one(group):
        async with turns:
            await vectors.embed(name, group, "passage")
    used = [resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)]
    begun = time.perf_counter()
    await asyncio.gather(*map(one, groups))
    seconds = time.perf_counter() - begun
    now = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps([seconds, now.ru_utime + now.ru_stime - used[0].ru_utime - used[0].ru_stime]))
asyncio.run(main())
"""


def alone(groups: list[list[tuple[str, int]]]) -> Took:
    """The bundled model in a process of its own, with the threads it has in the proxy."""
    from shared.services import services

    name = services().settings.embeddings_model
    given = json.dumps([name, PARALLEL, [[text for text, _ in group] for group in groups]])
    python = ROOT / ".venv-litellm" / "bin" / "python"
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [str(python), "-c", ALONE], input=given, env=environment, check=True, capture_output=True, text=True
    )
    seconds, used = json.loads(ended.stdout)
    return Took(seconds, {"model": used})


SEARCHABLE = (
    "select count(*) from rag.documents where tenant_id = :t and state = 'searchable' "
    "and starts_with(external_id, :prefix)"
)
INGESTED = (
    "select count(*) from rag.versions v join rag.documents d using (tenant_id, document_id) "
    "where v.tenant_id = :t and v.state = 'ingested' and starts_with(d.external_id, :prefix)"
)
OUTBOX = "select count(*) from core.outbox where tenant_id = :t and :prefix = ''"
LATEST = "select max(updated_at) from rag.documents where tenant_id = :t and starts_with(external_id, :prefix)"


def pipeline(roots: dict[str, psutil.Process], door: Doorkeeper, tenant_id: UUID, prefix: str, documents: int) -> Took:
    """From the moment the batches are pushed until every document of the round is searchable."""
    with measured(roots) as took:
        begun = datetime.now(UTC)
        door.open()
        wait("everything searchable", lambda: value(SEARCHABLE, tenant_id, prefix) >= documents)
    took.seconds = (value(LATEST, tenant_id, prefix) - begun).total_seconds()
    del took.cpu["benchmark"]  # it only looks on
    return took


def round_of(
    roots: dict[str, psutil.Process], door: Doorkeeper, tenant_id: UUID, number: int, files: dict[str, bytes]
) -> tuple[Took, Took, Took, list[list[tuple[str, int]]]]:
    """Pipeline, bare model behind the proxy, model alone, and the batches of one round."""
    prefix = f"round-{number}/"
    door.close()
    submit(tenant_id, {f"{prefix}{name}": data for name, data in files.items()}, 1)
    wait("everything ingested", lambda: value(INGESTED, tenant_id, prefix) >= len(files))
    wait("the outbox is empty", lambda: not value(OUTBOX, tenant_id))
    groups = batches(tenant_id, prefix)
    # What comes first after the parsing is slower, whichever it is: autovacuum, parsers that end, a model that rested.
    bare(roots, groups[::4])
    before = bare(roots, groups)
    took = pipeline(roots, door, tenant_id, prefix, len(files))
    after = bare(roots, groups)
    told = f"bare {before.seconds:.1f} s, pipeline {took.seconds:.1f} s, bare {after.seconds:.1f} s"
    print(f"round {number}: {len(files)} laws, {told}", flush=True)
    behind = Took()
    behind.add(before, 0.5)
    behind.add(after, 0.5)
    return took, behind, alone(groups), groups


def ratios(of: Took, through: Took) -> str:
    """How much of a rate the pipeline reaches."""
    cpu = of.cpu_seconds / through.cpu_seconds
    return f"{of.seconds / through.seconds:.2f} by seconds, {cpu:.2f} by CPU seconds"


def line(name: str, took: Took, tokens: int, chunks: int) -> str:
    """Rates, and CPU milliseconds a chunk."""
    rates = f"{tokens / took.seconds:8.0f} tokens/s {chunks / took.seconds:7.1f} chunks/s"
    return f"{name:<24}{rates} {1000 * took.cpu_seconds / chunks:7.1f} CPU ms/chunk"


def by_service(took: Took, chunks: int) -> Iterable[str]:
    """CPU milliseconds a chunk of each service, the largest first."""
    for name, used in sorted(took.cpu.items(), key=lambda item: -item[1]):
        if used:
            yield f"  {name:<22}{1000 * used / chunks:7.2f} CPU ms/chunk"


def report(tenant_id: UUID, rounds: list[dict[str, bytes]]) -> None:
    """Measure and print."""
    roots = service_roots()
    # The model's weights are loaded, the connections made: a service that runs has paid for that long ago.
    submit(tenant_id, {"warm.md": b"# Warm\n\nThe weights are loaded by the first text."}, 1)
    wait("the first document", lambda: value(SEARCHABLE, tenant_id) >= 1)
    door = Doorkeeper()
    through, behind, model = Took(), Took(), Took()
    tokens = chunks = requests = 0
    for number, files in enumerate(rounds):
        took, proxied, own, groups = round_of(roots, door, tenant_id, number, files)
        through.add(took)
        behind.add(proxied)
        model.add(own)
        tokens += sum(count for group in groups for _, count in group)
        chunks += sum(map(len, groups))
        requests += len(groups)
        print(f"  of the bare model, behind the proxy: {ratios(proxied, took)}", flush=True)
    print(f"{sum(map(len, rounds))} laws, {chunks} chunks, {tokens} tokens in {requests} batches")
    print(line("model alone", model, tokens, chunks))
    print(line("bare, behind the proxy", behind, tokens, chunks))
    print(*by_service(behind, chunks), sep="\n")
    print(line("pipeline", through, tokens, chunks))
    print(*by_service(through, chunks), sep="\n")
    for what, of in (("bare, behind the proxy", behind), ("model alone", model)):
        print(f"of the {what:<24}{ratios(of, through)}")


def main() -> None:
    """Print the rates and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--laws", type=int, default=90)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    files = list(laws(arguments.laws).items())
    if not files:
        return
    os.environ["DOCUMENTS_IN_PROGRESS"] = "10000"
    with own_home():
        noesis("up", "--detach")
        from shared.database import operator_session
        from shared.tenants.directory import find_tenant

        with operator_session() as session:
            tenant_id = find_tenant(session, "demo").tenant_id
        report(tenant_id, [dict(files[number :: arguments.rounds]) for number in range(arguments.rounds)])


if __name__ == "__main__":
    main()
