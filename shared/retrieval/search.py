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
from shared.retrieval.questions import (
    Filters,
    checked_filters,
    checked_question,
    checked_vector,
    language_of,
    metadata_json,
)
from shared.retrieval.spaces import Space
from shared.retrieval.statements import index_name, search_sql

MOST_RESULTS = 100


@dataclass(frozen=True, slots=True)
class Tuning:
    """How candidates are found and fused; the defaults are measured (docs/retrieval.md).

    `candidates` of each channel; `breadth` is how many neighbours are looked at before visibility, `effort` is
    hnsw.ef_search;
    `lexical_weight` times BM25 is added to the cosine (None: the space's own), `foreign_weight` is what is left of it
    when chunk and question differ in language. `by_rank` fuses by weighted reciprocal rank instead of scores.
    """

    candidates: int = 50
    breadth: int = 400
    effort: int = 400
    lexical_weight: float | None = None
    foreign_weight: float = 0.4
    by_rank: bool = False


DEFAULT = Tuning()

_LEXICAL_WEIGHTS = {"use-v3": 0.05, "e5-small": 0.01}
"""What a point of BM25 is worth in cosine. Models differ in the range that cosines use (FACTS: unrelated to translated
text .27 to .85 for USE, .80 to .92 for e5); the weight follows that range."""
_LEXICAL_WEIGHT = 0.03


def lexical_weight(space: Space) -> float:
    """What a point of BM25 is worth in cosine of this space."""
    return _LEXICAL_WEIGHTS.get(space.model, _LEXICAL_WEIGHT)


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk that was found.

    `similarity` is the cosine to the question in the space, -1 to 1; `bm25` its lexical score, 0 and more; `score`
    what it was ranked by.
    """

    chunk_id: UUID
    version_id: UUID
    document_id: UUID
    title: str
    text: str
    heading_path: tuple[str, ...]
    position: dict[str, Any]
    similarity: float
    score: float
    bm25: float = 0.0
    language: str = "simple"
    external_id: str = ""


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """How a search came to its result; counts are chunks of this tenant only.

    `dense_method` is `index` (the tenant's approximate index), `exact`, or `exact-after-index` (a filter left fewer
    than `candidates` of the neighbours looked at, so all visible chunks were compared). `hidden` neighbours were
    dropped because of state, access or filters. `milliseconds` is the round trip as the caller sees it.
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
    language: str
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Search:
    """Passages, best first, and how they were found."""

    passages: list[Passage]
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

    `vector` is the question's in `space`. Withdrawn documents and superseded versions never appear.
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
    rows = session.execute(search_sql(space.dimension), values | {"top_k": top_k}).all()
    took = (time.perf_counter() - started) * 1000
    if rows[0].collections_known < len(set(chosen.collections)):
        raise PermanentError(
            "unknown-collection", "There is no such collection.", "Choose one of the tenant's collections."
        )
    passages = [_passage(row) for row in rows if row.chunk_id is not None]
    return Search(passages, _diagnostics(rows[0], space, values, took))


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
    weight = tuning.lexical_weight
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
        "candidates": tuning.candidates,
        "breadth": tuning.breadth,
        "effort": tuning.effort,
        "lexical_weight": lexical_weight(space) if weight is None else weight,
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
        language=values["language"],
        milliseconds=round(took, 2),
    )
