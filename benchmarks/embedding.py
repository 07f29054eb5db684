"""Embedding tokens a second through the pipeline against the bare model behind the same proxy, in one run.

    python -m benchmarks.embedding [--laws 100]

Starts a platform of its own on the ordinary ports (stop yours first). The embed function is stopped (SIGSTOP) until
every law is parsed and its batches lie on the bus, so that only the stage itself is timed: push, database, proxy,
vectors, completion. The bare model then gets the same texts in batches of the same size, as many at once.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psutil

from benchmarks.platform import laws, noesis, own_home, submit

PARALLEL = 2
"""Batches at once: the concurrency of the embed service in terraform/topology.yaml."""


def embed_processes() -> list[psutil.Process]:
    """The embed function and what it started."""
    found = json.loads(noesis("status", "--json"))
    root = psutil.Process(next(service["pid"] for service in found["services"] if service["name"] == "embed"))
    return [root, *root.children(recursive=True)]


def send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        process.send_signal(number)


def wait(what: str, ready: Any, seconds: float = 900) -> None:
    until = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > until:
            raise TimeoutError(what)
        time.sleep(0.05)


def count(statement: str, tenant_id: UUID) -> int:
    """One number from the database, as an operator."""
    from sqlalchemy import text

    from shared.database import operator_session

    with operator_session() as session:
        return int(session.execute(text(statement), {"t": tenant_id}).scalar_one())


def batches(tenant_id: UUID) -> list[list[tuple[str, int]]]:
    """Text and tokens of every chunk, a version's chunks together as the pipeline embeds them."""
    from sqlalchemy import text

    from shared.database import operator_session

    found: dict[UUID, list[tuple[str, int]]] = {}
    with operator_session() as session:
        for row in session.execute(
            text("select version_id, text, tokens from rag.chunks where tenant_id = :t order by version_id, ordinal"),
            {"t": tenant_id},
        ):
            found.setdefault(row.version_id, []).append((row.text, row.tokens))
    return [group[begun : begun + 128] for group in found.values() for begun in range(0, len(group), 128)]


def bare(groups: list[list[tuple[str, int]]]) -> float:
    """Seconds the model behind the proxy takes for the batches, PARALLEL at once."""
    from shared.services import services

    settings = services().settings

    def embed(group: list[tuple[str, int]]) -> None:
        services().models.embed(
            [text for text, _ in group],
            model=settings.embeddings_model,
            dimension=settings.embeddings_dim,
            input_type="passage",
        )

    begun = time.perf_counter()
    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(embed, groups))
    return time.perf_counter() - begun


def pipeline(tenant_id: UUID, files: dict[str, bytes]) -> float:
    """Seconds from the moment the embed function may work until every document is searchable."""
    processes = embed_processes()
    send(processes, signal.SIGSTOP)
    try:
        submit(tenant_id, files, 1)
        done = "select count(*) from rag.versions where tenant_id = :t and state = 'ingested'"
        wait("everything ingested", lambda: count(done, tenant_id) >= len(files))
        waiting = "select count(*) from core.outbox where tenant_id = :t"
        wait("the outbox is empty", lambda: not count(waiting, tenant_id))
    finally:
        begun = time.perf_counter()
        send(processes, signal.SIGCONT)
    searchable = "select count(*) from rag.documents where tenant_id = :t and state = 'searchable'"
    wait("everything searchable", lambda: count(searchable, tenant_id) >= len(files))
    return time.perf_counter() - begun


def main() -> None:
    """Print both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--laws", type=int, default=100)
    files = laws(parser.parse_args().laws)
    if not files:
        return
    os.environ["DOCUMENTS_IN_PROGRESS"] = "10000"
    with own_home():
        noesis("up", "--detach")
        from shared.database import operator_session
        from shared.tenants.directory import find_tenant

        with operator_session() as session:
            tenant_id = find_tenant(session, "demo").tenant_id
        seconds = pipeline(tenant_id, files)
        groups = batches(tenant_id)
        tokens = sum(tokens for group in groups for _, tokens in group)
        chunks = sum(map(len, groups))
        alone = bare(groups)
        print(f"{len(files)} laws, {chunks} chunks, {tokens} tokens in {len(groups)} batches")
        print(f"bare model   {tokens / alone:8.0f} tokens/s   {chunks / alone:6.1f} chunks/s")
        print(f"pipeline     {tokens / seconds:8.0f} tokens/s   {chunks / seconds:6.1f} chunks/s")
        print(f"ratio        {alone / seconds:8.2f}")


if __name__ == "__main__":
    main()
