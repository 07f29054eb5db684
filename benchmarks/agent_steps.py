"""A durable step of the agent beside LangGraph's own PostgresSaver, on the same database, in one run.

    .venv/bin/python -m benchmarks.agent_steps [--runs 20] [--steps 12]

Both run the same graph of empty steps with a state as a question has it (five passages), durability `sync`. Ours is
the saver as the agent uses it: row-level security, the run's lease renewed and fenced in the same transaction, only the
last checkpoint kept. A step's cost is the time of a run less that of the same run without a saver, per step.

PostgresSaver needs psycopg (LGPL), which is no dependency of ours: it gets an environment of its own, made by `uv` at
the first run under build/, and works there in a child process. Rounds alternate, so that both meet the same machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TypedDict
from uuid import uuid4

ROOT = Path(__file__).parents[1]
OTHERS = ROOT / "build" / "postgres-saver"
PACKAGES = ("langgraph==1.2.20", "langgraph-checkpoint-postgres", "psycopg[binary,pool]")


class State(TypedDict, total=False):
    """As much as a run carries."""

    question: str
    passages: list[dict[str, Any]]
    count: int


PASSAGES = [
    {"number": n, "title": "Handbuch", "text": f"{n} " + "Der Antrag wird im Portal gestellt. " * 60} for n in range(5)
]


def graph(steps: int, saver: Any) -> Any:
    """A chain of steps that count."""
    from langgraph.graph import END, START, StateGraph

    made = StateGraph(State)
    names = [f"step{n}" for n in range(steps)]
    for name in names:
        made.add_node(name, lambda state: {"count": state.get("count", 0) + 1})
    for before, after in zip([START, *names], [*names, END], strict=True):
        made.add_edge(before, after)
    return made.compile(checkpointer=saver)


def run(steps: int, saver: Any, thread: str) -> float:
    """Seconds of one run."""
    made = graph(steps, saver)
    config = {"configurable": {"thread_id": thread}, "recursion_limit": 1000}
    begun = time.perf_counter()
    options = {"durability": "sync"} if saver is not None else {}
    made.invoke({"question": "Wie viele Tage?", "passages": PASSAGES}, config, **options)
    return time.perf_counter() - begun


def theirs(dsn: str, steps: int) -> None:
    """The child: PostgresSaver as its documentation has it; a run for every line that comes in."""
    from langgraph.checkpoint.postgres import PostgresSaver  # type: ignore[import-not-found]

    with PostgresSaver.from_conn_string(dsn) as saver:
        saver.setup()
        for _ in sys.stdin:
            print(run(steps, saver, uuid4().hex), flush=True)


def python_of_others() -> Path:
    """The interpreter with PostgresSaver; its environment is made when it is not there."""
    python = OTHERS / "bin" / "python"
    if not python.exists():
        uv = shutil.which("uv") or os.environ.get("UV", "")
        if not uv:
            raise SystemExit("uv is needed once, to make the environment with PostgresSaver (or set UV to its path)")
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(OTHERS)], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *PACKAGES], check=True)
    return python


def measure(server: Any, runs: int, steps: int) -> None:
    """Alternate the three, print what a step costs."""
    from functions.agent.checkpointer import Checkpointer
    from functions.agent.journal import Journal
    from schema import migrate, roles
    from shared import database as db
    from shared import messaging
    from shared.conversations.runs import ask, take_lease
    from shared.fakes import FakeBus
    from shared.retrieval.spaces import activate_first, ensure_space
    from shared.settings import get_settings
    from shared.tenants.directory import create_tenant, memberships

    passwords = {role: uuid4().hex for role in (roles.OWNER, roles.APPLICATION, roles.OPERATOR)}
    roles.bootstrap(server.admin_dsn, passwords)
    urls = {r: f"postgresql+pg8000://{r}:{p}@{server.host}:{server.port}/noesis2" for r, p in passwords.items()}
    migrate.upgrade(urls[roles.OWNER])
    os.environ |= {
        "DATABASE_URL": urls[roles.APPLICATION],
        "OPERATOR_DATABASE_URL": urls[roles.OPERATOR],
        "LITELLM_MASTER_KEY": "benchmark",
    }
    get_settings.cache_clear()
    messaging.use_bus(FakeBus())
    with db.operator_session() as operator:
        made = create_tenant(operator, "bench", "Bench", "admin@bench.example")
        activate_first(operator, made.tenant_id, ensure_space(operator, "fake", 64))
    tenant = memberships("admin@bench.example")[0]

    def ours() -> float:
        with db.tenant_session(tenant.tenant_id) as session:
            run_id = ask(session, tenant, "Wie viele Tage?")
        with db.tenant_session(tenant.tenant_id) as session:
            lease = take_lease(session, tenant.tenant_id, run_id)
        saver = Checkpointer(tenant.tenant_id, keep=Journal(lease).keep, fresh=True)
        return run(steps, saver, str(run_id))

    # As the superuser, whom no policy slows down.
    address = server.admin_dsn.replace("+pg8000", "")
    options = ("-m", "benchmarks.agent_steps", "--theirs", address, "--steps", str(steps))
    command = [str(python_of_others()), *options]
    took: dict[str, list[float]] = {"none": [], "ours": [], "PostgresSaver": []}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for number in range(runs + 2):
            child.stdin.write("run\n")
            child.stdin.flush()
            values = {"PostgresSaver": float(child.stdout.readline()), "ours": ours(), "none": run(steps, None, "x")}
            if number >= 2:  # the first two warm up
                for name, value in values.items():
                    took[name].append(value)
        child.stdin.close()
    bare = statistics.median(took["none"])
    cost = {name: (statistics.median(values) - bare) / (steps + 1) * 1000 for name, values in took.items()}
    print(f"a step without a saver {bare / steps * 1000:.2f} ms; with one, more:")
    print(f"    ours {cost['ours']:.2f} ms, PostgresSaver {cost['PostgresSaver']:.2f} ms, ", end="")
    print(f"ratio {cost['ours'] / cost['PostgresSaver']:.2f}")
    db.forget_engines()


def main() -> None:
    """Start a database, measure, print; or be the child."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--theirs", default="")
    chosen = parser.parse_args()
    if chosen.theirs:
        theirs(chosen.theirs, chosen.steps)
        return
    from local import postgres

    # Not the throw-away kind, which forgets to wait for the disk: a step has to be durable.
    home = Path(tempfile.mkdtemp(prefix="noesis-steps-"))
    home.chmod(0o711)  # as root PostgreSQL runs as another user, who has to walk through it
    os.environ["NOESIS_HOME"] = str(home / "home")
    try:
        measure(postgres.start(home, postgres.free_port()), chosen.runs, chosen.steps)
    finally:
        postgres.stop(home)
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
