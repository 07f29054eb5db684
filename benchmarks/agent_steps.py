"""A durable step of the agent beside LangGraph's own PostgresSaver, on the same database, in one run.

    .venv/bin/python -m benchmarks.agent_steps [--rounds 30]

Both store the same recorded runs of the agent (benchmarks/step_stories.py): a short question, and one at the end of a
long conversation that searches four times. Ours is the saver as the agent uses it: row-level security, the run's lease
renewed and fenced and a reader's event written in the same transaction, only the last checkpoint kept. PostgresSaver is
as its documentation has it: an autocommit connection, prepared statements, pipelines, psycopg's C implementation, no
policies. A step's cost is the time of a run less that of the same run without a saver, by the nodes that it went
through (LangGraph makes two checkpoints more, of the input alone: PostgresSaver stores them, ours does not).

**Waiting for the disk** is told apart, for it is most of a small commit: each of the two runs once with commits that
wait and once with commits that do not, and like is divided by like. The product itself does not wait (ADR 0017); that
beside a PostgresSaver that waits is printed too, and said to be no fair comparison. `bare` is the physical limit: the
bytes that our step stores as one row, one statement, one commit, by psycopg; nothing that commits every step is faster.
`nothing stored` is LangGraph with a saver that forgets: it makes every checkpoint and hands it over. No saver of
LangGraph's that commits every step can cost less than both together, which is printed as the floor.

Rounds take all variants in turn, each round from another one on, so that all meet the same machine; what is told is the
median, and of the ratios of each round the median and the quartiles: where these lie apart, the machine was busy. CPU
milliseconds (client: the process, server: PostgreSQL's processes), commits and bytes a step depend little on that.

PostgresSaver needs psycopg (LGPL), which is no dependency of ours: it gets an environment of its own, made by `uv` at
the first run under build/, and works there in a child process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from sqlalchemy import create_engine

from benchmarks.step_replay import forgetful, replay
from benchmarks.step_stories import Story, record

ROOT = Path(__file__).parents[1]
OTHERS = ROOT / "build" / "postgres-saver"
PACKAGES = ("langgraph==1.2.20", "langgraph-checkpoint-postgres==3.2.0", "psycopg[binary,pool]==3.3.9")
WARM = 3
"""Rounds that are not counted."""


@dataclass(frozen=True, order=True)
class Variant:
    """What stores, and whether its commits wait for the disk (`on`) or not (`off`), as synchronous_commit has it."""

    who: str
    waits: str = ""


NONE, OTHER_NONE = Variant("none"), Variant("PostgresSaver's none")
FORGETFUL = Variant("nothing stored")
OURS = {waits: Variant("ours", waits) for waits in ("on", "off")}
THEIRS = {waits: Variant("PostgresSaver", waits) for waits in ("on", "off")}
BARE = {waits: Variant("bare", waits) for waits in ("on", "off")}
VARIANTS = [NONE, OTHER_NONE, FORGETFUL, *OURS.values(), *THEIRS.values(), *BARE.values()]


@dataclass
class Server:
    """What PostgreSQL itself counts: transactions that wrote, bytes of its log, CPU of all its processes."""

    dsn: str
    pid: int
    _connection: Any = field(init=False)
    _mine: int = field(init=False)

    def __post_init__(self) -> None:
        self._connection = create_engine(self.dsn, isolation_level="AUTOCOMMIT").connect()
        self._mine = self._connection.exec_driver_sql("select pg_backend_pid()").scalar_one()

    def counted(self) -> dict[str, float]:
        """Counters since the server began."""
        row = self._connection.exec_driver_sql(
            "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint, pg_current_wal_insert_lsn() - '0/0'"
        ).one()
        return {"commits": float(row[0]), "wal": float(row[1]), "server": self._cpu()}

    def _cpu(self) -> float:
        """Seconds on a CPU, to the nanosecond, unlike the ticks of /proc/<pid>/stat (Linux)."""
        total = 0
        for child in psutil.Process(self.pid).children():
            if child.pid != self._mine:
                total += int(Path(f"/proc/{child.pid}/schedstat").read_text(encoding="ascii").split()[0])
        return total / 1e9

    def close(self) -> None:
        """End the connection."""
        self._connection.engine.dispose()
        self._connection.close()


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


@contextmanager
def others(dsn: str, stories: list[Story]) -> Iterator[Callable[[Variant, Story], dict[str, float]]]:
    """The child with PostgresSaver: call it with a variant and a story."""
    command = [str(python_of_others()), "-m", "benchmarks.step_replay", dsn]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        to, back = child.stdin, child.stdout
        to.write(json.dumps([{**story, "bodies": bodies(story)} for story in stories]) + "\n")
        to.flush()
        if back.readline() != "ready\n":
            raise SystemExit("the process with PostgresSaver did not begin")
        what = {"PostgresSaver": "saver", "PostgresSaver's none": "none", "bare": "bare"}

        def call(variant: Variant, story: Story) -> dict[str, float]:
            to.write(json.dumps({"story": story["name"], "what": what[variant.who], "waits": variant.waits}) + "\n")
            to.flush()
            took: dict[str, float] = json.loads(back.readline())
            return took

        yield call
        to.close()


def platform(server: Any) -> Any:
    """Migrate, point the settings there, make a tenant; returns its administrator."""
    from schema import migrate, roles
    from shared import database as db
    from shared import messaging
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
        "SECRET_KEY": uuid4().hex,
    }
    get_settings.cache_clear()
    messaging.use_bus(FakeBus())
    with db.operator_session() as operator:
        made = create_tenant(operator, "bench", "Bench", "admin@bench.example")
        activate_first(operator, made.tenant_id, ensure_space(operator, "fake", 64))
    other_way(urls[roles.OWNER])
    return memberships("admin@bench.example")[0]


def other_way(owner_url: str) -> None:
    """Copies of the function that keeps a step, one for each way to commit; nothing else in them differs."""
    from shared.conversations import steps

    engine = create_engine(owner_url)
    with engine.begin() as owner:
        source = owner.exec_driver_sql(f"select pg_get_functiondef('{steps.FUNCTION}'::regproc)").scalar_one()
        for waits in ("on", "off"):
            copy = source.replace(steps.FUNCTION, f"{steps.FUNCTION}_{waits}", 1)
            for was in ("on", "off"):
                copy = copy.replace(f"'synchronous_commit', '{was}'", "'synchronous_commit', '='")
            copy = copy.replace("'synchronous_commit', '='", f"'synchronous_commit', '{waits}'")
            if f"'synchronous_commit', '{waits}'" not in copy:
                raise SystemExit("the function that keeps a step no longer says whether it waits")
            owner.exec_driver_sql(copy)
    engine.dispose()


def ours(tenant: Any, variant: Variant, story: Story) -> Callable[[], dict[str, float]]:
    """A run of the story with our saver, as the agent uses it; asked and taken, ready to go."""
    from functions.agent.checkpointer import Checkpointer
    from functions.agent.journal import Journal
    from shared import database as db
    from shared.conversations import steps
    from shared.conversations.runs import ask, take_lease

    with db.tenant_session(tenant.tenant_id) as session:
        run_id = ask(session, tenant, story["input"]["question"])
    with db.tenant_session(tenant.tenant_id) as session:
        lease = take_lease(session, tenant.tenant_id, run_id)
    journal = Journal(lease)
    saver = Checkpointer(tenant.tenant_id, journal.held, keep=journal.keep, fresh=True)
    was = steps.STORE

    def go() -> dict[str, float]:
        try:
            steps.STORE = was.replace(steps.FUNCTION, f"{steps.FUNCTION}_{variant.waits}")
            return replay(story, saver, str(run_id), journal.step)
        finally:
            steps.STORE = was

    return go


def bodies(story: Story) -> list[str]:
    """What our saver stores of the story, checkpoint by checkpoint: body and new parts, hexadecimal."""
    from functions.agent.checkpointer import Checkpointer
    from shared.conversations.steps import Step

    kept: list[Step] = []
    replay(story, Checkpointer(uuid4(), keep=kept.append, fresh=True), "count")
    return [(step.body + b"".join(part.body for part in step.parts)).hex() for step in kept]


Rounds = dict[Variant, list[dict[str, float]]]


def ready(
    variant: Variant, story: Story, tenant: Any, other: Callable[[Variant, Story], dict[str, float]]
) -> Callable[[], dict[str, float]]:
    """A run of the story, so far prepared that nothing but its steps is counted."""
    if variant == NONE:
        return partial(replay, story, None, "none")
    if variant == FORGETFUL:
        return partial(replay, story, forgetful(), "forgotten")
    return ours(tenant, variant, story) if variant.who == "ours" else partial(other, variant, story)


def measured(server: Any, tenant: Any, stories: list[Story], rounds: int) -> dict[str, Rounds]:
    """All variants of all stories, round by round; each round begins with another variant."""
    counters = Server(server.admin_dsn, server.pid)
    took: dict[str, Rounds] = {story["name"]: defaultdict(list) for story in stories}
    # As the superuser, whom no policy slows down.
    with others(server.admin_dsn.replace("+pg8000", ""), stories) as other:
        for number in range(rounds + WARM):
            turn = number % len(VARIANTS)
            for variant in VARIANTS[turn:] + VARIANTS[:turn]:
                for story in stories:
                    run = ready(variant, story, tenant, other)
                    before = counters.counted()
                    one = run()
                    after = counters.counted()
                    if number >= WARM:
                        took[story["name"]][variant].append(one | {k: after[k] - before[k] for k in before})
    counters.close()
    return took


def step_costs(rounds: Rounds, variant: Variant, steps: int) -> list[dict[str, float]]:
    """What a step of the variant cost in each round: without LangGraph's own time; ms, commits, KiB."""
    base = {"ours": NONE, "PostgresSaver": OTHER_NONE, FORGETFUL.who: NONE}.get(variant.who)
    # The median of the runs without a saver: one of them that met a busy machine would make the others cheap.
    idle = {k: statistics.median(one[k] for one in rounds[base]) if base else 0.0 for k in ("seconds", "cpu")}
    costs = []
    for one in rounds[variant]:
        costs.append(
            {
                "ms": (one["seconds"] - idle["seconds"]) * 1000 / steps,
                "client": (one["cpu"] - idle["cpu"]) * 1000 / steps,
                "server": one["server"] * 1000 / steps,
                "commits": one["commits"] / steps,
                "kib": one["wal"] / 1024 / steps,
            }
        )
    return costs


def show(rounds: Rounds, steps: int) -> None:
    """One line a variant, then the ratios."""
    head = ("ms", "CPU ms: client", "server", "commits", "KiB of log")
    print(f"  {'':28}" + "".join(f"{name:>{max(9, len(name) + 2)}}" for name in head))
    costs = {v: step_costs(rounds, v, steps) for v in VARIANTS if v.waits or v == FORGETFUL}
    for variant, values in costs.items():
        middle = {key: statistics.median(one[key] for one in values) for key in values[0]}
        name = variant.who + {"on": ", waits", "off": ", does not wait", "": ""}[variant.waits]
        print(f"  {name:28}{middle['ms']:9.2f}{middle['client']:16.2f}{middle['server']:9.2f}", end="")
        print(f"{middle['commits']:9.2f}{middle['kib']:12.1f}")
    pairs = [
        ("both wait for the disk", OURS["on"], THEIRS["on"]),
        ("neither waits", OURS["off"], THEIRS["off"]),
        ("ours does not wait, PostgresSaver does: not like for like", OURS["off"], THEIRS["on"]),
        ("ours to the bare insert, both wait", OURS["on"], BARE["on"]),
    ]
    for name, one, other in pairs:
        ratios = [a["ms"] / b["ms"] for a, b in zip(costs[one], costs[other], strict=True)]
        low, middle_ratio, high = statistics.quantiles(ratios, n=4)
        cpu = [statistics.median(c["client"] + c["server"] for c in costs[v]) for v in (one, other)]
        print(f"  {middle_ratio:.2f} ({low:.2f} to {high:.2f}, CPU {cpu[0] / cpu[1]:.2f}) {name}")
    for waits, name in (("on", "both wait"), ("off", "neither waits")):
        rounds_of = zip(costs[FORGETFUL], costs[BARE[waits]], costs[THEIRS[waits]], strict=True)
        floors = [(made["ms"] + bare["ms"]) / other["ms"] for made, bare, other in rounds_of]
        low, middle_ratio, high = statistics.quantiles(floors, n=4)
        print(f"  {middle_ratio:.2f} ({low:.2f} to {high:.2f}) the floor, {name}: nothing stored and the bare insert")


def measure(server: Any, rounds: int) -> None:
    """Record, measure, print."""
    from shared import database as db

    tenant = platform(server)
    stories = record(tenant)
    for name, values in measured(server, tenant, stories, rounds).items():
        story = next(one for one in stories if one["name"] == name)
        steps = len(story["steps"])
        size = len(json.dumps(story["steps"], ensure_ascii=False).encode()) / 1024
        stored = [len(body) / 2 / 1024 for body in bodies(story)]
        print(f"{name}: {steps} nodes write {size:.0f} KiB; ours stores {len(stored)} times, {sum(stored):.0f} KiB")
        show(values, steps)
    db.forget_engines()


def main() -> None:
    """Start a database, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    chosen = parser.parse_args()
    from local import postgres

    # Not the throw-away kind, which never waits for the disk.
    home = Path(tempfile.mkdtemp(prefix="noesis-steps-"))
    home.chmod(0o711)  # as root PostgreSQL runs as another user, who has to walk through it
    os.environ["NOESIS_HOME"] = str(home / "home")
    try:
        measure(postgres.start(home, postgres.free_port()), chosen.rounds)
    finally:
        postgres.stop(home)
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
