"""The graph: retrieve, then generate and verify, or give up when there is nothing to read."""

from __future__ import annotations

from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph

from functions.agent.nodes import Nodes
from functions.agent.state import RunState


def build(nodes: Nodes, checkpointer: BaseCheckpointSaver[Any]) -> Any:
    """The compiled graph of one run. Node names are stored with checkpoints: never rename one."""
    graph = StateGraph(RunState)
    graph.add_node("retrieve", nodes.retrieve)
    graph.add_node("generate", nodes.generate)
    graph.add_node("verify", nodes.verify)
    graph.add_node("give_up", nodes.give_up)
    graph.add_edge(START, "retrieve")
    graph.add_conditional_edges("retrieve", _enough, ["generate", "give_up"])
    graph.add_edge("generate", "verify")
    graph.add_edge("verify", END)
    graph.add_edge("give_up", END)
    return graph.compile(checkpointer=checkpointer)


def _enough(state: RunState) -> str:
    return "generate" if state["passages"] else "give_up"
