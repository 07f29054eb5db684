"""The graph: contextualise → retrieve → reason → (act ↔ approve) → generate → verify → answer, or give up."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph

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


def build(work: Work, checkpointer: BaseCheckpointSaver[Any]) -> Any:
    """The compiled graph of one run."""
    graph = StateGraph(RunState)
    for name, node in NODES.items():
        graph.add_node(name, partial(_observed, name, node, work))
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
    return graph.compile(checkpointer=checkpointer)


def _observed(
    name: str, node: Callable[[Work, RunState], dict[str, Any]], work: Work, state: RunState
) -> dict[str, Any]:
    with tracing.span(name, observation=_OBSERVED.get(name, "chain")) as span:
        result = node(work, state)
        found = result.get("passages")
        span.set(decision=result.get("decision"), passages=None if found is None else len(found))
        return result


_OBSERVED = {"retrieve": "retriever", "act": "tool", "verify": "guardrail"}
"""What Langfuse calls them; the rest are links of the chain."""


def _decision(state: RunState) -> str:
    return state["decision"]
