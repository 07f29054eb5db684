"""The agent's checkpoints: LangGraph's contract, plus what its own savers lack."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypedDict
from uuid import uuid4

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt
from sqlalchemy import text
from sqlalchemy.orm import Session

from functions.agent.checkpointer import Checkpointer
from functions.agent.journal import Journal
from shared.conversations.runs import Lease
from shared.database import tenant_session
from shared.errors import Superseded
from shared.fakes import FakeBus
from shared.tenants.directory import Principal
from tests.integration.tool_material import running


def test_the_conformance_suite_of_langgraph_passes(tenant: Principal) -> None:
    """Every base capability that LangGraph expects of a saver."""

    @checkpointer_test(name="noesis")
    async def saver() -> AsyncIterator[Checkpointer]:
        yield Checkpointer(tenant.tenant_id)

    report = asyncio.run(validate(saver))
    assert report.passed_all_base(), report.to_dict()


def test_a_thread_of_another_tenant_is_not_there(make_tenant: Callable[..., Principal]) -> None:
    """The same thread id in two tenants is two threads."""
    one, two = make_tenant(), make_tenant()
    config: RunnableConfig = {"configurable": {"thread_id": str(uuid4()), "checkpoint_ns": ""}}
    Checkpointer(one.tenant_id).put(config, empty_checkpoint(), {"step": 0}, {})
    assert Checkpointer(one.tenant_id).get_tuple(config) is not None
    assert Checkpointer(two.tenant_id).get_tuple(config) is None


def test_a_refused_write_leaves_nothing(tenant: Principal) -> None:
    """Who lost the run cannot store a step: the refusal comes in the same transaction."""

    @contextmanager
    def refuse() -> Iterator[Session]:
        with tenant_session(tenant.tenant_id) as session:
            yield session
            raise Superseded("somebody else holds the run")

    config: RunnableConfig = {"configurable": {"thread_id": str(uuid4()), "checkpoint_ns": ""}}
    saver = Checkpointer(tenant.tenant_id, transaction=refuse)
    with pytest.raises(Superseded):
        saver.put(config, empty_checkpoint(), {"step": 0}, {})
    assert saver.get_tuple(config) is None


# ---- as the agent uses it: only what is new is stored, under the lease of the run


PASSAGE = "Alle Beschäftigten haben Anspruch auf 30 Arbeitstage Urlaub. " * 20


class Held(TypedDict, total=False):
    """A state with something large that stays, and something large that grows."""

    passages: list[dict[str, Any]]
    dialogue: list[str]
    agreed: bool


def stored(lease: Lease) -> dict[str, list[tuple[Any, ...]]]:
    """What the database holds of the run's thread."""
    columns = {
        "checkpoints": "checkpoint_id, kind, checkpoint",
        "checkpoint_parts": "channel, first, value",
        "checkpoint_writes": "channel, position, value",
    }
    with tenant_session(lease.tenant_id) as session:
        return {
            table: [
                tuple(row)
                for row in session.execute(
                    text(f"select {names} from core.{table} where thread_id = :run order by 1, 2"),
                    {"run": str(lease.run_id)},
                )
            ]
            for table, names in columns.items()
        }


def saver_of(lease: Lease, *, fresh: bool = False) -> Checkpointer:
    """A saver as the agent makes one for an invocation."""
    journal = Journal(lease)
    return Checkpointer(lease.tenant_id, journal.held, keep=journal.keep, fresh=fresh)


def place(lease: Lease) -> RunnableConfig:
    """The run's thread."""
    return {"configurable": {"thread_id": str(lease.run_id), "checkpoint_ns": ""}}


def asking(saver: Checkpointer) -> Any:
    """A graph that reads, says something, asks a person, and says something again."""

    def say(state: Held) -> dict[str, Any]:
        return {"dialogue": [*state.get("dialogue", []), f"{len(state.get('dialogue', []))} {PASSAGE}"]}

    graph = StateGraph(Held)
    graph.add_node("read", lambda _: {"passages": [{"text": f"{n} {PASSAGE}"} for n in range(5)]})
    graph.add_node("say", say)
    graph.add_node("ask", lambda _: {"agreed": interrupt("may I?")})
    graph.add_node("say_again", say)
    for before, after in (
        (START, "read"),
        ("read", "say"),
        ("say", "ask"),
        ("ask", "say_again"),
        ("say_again", END),
    ):
        graph.add_edge(before, after)
    return graph.compile(checkpointer=saver)


def test_a_run_that_waited_goes_on_with_its_whole_state(tenant: Principal, bus: FakeBus) -> None:
    """Another process reads the parts, adds to them, and leaves one checkpoint and no writes."""
    lease = running(tenant)
    asking(saver_of(lease, fresh=True)).invoke({}, place(lease), durability="sync")
    waits = stored(lease)
    assert [row[:2] for row in waits["checkpoint_parts"]] == [("dialogue", 0), ("passages", 0)]
    assert waits["checkpoint_writes"] != []
    ((_, kind, body),) = waits["checkpoints"]
    assert (kind, len(body) < 2_000) == ("msgpack+parts", True)
    state = asking(saver_of(lease)).invoke(Command(resume=True), place(lease), durability="sync")
    assert (state["agreed"], len(state["dialogue"]), len(state["passages"])) == (True, 2, 5)
    ends = stored(lease)
    assert [row[:2] for row in ends["checkpoint_parts"]] == [("dialogue", 0), ("dialogue", 1), ("passages", 0)]
    assert ends["checkpoint_parts"][0] == waits["checkpoint_parts"][0]
    assert (len(ends["checkpoints"]), ends["checkpoint_writes"]) == (1, [])
    found = saver_of(lease).get_tuple(place(lease))
    assert found is not None
    assert {name: found.checkpoint["channel_values"][name] for name in state} == state


def test_writes_that_come_after_the_next_checkpoint_are_not_kept(tenant: Principal, bus: FakeBus) -> None:
    """LangGraph saves them beside it: those that lose belong to a checkpoint that is gone."""
    lease = running(tenant)
    saver = saver_of(lease, fresh=True)
    asking(saver).invoke({}, place(lease), durability="sync")
    waits = saver_of(lease).get_tuple(place(lease))
    assert waits is not None
    resumed = saver_of(lease)
    asking(resumed).invoke(Command(resume=True), place(lease), durability="sync")
    before = stored(lease)
    resumed.put_writes(waits.config, [("__resume__", [True])], str(uuid4()))
    assert stored(lease) == before
    now = saver_of(lease).get_tuple(place(lease))
    assert now is not None
    resumed.put_writes(now.config, [("__resume__", [True])], str(uuid4()))
    assert len(stored(lease)["checkpoint_writes"]) == 1


def test_what_comes_before_the_first_node_is_stored_only_for_what_depends_on_it(
    tenant: Principal, bus: FakeBus
) -> None:
    """The input alone is not worth a commit: it is given again. An interrupt of the first node needs its checkpoint."""
    one, two = running(tenant), running(tenant)
    begun: list[dict[str, Any]] = []

    def first(state: Held) -> dict[str, Any]:
        begun.append(stored(one))
        return {"dialogue": [PASSAGE]}

    graph = StateGraph(Held)
    graph.add_node("first", first)
    graph.add_edge(START, "first")
    graph.compile(checkpointer=saver_of(one, fresh=True)).invoke({"agreed": False}, place(one), durability="sync")
    assert begun == [{"checkpoints": [], "checkpoint_parts": [], "checkpoint_writes": []}]
    assert len(stored(one)["checkpoints"]) == 1

    def ask(state: Held) -> dict[str, Any]:
        return {"dialogue": [*state["dialogue"], str(interrupt("may I?"))]}

    graph = StateGraph(Held)
    graph.add_node("ask", ask)
    graph.add_edge(START, "ask")
    given: Held = {"dialogue": [PASSAGE]}
    graph.compile(checkpointer=saver_of(two, fresh=True)).invoke(given, place(two), durability="sync")
    state = graph.compile(checkpointer=saver_of(two)).invoke(Command(resume="yes"), place(two), durability="sync")
    assert state["dialogue"] == [PASSAGE, "yes"]


def test_a_whole_checkpoint_of_an_earlier_release_is_followed_by_one_in_parts(tenant: Principal, bus: FakeBus) -> None:
    """What it holds is read, and what follows takes its place."""
    lease = running(tenant)
    passages = [{"text": PASSAGE}]
    old: Checkpoint = empty_checkpoint() | {"channel_values": {"passages": passages}}
    old["channel_versions"] = {"passages": 1}
    Checkpointer(lease.tenant_id).put(place(lease), old, {"step": 0}, {"passages": 1})
    assert [row[1] for row in stored(lease)["checkpoints"]] == ["msgpack"]
    saver = saver_of(lease)
    found = saver.get_tuple(place(lease))
    assert found is not None
    assert found.checkpoint["channel_values"] == {"passages": passages}
    saver.put(found.config, empty_checkpoint() | {"channel_values": {"passages": passages}}, {"step": 1}, {})
    assert [row[1] for row in stored(lease)["checkpoints"]] == ["msgpack+parts"]
    found = saver_of(lease).get_tuple(place(lease))
    assert found is not None
    assert found.checkpoint["channel_values"] == {"passages": passages}


def test_parts_are_kept_only_by_who_holds_the_run(
    tenant: Principal, make_tenant: Callable[..., Principal], bus: FakeBus
) -> None:
    """A zombie's step is refused with all its parts, and a tenant never reads another's."""
    lease, other = running(tenant), make_tenant()
    values = empty_checkpoint() | {"channel_values": {"passages": [PASSAGE]}}
    with pytest.raises(Superseded):
        saver_of(replace(lease, epoch=0)).put(place(lease), values, {"step": 1}, {"passages": 1})
    assert stored(lease) == {"checkpoints": [], "checkpoint_parts": [], "checkpoint_writes": []}
    saver_of(lease).put(place(lease), values, {"step": 1}, {"passages": 1})
    assert stored(replace(lease, tenant_id=other.tenant_id))["checkpoint_parts"] == []
    assert Checkpointer(other.tenant_id).get_tuple(place(lease)) is None
    saver_of(lease).delete_thread(str(lease.run_id))
    assert stored(lease) == {"checkpoints": [], "checkpoint_parts": [], "checkpoint_writes": []}
