"""Runs a recorded story through LangGraph with some saver; also the child process with PostgresSaver.

Two environments import this module: ours, and the one under build/ that has PostgresSaver and psycopg but nothing of
ours. So it imports only the standard library and, late, LangGraph.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypedDict
from uuid import uuid4

WAITS = {"on": "", "off": "?options=-c%20synchronous_commit%3Doff"}
"""Suffixes of a connection string: a commit waits for the disk, or not."""


def chain(story: Any, told: Callable[[str], None]) -> Any:
    """The story as a graph not yet compiled: every node writes what it wrote then. `told` hears of each that begins."""
    from langgraph.graph import END, START, StateGraph

    keys = sorted({*story["input"], *(key for _, update in story["steps"] for key in update)})
    # A dictionary of channels is what the functional form of TypedDict is for; mypy wants it literal.
    made: Any = StateGraph(TypedDict("State", dict.fromkeys(keys, Any), total=False))  # type: ignore[operator]
    names = [f"{number}-{name}" for number, (name, _) in enumerate(story["steps"])]
    for name, (_, update) in zip(names, story["steps"], strict=True):

        def node(_state: Any, name: str = name, update: Any = update) -> Any:
            told(name)
            return update

        made.add_node(name, node)
    for before, after in zip([START, *names], [*names, END], strict=True):
        made.add_edge(before, after)
    return made


def replay(story: Any, saver: Any, thread: str, told: Callable[[str], None] = lambda _: None) -> dict[str, float]:
    """Run a story: seconds by the clock and CPU seconds of this process, all its threads. Compiling is not timed."""
    made = chain(story, told).compile(checkpointer=saver)
    config = {"configurable": {"thread_id": thread}, "recursion_limit": 1000}
    options = {"durability": "sync"} if saver is not None else {}
    begun, used = time.perf_counter(), time.process_time()
    made.invoke(story["input"], config, **options)
    return {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - used}


def forgetful() -> Any:
    """A saver that stores nothing: what LangGraph itself spends on making checkpoints and handing them over."""
    from langgraph.checkpoint.base import BaseCheckpointSaver

    class Forgetful(BaseCheckpointSaver[int]):
        def get_tuple(self, config: Any) -> None:
            """Nothing was stored."""

        def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
            """Name the checkpoint, as every saver has to."""
            place = {"checkpoint_ns": "", **config["configurable"], "checkpoint_id": checkpoint["id"]}
            return {"configurable": place}

        def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
            """Store nothing."""

    return Forgetful()


def _bare(connection: Any, bodies: list[bytes]) -> dict[str, float]:
    """The floor: each step's bytes as one row, one statement, one commit."""
    begun, used = time.perf_counter(), time.process_time()
    for body in bodies:
        connection.execute("insert into bare (body) values (%b)", (body,))
    return {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - used}


@contextmanager
def _others(dsn: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """PostgresSaver as its documentation has it (autocommit, prepared, pipelined), and bare connections, both ways."""
    import psycopg  # type: ignore[import-not-found]
    from langgraph.checkpoint.postgres import PostgresSaver  # type: ignore[import-not-found]

    if psycopg.pq.__impl__ != "binary":
        raise SystemExit(f"psycopg runs on {psycopg.pq.__impl__}, not on its C implementation")
    with ExitStack() as stack:
        savers = {w: stack.enter_context(PostgresSaver.from_conn_string(dsn + WAITS[w])) for w in WAITS}
        savers["on"].setup()
        bare = {
            w: stack.enter_context(psycopg.connect(dsn + WAITS[w], autocommit=True, prepare_threshold=0)) for w in WAITS
        }
        bare["on"].execute("create table if not exists bare (id bigserial primary key, body bytea not null)")
        yield savers, bare


def serve(dsn: str) -> None:
    """Answer a JSON line for every JSON line: `{"story", "what": none | saver | bare, "waits": on | off}`.

    The first line is the stories, each with the bytes that our saver stores step by step (`bodies`, hexadecimal).
    """
    stories = json.loads(sys.stdin.readline())
    bodies = {story["name"]: [bytes.fromhex(body) for body in story["bodies"]] for story in stories}
    by_name = {story["name"]: story for story in stories}
    with _others(dsn) as (savers, bare):
        print("ready", flush=True)
        for line in sys.stdin:
            wanted = json.loads(line)
            if wanted["what"] == "bare":
                took = _bare(bare[wanted["waits"]], bodies[wanted["story"]])
            else:
                saver = savers[wanted["waits"]] if wanted["what"] == "saver" else None
                took = replay(by_name[wanted["story"]], saver, uuid4().hex)
            print(json.dumps(took), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
