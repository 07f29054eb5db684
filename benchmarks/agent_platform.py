"""Many questions at once through the real local platform, with a scripted chat model behind the real proxy.

    python -m benchmarks.agent_platform [--parallel 30] [--rounds 3] [--model-ms 200] [--ports 19000]

Starts a platform of its own in a temporary folder with CHAT_MODEL on a scripted OpenAI-compatible server, puts the
questions all at once and reads from the database how long each took from being asked to its stored answer: bus, push,
agent, two model calls behind the proxy, verification. The limit (issue 5): under 1 % errors, p95 under 1,200 ms.
The same number of requests at once against the proxy alone tells how much of that is the model's and the machine's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

from benchmarks.platform import noesis, submit, wait_searchable
from tests.scripted_model import CHAT, Say, Script, serving

TEXT = "# Urlaub\n\nAlle Beschäftigten haben Anspruch auf 30 Arbeitstage Urlaub. Der Antrag wird im Portal gestellt.\n"
REPLY = "„Alle Beschäftigten haben Anspruch auf 30 Arbeitstage Urlaub.“ [1]"
QUESTION = "Wie viele Arbeitstage Urlaub haben alle Beschäftigten?"
PORTS = ("POSTGRES_PORT", "BUS_PUBSUB_PORT", "BUS_HTTP_PORT", "BUS_TASKS_PORT", "LITELLM_PORT", "WEB_PORT")
LIMIT_MS, LIMIT_ERRORS = 1200, 0.01


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so many do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def ask_all(principal: Any, count: int) -> list[UUID]:
    """Put questions at once, each in a transaction of its own, as web does; returns the runs."""
    from shared.conversations.runs import ask
    from shared.database import tenant_session

    def put(number: int) -> UUID:
        with tenant_session(principal.tenant_id) as session:
            return ask(session, principal, f"{QUESTION} ({number})")

    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(put, range(count)))


def ended(principal: Any, runs: Sequence[UUID], patience: float = 120) -> list[Any]:
    """State and milliseconds of each run, when all have ended or patience is over."""
    from sqlalchemy import text

    from shared.database import array_literal, tenant_session

    sql = text(
        "select state, no_evidence, 1000 * extract(epoch from finished_at - created_at) as ms from core.runs "
        "where tenant_id = :tenant and run_id = any(cast(:runs as uuid[]))"
    )
    values = {"tenant": principal.tenant_id, "runs": array_literal([str(run) for run in runs])}
    until = time.monotonic() + patience
    while True:
        with tenant_session(principal.tenant_id) as session:
            rows = list(session.execute(sql, values))
        if all(row.ms is not None for row in rows) or time.monotonic() > until:
            return rows
        time.sleep(0.25)


def proxy_alone(parallel: int) -> list[float]:
    """Milliseconds of so many chats at once against the proxy, nothing else."""
    from shared.services import services

    def chat(_: int) -> float:
        begun = time.perf_counter()
        for _piece in services().models.chat([{"role": "user", "content": QUESTION}]):
            pass
        return (time.perf_counter() - begun) * 1000

    with ThreadPoolExecutor(parallel) as threads:
        return list(threads.map(chat, range(parallel)))


def measure(parallel: int, rounds: int) -> bool:
    """What needs a running platform; whether the limits hold."""
    from shared.database import operator_session
    from shared.tenants.directory import find_tenant, memberships

    with operator_session() as session:
        tenant_id = find_tenant(session, "demo").tenant_id
    principal = memberships("admin@demo.example")[0]
    wait_searchable(tenant_id, submit(tenant_id, {"urlaub.md": TEXT.encode()}, 1))
    for _ in range(5):  # imports and connections of every instance
        ended(principal, ask_all(principal, 4))
    single = [float(ended(principal, ask_all(principal, 1))[0].ms) for _ in range(10)]
    print(
        f"one question                 median {statistics.median(single):6.0f} ms, p95 {percentile(single, 0.95):.0f}"
    )
    took: list[float] = []
    wrong = 0
    for _ in range(rounds):
        rows = ended(principal, ask_all(principal, parallel))
        wrong += sum(row.state != "answered" or bool(row.no_evidence) for row in rows)
        took += [float(row.ms) for row in rows if row.ms is not None]
    alone = [ms for _ in range(rounds) for ms in proxy_alone(min(parallel, 20))]
    p95, errors = percentile(took, 0.95), wrong / (parallel * rounds)
    print(f"{parallel} at once, {rounds} times         median {statistics.median(took):6.0f} ms, p95 {p95:.0f}")
    print(f"errors                       {wrong} of {parallel * rounds} ({errors:.1%})")
    print(f"the proxy alone, 20 at once  median {statistics.median(alone):6.0f} ms, p95 {percentile(alone, 0.95):.0f}")
    return p95 < LIMIT_MS and errors < LIMIT_ERRORS


def main() -> None:
    """Start everything, measure, print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--parallel", type=int, default=30)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--model-ms", type=float, default=200)
    arguments.add_argument("--ports", type=int, default=19_000, help="the first of eleven ports in a row")
    chosen = arguments.parse_args()
    home = Path(tempfile.mkdtemp(prefix="noesis-bench-"))
    home.chmod(0o711)
    with serving(Script(then=Say(REPLY), reply_seconds=chosen.model_ms / 1000)) as script:
        os.environ |= {name: str(chosen.ports + n) for n, name in enumerate(PORTS)} | {
            "FUNCTIONS_PORT": str(chosen.ports + len(PORTS)),
            "NOESIS_HOME": str(home / "home"),
            "CHAT_MODEL": CHAT,
            "OPENAI_API_BASE": f"{script.url}/v1",
        }
        try:
            noesis("up", "--detach")
            held = measure(chosen.parallel, chosen.rounds)
            print(f"limits ({LIMIT_MS} ms, {LIMIT_ERRORS:.0%} errors): {'held' if held else 'NOT held'}")
        finally:
            noesis("down", check=False)
            shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
