"""Search: dense and lexical candidates of what a member may see, fused by their scores, in one round trip.

Dense is the cosine in the tenant's vector space, exact or by the tenant's own approximate index; lexical is BM25 over
stems in the chunk's language with compounds and typing errors (`schema/rag/r0002`). Access, state and filters are
decided before any limit. How and why: docs/retrieval.md, docs/decisions/0010.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Row
from sqlalchemy.orm import Session

from shared.database import array_literal, vector_literal
from shared.errors import PermanentError
from shared.retrieval.evidence import Evidence, weigh
from shared.retrieval.passages import Passage
from shared.retrieval.planning import pin_plans
from shared.retrieval.questions import (
    Filters,
    checked_filters,
    checked_question,
    checked_vector,
    language_of,
    metadata_json,
)
from shared.retrieval.ranking import DEFAULT, Tuning, lexical_weight
from shared.retrieval.spaces import Space
from shared.retrieval.statements import index_name, search_sql

MOST_RESULTS = 100


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """How a search came to its result; counts are chunks of this tenant only.

    `dense_method` is `index` (the tenant's approximate index), `exact`, or `exact-after-index` (a filter left fewer
    than `candidates` of the neighbours looked at, so all visible chunks were compared). `hidden` neighbours were
    dropped because of state, access or filters. `without_vector` candidates have no vector in the space (only with
    `as_of`: what was superseded before a campaign). `milliseconds` is the round trip as the caller sees it.
    """

    space: str
    dense_method: Literal["index", "exact", "exact-after-index"]
    index: str | None
    dense_candidates: int
    exact_compared: int
    hidden: int
    lexical_matched: int
    lexical_candidates: int
    expanded_words: int
    fused: int
    without_vector: int
    language: str
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Search:
    """Passages, best first, what they are worth as evidence, and how they were found."""

    passages: list[Passage]
    evidence: Evidence
    diagnostics: Diagnostics


def search(
    session: Session,
    tenant_id: UUID,
    member_id: UUID,
    space: Space,
    question: str,
    vector: Sequence[float],
    *,
    top_k: int = 5,
    collections: Sequence[str] = (),
    filters: Filters | None = None,
) -> list[Passage]:
    """The passages of searchable documents this member may see, best first; at most `top_k`.

    `vector` is the question's in `space`. Withdrawn documents and superseded versions never appear, the latter only
    when the filters ask for the time in which they answered.
    Raises PermanentError as `search_explained`.
    """
    chosen = filters or Filters(collections=collections)
    return search_explained(
        session, tenant_id, member_id, space, question, vector, top_k=top_k, filters=chosen
    ).passages


def search_explained(
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
) -> Search:
    """Search and say how.

    Raises PermanentError `empty-question`, `question-too-long`, `bad-characters`, `wrong-vector`, `bad-filter`,
    `bad-top-k`, and `unknown-collection`, which is the same for another tenant's collection as for none. Another
    tenant's or an unknown member sees what is open to every member of the session's tenant; ids are never echoed.
    """
    chosen = checked_filters(filters or Filters())
    if not 1 <= top_k <= MOST_RESULTS:
        raise PermanentError("bad-top-k", f"top_k must be 1 to {MOST_RESULTS}.", "Ask for fewer passages.")
    values = search_parameters(tenant_id, member_id, space, checked_question(question), vector, chosen, tuning)
    started = time.perf_counter()
    pin_plans(session)
    statement = search_sql(space.dimension, as_of=chosen.as_of is not None)
    rows = session.execute(statement, values | {"top_k": top_k}).all()
    took = (time.perf_counter() - started) * 1000
    if rows[0].collections_known < len(set(chosen.collections)):
        raise PermanentError(
            "unknown-collection", "There is no such collection.", "Choose one of the tenant's collections."
        )
    passages = [_passage(row) for row in rows if row.chunk_id is not None]
    return Search(passages, weigh(passages, space), _diagnostics(rows[0], space, values, took))


def search_parameters(
    tenant_id: UUID,
    member_id: UUID,
    space: Space,
    question: str,
    vector: Sequence[float],
    filters: Filters,
    tuning: Tuning,
) -> dict[str, Any]:
    """The parameters of the statement, everything but `top_k`. Raises like `search_explained`."""
    weight = lexical_weight(space) if tuning.lexical_weight is None else tuning.lexical_weight
    language = language_of(question)
    return {
        "tenant": tenant_id,
        "member": member_id,
        "space": space.space_id,
        "index": index_name(tenant_id, space.space_id),
        "question": question,
        "language": language,
        "vector": vector_literal(checked_vector(vector, space.dimension)),
        "collections": array_literal(filters.collections),
        "sources": array_literal(filters.sources),
        "languages": array_literal(filters.languages),
        "about": metadata_json(filters.metadata),
        "since": filters.since,
        "until": filters.until,
        "as_of": filters.as_of,
        "candidates": tuning.candidates,
        "breadth": tuning.breadth,
        "effort": tuning.effort,
        "lexical_weight": weight * (tuning.keyword_weight if language == "simple" else 1.0),
        # A question without function words ("Mindesturlaub Werktage") may be in any language.
        "foreign_weight": 1.0 if language == "simple" else tuning.foreign_weight,
        "by_rank": tuning.by_rank,
    }


def _passage(row: Row[Any]) -> Passage:
    return Passage(
        row.chunk_id,
        row.version_id,
        row.document_id,
        row.title,
        row.text,
        tuple(row.heading_path),
        row.position,
        float(row.similarity),
        float(row.score),
        float(row.bm25),
        row.language,
        row.external_id,
    )


def _diagnostics(row: Row[Any], space: Space, values: dict[str, Any], took: float) -> Diagnostics:
    by_index = row.index_usable and row.near_visible >= values["candidates"]
    return Diagnostics(
        space=space.name,
        dense_method="index" if by_index else "exact-after-index" if row.index_usable else "exact",
        index=values["index"] if row.index_usable else None,
        dense_candidates=row.dense_candidates,
        exact_compared=row.exact_scanned,
        hidden=row.near_candidates - row.near_visible if row.near_visible < values["candidates"] else 0,
        lexical_matched=row.lexical_matched,
        lexical_candidates=row.lexical_candidates,
        expanded_words=row.lexical_expanded,
        fused=row.fused,
        without_vector=row.without_vector,
        language=values["language"],
        milliseconds=round(took, 2),
    )
