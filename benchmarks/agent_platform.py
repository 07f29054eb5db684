"""Many questions at once through the real local platform, with a scripted chat model behind the real proxy.

    python -m benchmarks.agent_platform [--parallel 30] [--rounds 3] [--model-ms 200] [--ports 19000]

Starts a platform of its own in a temporary folder with CHAT_MODEL on a scripted OpenAI-compatible server, puts the
questions all at once and reads from the database how long each took from being asked to its stored answer: bus, push,
agent, two model calls behind the proxy, verification. The limit (issue 5): under 1 % errors, p95 under 1,200 ms.
As many at once by a bare program (vector, search, chat; nothing durable, booked, told or checked), and as many model
calls of the kind alone, tell what the machine cannot go below with the same database, proxy and model.

CPU seconds a question are told by process: with so many at once on few cores they are the limit, and unlike times they
hardly depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psutil

from benchmarks.platform import noesis, submit, wait_searchable
from local import state
from tests.scripted_model import CHAT

if TYPE_CHECKING:
    from shared.llm import LiteLLM
    from shared.tenants.directory import Principal

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


def at_once(parallel: int, rounds: int, call: Callable[[LiteLLM], None]) -> list[float]:
    """Milliseconds of so many calls at once, after a round that is not counted (connections).

    By several clients: one has fewer connections than that (shared.llm).
    """
    from shared.llm import LiteLLM
    from shared.services import services

    clients = [LiteLLM(services().settings) for _ in range(-(-parallel // 10))]

    def timed(number: int) -> float:
        begun = time.perf_counter()
        call(clients[number % len(clients)])
        return (time.perf_counter() - begun) * 1000

    try:
        with ThreadPoolExecutor(parallel) as threads:
            return [ms for _ in range(1 + rounds) for ms in threads.map(timed, range(parallel))][parallel:]
    finally:
        for client in clients:
            client.close()


def models_alone(models: LiteLLM) -> None:
    """A question's model calls and nothing else: a vector, then a chat."""
    from shared.services import services

    settings = services().settings
    models.embed([QUESTION], model=settings.embeddings_model, dimension=settings.embeddings_dim, input_type="query")
    for _piece in models.chat([{"role": "user", "content": QUESTION}]):
        pass


def bare_program(principal: Principal, models: LiteLLM) -> None:
    """What any program would do at least: the vector, the search, the chat about what was found.

    No bus, no run, no step that survives a crash, no books, no events to follow, no check of the answer, nothing kept.
    """
    from shared.database import tenant_session
    from shared.retrieval.search import search
    from shared.retrieval.spaces import active_space

    with tenant_session(principal.tenant_id) as session:
        space = active_space(session, principal.tenant_id)
    asked = [space.as_query(QUESTION)]
    (vector,) = models.embed(asked, model=space.model, dimension=space.dimension, input_type="query")
    with tenant_session(principal.tenant_id) as session:
        found = search(session, principal.tenant_id, principal.member_id, space, QUESTION, vector)
    content = "\n\n".join([*(passage.text for passage in found), QUESTION])
    for _piece in models.chat([{"role": "user", "content": content}]):
        pass


def cpu_seconds(model: int) -> dict[str, float]:
    """CPU seconds used so far by every service with its children, the scripted model and ourselves, by name."""
    running = state.read(Path(os.environ["NOESIS_HOME"]))
    assert running is not None
    pids = {name: service.pid for name, service in running.services.items()}
    used: dict[str, float] = {}
    for name, pid in (pids | {"scripted model": model, "asking": os.getpid()}).items():
        try:
            root = psutil.Process(pid)
        except psutil.NoSuchProcess:
            continue  # a step of the start that has ended
        ended = root.cpu_times()
        used[name] = ended.children_user + ended.children_system
        for process in [root, *(root.children(recursive=True) if name != "asking" else ())]:
            times = process.cpu_times()
            used[name] += times.user + times.system
    return used


def print_cpu(what: str, before: dict[str, float], after: dict[str, float], questions: int) -> None:
    """CPU milliseconds a question, by process, the largest first."""
    spent = {name: (after[name] - before.get(name, 0.0)) * 1000 / questions for name in after}
    shown = ", ".join(f"{name} {ms:.0f}" for name, ms in sorted(spent.items(), key=lambda one: -one[1]) if ms >= 0.5)
    print(f"CPU ms a question, {what:<9} {sum(spent.values()):6.0f}: {shown}")


def measure(parallel: int, rounds: int, model: int) -> bool:
    """What needs a running platform; whether the limits hold."""
    from shared.database import operator_session
    from shared.tenants.directory import find_tenant, memberships

    with operator_session() as session:
        tenant_id = find_tenant(session, "demo").tenant_id
    principal = memberships("admin@demo.example")[0]
    wait_searchable(tenant_id, submit(tenant_id, {"urlaub.md": TEXT.encode()}, 1))
    for _ in range(3):  # imports and connections of every instance
        ended(principal, ask_all(principal, parallel))
    before = cpu_seconds(model)
    single = [float(ended(principal, ask_all(principal, 1))[0].ms) for _ in range(10)]
    print(
        f"one question                 median {statistics.median(single):6.0f} ms, p95 {percentile(single, 0.95):.0f}"
    )
    print_cpu("alone", before, cpu_seconds(model), 10)
    took: list[float] = []
    wrong = 0
    before = cpu_seconds(model)
    for _ in range(rounds):
        rows = ended(principal, ask_all(principal, parallel))
        wrong += sum(row.state != "answered" or bool(row.no_evidence) for row in rows)
        took += [float(row.ms) for row in rows if row.ms is not None]
    after = cpu_seconds(model)
    p95, errors = percentile(took, 0.95), wrong / (parallel * rounds)
    print(f"{parallel} at once, {rounds} times         median {statistics.median(took):6.0f} ms, p95 {p95:.0f}")
    print_cpu(f"{parallel} at once", before, after, parallel * rounds)
    print(f"errors                       {wrong} of {parallel * rounds} ({errors:.1%})")
    for what, call in (("a bare program", partial(bare_program, principal)), ("the models alone", models_alone)):
        before = cpu_seconds(model)
        floor = at_once(parallel, rounds, call)
        spread = f"median {statistics.median(floor):6.0f} ms, p95 {percentile(floor, 0.95):.0f}"
        print(f"{what}, {parallel} at once   {spread}")
        print_cpu(what.split()[-1], before, cpu_seconds(model), parallel * (1 + rounds))
    print(f"p95 {p95:.0f} ms: limit {LIMIT_MS} ms")
    return p95 < LIMIT_MS and errors < LIMIT_ERRORS


@contextmanager
def scripted_model(milliseconds: float) -> Iterator[tuple[str, int]]:
    """Address and pid of a scripted model in a process of its own, as a provider would be."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.scripted_model", "--port", str(port), "--reply-ms", str(milliseconds)]
    with subprocess.Popen([*command, "--text", REPLY]) as process:
        try:
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()


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
    with scripted_model(chosen.model_ms) as (url, model):
        os.environ |= {name: str(chosen.ports + n) for n, name in enumerate(PORTS)} | {
            "FUNCTIONS_PORT": str(chosen.ports + len(PORTS)),
            "NOESIS_HOME": str(home / "home"),
            "CHAT_MODEL": CHAT,
            "OPENAI_API_BASE": f"{url}/v1",
        }
        try:
            noesis("up", "--detach")
            held = measure(chosen.parallel, chosen.rounds, model)
            print(f"limits ({LIMIT_MS} ms, {LIMIT_ERRORS:.0%} errors): {'held' if held else 'NOT held'}")
        finally:
            noesis("down", check=False)
            shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
