"""A tenant's corpus, a neighbour full of near-copies of it, and everything a tenant can see of its searches."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text

from benchmarks.retrieval_corpus import Piece, load
from shared.database import tenant_session
from shared.retrieval.planning import pin_plans, plan_nodes, plan_shape
from shared.retrieval.questions import Filters
from shared.retrieval.ranking import DEFAULT
from shared.retrieval.search import search_explained, search_parameters
from shared.retrieval.spaces import Space, active_space
from shared.retrieval.statements import search_sql
from shared.tenants.directory import Principal

Vectors = NDArray[np.float32]
SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "zu")
FILTERS = (Filters(), Filters(languages=("de",)), Filters(sources=("upstream",)), Filters(collections=("default",)))


@dataclass(frozen=True)
class Probe:
    """A question, its vector and its filters."""

    question: str
    vector: list[float]
    filters: Filters


@dataclass(frozen=True)
class Seen:
    """What a search shows, and how it was planned."""

    result: tuple[Any, ...]
    shape: tuple[Any, ...]
    scans: tuple[tuple[str, str, str], ...]
    """Node type, table and condition of whatever reads a table of tenants."""
    milliseconds: float


def words(count: int) -> list[str]:
    """Made-up words, some parts of others, so that compounds and typing errors have something to find."""
    made = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES]
    return (made + [a + b for a, b in zip(made, reversed(made), strict=True)])[:count]


def corpus(chunks: int, dimension: int, seed: int) -> tuple[list[Piece], Vectors]:
    """Chunks of words as unevenly frequent as those of a language, three a document, with random vectors."""
    dice, known = random.Random(seed), words(3_000)
    frequency = [1 / (rank + 10) for rank in range(len(known))]
    pieces = [
        Piece(f"{seed}-{number // 3}", "de" if number % 4 else "en", " ".join(dice.choices(known, frequency, k=25)))
        for number in range(chunks)
    ]
    return pieces, unit(np.random.default_rng(seed).standard_normal((chunks, dimension)))


def neighbour(pieces: Sequence[Piece], vectors: Vectors, chunks: int, seed: int) -> tuple[list[Piece], Vectors]:
    """A corpus whose first half are copies of another's chunks, every second with one word changed."""
    others, other_vectors = corpus(chunks, vectors.shape[1], seed)
    dice, noise = random.Random(seed), np.random.default_rng(seed)
    for number in range(chunks // 2):
        original = pieces[number % len(pieces)]
        changed = original.text.split()
        if number % 2:
            changed[dice.randrange(len(changed))] = "neu"
        others[number] = Piece(others[number].document, original.language, " ".join(changed))
        other_vectors[number] = vectors[number % len(pieces)] + 0.01 * noise.standard_normal(vectors.shape[1])
    return others, unit(other_vectors)


def unit(rows: NDArray[Any]) -> Vectors:
    """Rows of length 1."""
    found: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return found


def probes(pieces: Sequence[Piece], vectors: Vectors, count: int) -> list[Probe]:
    """Questions of every kind: words of a chunk, common ones only, one with a typing error, parts of words."""
    dice, made = random.Random(99), []
    for number in range(count):
        at = dice.randrange(len(pieces))
        asked = pieces[at].text.split()[:6]
        if number % 4 == 1:
            asked = words(4)
        elif number % 4 == 2:
            asked[0] = asked[0][:2] + asked[0][3:]
        elif number % 4 == 3:
            asked = [word[:5] for word in asked]
        vector = unit(vectors[at : at + 1] + 0.03 * np.random.default_rng(number).standard_normal(vectors.shape[1]))
        made.append(Probe(" ".join(asked), vector[0].tolist(), FILTERS[number // 4 % len(FILTERS)]))
    return made


def put(tenant: Principal, pieces: Sequence[Piece], vectors: Vectors) -> Space:
    """Make it the tenant's searchable corpus."""
    with tenant_session(tenant.tenant_id) as session:
        space = active_space(session, tenant.tenant_id)
    load(tenant, space, pieces, vectors)
    return space


def take_away(tenant: Principal) -> None:
    """Delete all documents of the tenant, some at a time: all at once takes longer than a statement may."""
    gone = 1
    while gone:
        with tenant_session(tenant.tenant_id) as session:
            some = "select document_id from rag.documents order by document_id limit 200"
            session.execute(
                text(
                    "update rag.documents set current_version_id = null, state = 'deleted' "
                    f"where document_id in ({some})"
                )
            )
            deleted = session.execute(
                text(f"delete from rag.documents where document_id in ({some}) returning document_id")
            )
            gone = len(deleted.all())


def look(who: Principal, space: Space, asked: Sequence[Probe]) -> list[Seen]:
    """Search every probe as `who` and explain how."""
    seen = []
    for probe in asked:
        with tenant_session(who.tenant_id) as session:
            found = search_explained(
                session, who.tenant_id, who.member_id, space, probe.question, probe.vector, top_k=10,
                filters=probe.filters,
            )  # fmt: skip
            pin_plans(session)
            values = search_parameters(
                who.tenant_id, who.member_id, space, probe.question, probe.vector, probe.filters, DEFAULT
            )
            plan = session.execute(
                text(f"explain (format json) {search_sql(space.dimension).text}"), values | {"top_k": 10}
            ).scalar_one()
        (root,) = json.loads(plan) if isinstance(plan, str) else plan
        counts = [getattr(found.diagnostics, name) for name in found.diagnostics.__slots__ if name != "milliseconds"]
        scans = tuple(
            (node["Node Type"], node["Relation Name"], node.get("Index Cond", node["Index Name"]))
            if "Index Name" in node
            else (node["Node Type"], node["Relation Name"], "")
            for node in plan_nodes(root["Plan"])
            if "Relation Name" in node and not node["Relation Name"].startswith("pg_")
        )
        result = (tuple(found.passages), found.evidence, tuple(counts))
        seen.append(Seen(result, plan_shape(root["Plan"]), scans, found.diagnostics.milliseconds))
    return seen
