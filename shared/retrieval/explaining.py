"""Why a search found what it found: what filters took away, and where the database spent its time.

For operators and tests of a deployment: the search is run a second time under EXPLAIN ANALYZE, and the counts include
chunks that the member may not see. Doors for members do not offer it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session

from shared.retrieval.planning import pin_plans
from shared.retrieval.questions import Filters, checked_filters, checked_question
from shared.retrieval.ranking import DEFAULT, Tuning
from shared.retrieval.search import search_parameters
from shared.retrieval.spaces import Space
from shared.retrieval.statements import OF_VERSION, PERIOD, PRINCIPAL, search_sql

REASONS = ("state", "version", "access", "collection", "source", "metadata", "time", "language")

# The first reason that applies, in the order of REASONS; the conditions are those of rag.visible, one by one.
_FILTERED = f"""with {PRINCIPAL}
select case
    when d.state <> 'searchable' then 'state'
    when not {{answering}} then 'version'
    when not ((d.access_members = '{{{{}}}}' and d.access_groups = '{{{{}}}}')
              or d.access_members && p.members or d.access_groups && p.groups) or not {{of_version}} then 'access'
    when cardinality(p.collections) > 0 and not d.collection_id = any(cast(p.collections as uuid[])) then 'collection'
    when cardinality(cast(:sources as text[])) > 0 and not d.source = any(cast(:sources as text[])) then 'source'
    when cast(:about as jsonb) is not null and not d.metadata @> cast(:about as jsonb) then 'metadata'
    when d.updated_at < cast(:since as timestamptz) or d.updated_at >= cast(:until as timestamptz) then 'time'
    when cardinality(cast(:languages as text[])) > 0 and not c.language = any(cast(:languages as text[]))
        then 'language'
    else 'visible' end as reason, count(*) as chunks
from principal p, rag.chunk_terms c
join rag.documents d on d.tenant_id = :tenant and d.document_id = c.document_id
where c.tenant_id = :tenant
group by 1"""

# Which stage the time of a common table expression counts for; everything else is fusing and reading the result.
_STAGES = {
    "principal": "principal",
    "near_index": "approximate",
    "nearest": "approximate",
    "near": "approximate",
    "visible": "exact",
    "reading": "exact",
    "exact": "exact",
    "nearest_exactly": "exact",
    "lexical": "lexical",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """`filtered`: chunks of the tenant that were out of the question, by the first reason of REASONS that applies, and
    how many were `visible`. `stages`: milliseconds in the database: plan, principal, approximate, exact, lexical, fuse.
    """

    filtered: dict[str, int]
    stages: dict[str, float]


def explain(
    session: Session,
    tenant_id: UUID,
    member_id: UUID,
    space: Space,
    question: str,
    vector: Sequence[float],
    *,
    top_k: int = 5,
    filters: Filters | None = None,
    tuning: Tuning = DEFAULT,
) -> Explanation:
    """Explain the search with these arguments. Raises like `search_explained`."""
    chosen = checked_filters(filters or Filters())
    values = search_parameters(tenant_id, member_id, space, checked_question(question), vector, chosen, tuning)
    as_of = chosen.as_of is not None
    pin_plans(session)
    statement = search_sql(space.dimension, as_of=as_of)
    plan = session.execute(
        text(f"explain (analyze, format json) {statement.text}"), values | {"top_k": top_k}
    ).scalar_one()
    (root,) = json.loads(plan) if isinstance(plan, str) else plan
    counted = session.execute(_filtered_sql(as_of), values)
    found = {row.reason: row.chunks for row in counted}
    return Explanation({name: found.get(name, 0) for name in (*REASONS, "visible")}, stage_times(root))


def stage_times(explained: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of each stage out of EXPLAIN (ANALYZE, FORMAT JSON); they add up to planning and execution."""
    stages = dict.fromkeys(("plan", "principal", "approximate", "exact", "lexical", "fuse"), 0.0)
    root = explained["Plan"]
    for node in _nodes(root):
        name = str(node.get("Subplan Name", "")).removeprefix("CTE ")
        if name in _STAGES:
            stages[_STAGES[name]] += _own_time(node)
    stages["fuse"] = max(_time(root) - sum(stages.values()), 0.0)
    stages["plan"] = explained["Planning Time"]
    return {name: round(value, 2) for name, value in stages.items()}


def _own_time(node: dict[str, Any]) -> float:
    """Without what it read from other table expressions: the first who reads one pays for all of it."""
    inner = (_time(below) for below in _nodes(node) if below["Node Type"] == "CTE Scan")
    return max(_time(node) - sum(inner), 0.0)


def _time(node: dict[str, Any]) -> float:
    return float(node.get("Actual Total Time", 0.0)) * float(node.get("Actual Loops", 1))


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for below in node.get("Plans", ()):
        yield below
        yield from _nodes(below)


def _filtered_sql(as_of: bool) -> TextClause:
    then = f"exists (select from rag.answering_periods a where a.version_id = c.version_id and {PERIOD})"
    # Null where a document has no version that answers.
    answering = then if as_of else "coalesce(d.current_version_id = c.version_id, false)"
    of_version = (
        "exists (select from rag.versions v "
        f"where v.tenant_id = :tenant and v.version_id = c.version_id and {OF_VERSION})"
    )
    statement = _FILTERED.format(answering=answering, of_version=of_version if as_of else "true")
    return text(" ".join(statement.split()))
