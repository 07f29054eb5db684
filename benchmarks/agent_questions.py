"""What a question costs besides the model: time, statements, commits; and thirty questions at once.

    .venv/bin/python -m benchmarks.agent_questions [--questions 60] [--parallel 30] [--model-ms 200]

The real agent on PostgreSQL with a scripted chat model that takes a fixed time (the first word after half of it), and
vectors from hashed words. Overhead is the time of `answer_question` less the model's own; the CPU it takes is told
apart for Python and PostgreSQL, because unlike times it hardly depends on what else the machine does. The thirty run as
in production: on instances of eight threads with a pool of eight, each a process; a question's time counts from the
moment all were asked.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
from sqlalchemy import event

from functions.agent.answering import answer_question
from local import postgres
from schema import migrate, roles
from shared import database as db
from shared import messaging
from shared.conversations.runs import ask, read_run
from shared.documents.completion import finish_version
from shared.documents.intake import receive
from shared.documents.storing import Batch, Content, NewChunk, store
from shared.documents.vectors import chunks_without_vector, store_vectors, text_hash
from shared.events import AnswerQuestion, DocumentSubmitted
from shared.fakes import FakeBus, FakeModels, hashed_vector
from shared.llm import ChatReply
from shared.retrieval.spaces import activate_first, active_space, ensure_space
from shared.services import Services
from shared.settings import get_settings
from shared.tenants.directory import Principal, create_tenant, memberships

ROOT = Path(__file__).parents[1]
THREADS = POOL = 8
"""Concurrency and pool of an instance (terraform/topology.yaml)."""

TEXT = "Alle Beschäftigten haben Anspruch auf {0} Arbeitstage Urlaub. Der Antrag wird im Portal gestellt. " * 8
QUESTION = "Wie viele Arbeitstage Urlaub haben Beschäftigte?"
REPLY = "„Der Antrag wird im Portal gestellt.“ [1] "


@dataclass
class Slow(FakeModels):
    """A model that takes its time: silent for half of it, then word by word."""

    seconds: float = 0.2

    def chat(self, messages: Sequence[dict[str, Any]], **_: Any) -> Iterator[str | ChatReply]:
        words = [f"{word} " for word in (REPLY * 3).split()]
        time.sleep(self.seconds / 2)
        for word in words:
            time.sleep(self.seconds / 2 / len(words))
            yield word
        yield ChatReply("".join(words), "scripted", 900, len(words))


def index(tenant: Principal, documents: int) -> None:
    """Documents of four chunks each, searchable."""
    for number in range(documents):
        submitted = DocumentSubmitted(tenant_id=tenant.tenant_id, external_id=f"d{number}", content="")
        texts = [TEXT.format(n) + f" Abschnitt {n}." for n in range(number, number + 4)]
        chunks = [NewChunk(t, text_hash((), t), 0, len(t), len(t.split()), "de", (), {}) for t in texts]
        with db.tenant_session(tenant.tenant_id) as session:
            reception = receive(session, submitted, "upstream")
        with db.tenant_session(tenant.tenant_id) as session:
            content = Content(uuid4().hex, "", 1, "text/plain", "de", "", chunks)
            store(session, reception, content, submitted.traceparent, Batch(9, 999))
        with db.tenant_session(tenant.tenant_id) as session:
            space = active_space(session, tenant.tenant_id)
            rows = session.connection().exec_driver_sql(
                f"select chunk_id from rag.chunks where version_id = '{reception.version_id}'"
            )
            ids = [row[0] for row in rows]
            missing = chunks_without_vector(session, tenant.tenant_id, reception.version_id, space.space_id, ids).chunks
            vectors = [hashed_vector(t, space.dimension) for _, t in missing]
            store_vectors(session, tenant.tenant_id, space.space_id, [chunk_id for chunk_id, _ in missing], vectors)
            assert finish_version(session, tenant.tenant_id, reception.version_id)


def put(tenant: Principal) -> AnswerQuestion:
    """Ask; returns the command."""
    with db.tenant_session(tenant.tenant_id) as session:
        return AnswerQuestion(tenant_id=tenant.tenant_id, run_id=ask(session, tenant, QUESTION))


def timed(command: AnswerQuestion, services: Services) -> float:
    """Seconds to answer."""
    begun = time.perf_counter()
    answer_question(command, services)
    return time.perf_counter() - begun


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so many do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def counted(command: AnswerQuestion, services: Services) -> Counter[str]:
    """Statements and commits of one question, by their first words."""
    seen: Counter[str] = Counter()
    engine = db.application_engine()

    def statement(_c: Any, _cursor: Any, sql: str, *_: Any) -> None:
        seen["statements"] += 1
        seen[" ".join(sql.split()[:3])[:40]] += 1

    def commit(_: Any) -> None:
        seen["commits"] += 1

    event.listen(engine, "before_cursor_execute", statement)
    event.listen(engine, "commit", commit)
    try:
        answer_question(command, services)
    finally:
        event.remove(engine, "before_cursor_execute", statement)
        event.remove(engine, "commit", commit)
    return seen


def server_seconds(server: postgres.Server) -> float:
    """CPU seconds of PostgreSQL so far, all its processes."""
    root = psutil.Process(server.pid)
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    ended = times[0].children_user + times[0].children_system
    return float(ended + sum(one.user + one.system for one in times))


def alone(tenant: Principal, services: Services, questions: int, seconds: float, server: postgres.Server) -> None:
    """One question after the other: the overhead."""
    for _ in range(5):
        timed(put(tenant), services)
    commands = [put(tenant) for _ in range(questions)]
    python, database = time.process_time(), server_seconds(server)
    took = [(timed(command, services) - seconds) * 1000 for command in commands]
    python, database = time.process_time() - python, server_seconds(server) - database
    print(f"overhead of a question: median {statistics.median(took):.0f} ms, p95 {percentile(took, 0.95):.0f} ms")
    print(
        f"CPU of a question: Python {1000 * python / questions:.1f} ms, PostgreSQL {1000 * database / questions:.1f} ms"
    )
    seen = counted(put(tenant), services)
    print(f"statements {seen.pop('statements')}, commits {seen.pop('commits')}")
    for name, count in seen.most_common(12):
        print(f"    {count:3d} {name}")


def together(tenant: Principal, services: Services, parallel: int, rounds: int, instances: int, threads: int) -> None:
    """So many at once, several times, spread over instances: how long the slowest wait, and what fails."""
    command = (sys.executable, "-m", "benchmarks.agent_questions", "--instance", str(tenant.tenant_id))
    seconds = services.models.seconds  # type: ignore[attr-defined]
    model = ("--model-ms", str(seconds * 1000), "--threads", str(threads))
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    children = [subprocess.Popen([*command, *model], **pipes) for _ in range(instances)]
    took: list[float] = []
    wrong = 0
    try:
        for number in range(rounds + 1):
            commands = [put(tenant) for _ in range(parallel)]
            start = time.time() + 0.5
            for place, child in enumerate(children):
                runs = [str(one.run_id) for one in commands[place::instances]]
                print(json.dumps({"at": start, "runs": runs}), file=child.stdin, flush=True)
            times = [seconds for child in children for seconds in json.loads(_answer_of(child))]
            if number:  # the first round warms up
                took += times
                with db.tenant_session(tenant.tenant_id) as session:
                    runs_now = [read_run(session, tenant, one.run_id) for one in commands]
                wrong += sum(run is None or run.state != "answered" for run in runs_now)
    finally:
        for child in children:
            child.communicate()
    p95, total = percentile(took, 0.95) * 1000, parallel * rounds
    print(f"{parallel} at once on {instances} instances of {threads} threads, {rounds} times: ", end="")
    print(f"median {statistics.median(took) * 1000:.0f} ms, p95 {p95:.0f} ms, errors {wrong} of {total}")


def _answer_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline()


def instance(tenant_id: UUID, services: Services, number: int) -> None:
    """One instance: for every line that comes in, answer its runs at once at the moment it names."""
    with ThreadPoolExecutor(number) as threads:
        for line in sys.stdin:
            wanted = json.loads(line)
            commands = [AnswerQuestion(tenant_id=tenant_id, run_id=UUID(run)) for run in wanted["runs"]]
            time.sleep(max(0.0, wanted["at"] - time.time()))

            def answer(command: AnswerQuestion, begun: float = wanted["at"]) -> float:
                answer_question(command, services)
                return time.time() - begun

            print(json.dumps(list(threads.map(answer, commands))), flush=True)


def main() -> None:
    """Start a database, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--parallel", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=50)
    parser.add_argument("--model-ms", type=float, default=200)
    parser.add_argument("--instances", type=int, default=4)
    parser.add_argument("--threads", type=int, default=THREADS, help="of an instance")
    parser.add_argument("--instance", type=UUID, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.instance:
        messaging.use_bus(FakeBus())
        services = Services(get_settings(), _models=Slow(seconds=chosen.model_ms / 1000))
        instance(chosen.instance, services, chosen.threads)
        return
    with tempfile.TemporaryDirectory() as home, postgres.temporary(postgres.EMBEDDED) as server:
        passwords = {role: uuid4().hex for role in (roles.OWNER, roles.APPLICATION, roles.OPERATOR)}
        roles.bootstrap(server.admin_dsn, passwords)
        urls = {r: f"postgresql+pg8000://{r}:{p}@{server.host}:{server.port}/noesis2" for r, p in passwords.items()}
        migrate.upgrade(urls[roles.OWNER])
        os.environ |= {
            "NOESIS_HOME": home,
            "DATABASE_URL": urls[roles.APPLICATION],
            "OPERATOR_DATABASE_URL": urls[roles.OPERATOR],
            "DATABASE_POOL": str(POOL),
            "LITELLM_MASTER_KEY": "benchmark",
            "SECRET_KEY": "for-this-benchmark-only-0123456789abcdef",
            "EMBEDDINGS_MODEL": "fake",
            "EMBEDDINGS_DIM": "64",
        }
        get_settings.cache_clear()
        messaging.use_bus(FakeBus())
        with db.operator_session() as operator:
            made = create_tenant(operator, "bench", "Bench", "admin@bench.example")
            activate_first(operator, made.tenant_id, ensure_space(operator, "fake", 64))
        tenant = memberships("admin@bench.example")[0]
        index(tenant, chosen.documents)
        seconds = chosen.model_ms / 1000
        services = Services(get_settings(), _models=Slow(seconds=seconds))
        alone(tenant, services, chosen.questions, seconds, server)
        together(tenant, services, chosen.parallel, chosen.rounds, chosen.instances, chosen.threads)
        db.forget_engines()


if __name__ == "__main__":
    main()
