"""The graph: contextualise → retrieve → reason → (act ↔ approve) → generate → verify → answer, or give up."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import lru_cache, partial
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from functions.agent.deciding import act, approve, reason
from functions.agent.nodes import check, finish, generate, give_up, retrieve
from functions.agent.remembering import contextualise
from functions.agent.state import RunState
from functions.agent.work import Work
from shared import tracing

NODES: dict[str, Callable[[Work, RunState], dict[str, Any]]] = {
    "contextualise": contextualise,
    "retrieve": retrieve,
    "reason": reason,
    "approve": approve,
    "act": act,
    "generate": generate,
    "verify": check,
    "answer": finish,
    "give_up": give_up,
}
"""Names are stored with checkpoints: never rename one, and keep what led out of it."""


def build(checkpointer: BaseCheckpointSaver[Any]) -> Any:
    """The graph with the checkpoints of one run; invoke it with the run's `Work` as `context`.

    A shallow copy: a Pregel changes nothing of itself when it runs, and where it stores is its only part that differs.
    """
    graph = copy(_compiled())
    graph.checkpointer = checkpointer
    return graph


@lru_cache(maxsize=1)
def _compiled() -> Any:
    """The graph, compiled once a process.

    Compiling took a seventh of the CPU of a question. And LangGraph keeps what it works out about a node in
    functools.cached_property, which in Python 3.11 has one lock for all objects of the class: with a graph for every
    run, runs that began together waited for each other at every step.
    """
    graph = StateGraph(RunState, context_schema=Work)
    for name in NODES:
        graph.add_node(name, partial(_observed, name))
    graph.add_edge(START, "contextualise")
    graph.add_edge("contextualise", "retrieve")
    graph.add_edge("retrieve", "reason")
    graph.add_conditional_edges("reason", _decision, ["retrieve", "approve", "act", "generate", "verify", "give_up"])
    graph.add_edge("approve", "act")
    graph.add_edge("act", "reason")
    graph.add_edge("generate", "verify")
    graph.add_conditional_edges("verify", _decision, ["generate", "answer"])
    graph.add_edge("answer", END)
    graph.add_edge("give_up", END)
    return graph.compile()


def _observed(name: str, state: RunState, runtime: Runtime[Work]) -> dict[str, Any]:
    with tracing.span(name, observation=_OBSERVED.get(name, "chain")) as span:
        result = NODES[name](runtime.context, state)
        found = result.get("passages")
        span.set(decision=result.get("decision"), passages=None if found is None else len(found))
        return result


_OBSERVED = {"retrieve": "retriever", "act": "tool", "verify": "guardrail"}
"""What Langfuse calls them; the rest are links of the chain."""


def _decision(state: RunState) -> str:
    return state["decision"]
