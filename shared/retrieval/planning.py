"""How the planner goes about a search: always the same way, by indexes that begin with the tenant.

Left alone it goes by the statistics of whole tables, and those are everybody's: beside a large neighbour a small tenant
was searched by another plan (measured: sequential and bitmap scans, hash joins over all vectors of the tenant). With
these settings every table is read through an index bound to the tenant, joined as the statement is written; what is
left to statistics is which of several such indexes is taken. docs/retrieval.md, Isolation. The lexical channel keeps
settings of its own (migration r0006): a GIN index is only read by bitmap scans, and its terms carry the tenant.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

_OFF = (
    "enable_seqscan",
    "enable_bitmapscan",
    "enable_hashjoin",
    "enable_mergejoin",
    "enable_material",
    "enable_memoize",
    "enable_incremental_sort",
    "enable_sort",  # only where something else gives the order: an approximate index that is there is used
)
_VALUES = dict.fromkeys(_OFF, "off") | {
    "max_parallel_workers_per_gather": "0",
    "join_collapse_limit": "1",
    "from_collapse_limit": "1",
}
_PIN = text("select " + ", ".join(f"set_config('{name}', '{value}', true)" for name, value in _VALUES.items()))


def pin_plans(session: Session) -> None:
    """Plan the rest of the transaction's statements like this. They should be searches: it suits nothing else."""
    session.execute(_PIN)


def plan_shape(explained: dict[str, Any]) -> tuple[Any, ...]:
    """What a plan does, out of EXPLAIN (FORMAT JSON): kinds of nodes and the tables they read, sorted.

    Without costs, row estimates, which of equal indexes and which side of a nested loop comes first: those follow
    statistics and change nothing about whose rows are read.
    """
    return tuple(
        sorted(
            (node["Node Type"].replace("Only ", ""), node.get("Relation Name", ""), node.get("Join Type", ""))
            for node in plan_nodes(explained)
        )
    )


def plan_nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
    """A plan's nodes, from above."""
    return [node, *(below for child in node.get("Plans", ()) for below in plan_nodes(child))]
