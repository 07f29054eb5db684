"""The recall probe: what a tenant's approximate index finds, beside exact search over the same vectors."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import vector_literal
from shared.retrieval.indexes import Corpus
from shared.retrieval.ranking import DEFAULT
from shared.retrieval.statements import vector_type

PROBES = 50
RECALL_AT = 10


@dataclass(frozen=True, slots=True)
class Recall:
    """recall@10 over `queries` probes, 0 to 1."""

    queries: int
    mean: float
    worst: float


def probe(operator: Session, corpus: Corpus, *, queries: int = PROBES, effort: int = DEFAULT.effort) -> Recall:
    """Measure and store. A probe is the middle between two random chunks: a place where no chunk lies, as a question.

    A tenant without an index is exact and has recall 1 by construction; that is stored too.
    """
    method = _method(operator, corpus)
    found = Recall(0, 1.0, 1.0) if method == "exact" else measure(operator, corpus, queries=queries, effort=effort)
    operator.execute(
        text(
            "insert into rag.recall_probes (tenant_id, space_id, queries, mean, worst, method) "
            "values (:tenant, :space, :queries, :mean, :worst, :method)"
        ),
        {
            "tenant": corpus.tenant_id,
            "space": corpus.space_id,
            "queries": found.queries,
            "mean": found.mean,
            "worst": found.worst,
            "method": method,
        },
    )
    return found


def measure(operator: Session, corpus: Corpus, *, queries: int = PROBES, effort: int = DEFAULT.effort) -> Recall:
    """recall@10 of the index against exact search, without storing it."""
    kind, size = vector_type(corpus.dimension), corpus.dimension
    ids = {"tenant": corpus.tenant_id, "space": corpus.space_id}
    operator.execute(text("select set_config('hnsw.ef_search', :effort, true)"), {"effort": str(effort)})
    operator.execute(text("select set_config('ivfflat.probes', '32', true)"))
    # The index is what is measured: with fresh statistics the planner may find comparing all cheaper in a small corpus.
    operator.execute(text("select set_config('enable_sort', 'off', true)"))
    middles = operator.execute(
        text(
            "with chosen as (select embedding, row_number() over () as place from (select embedding "
            "from rag.embeddings where tenant_id = :tenant and space_id = :space order by random() limit :n) x) "
            "select cast(cast(a.embedding + b.embedding as vector) as text) from chosen a "
            "join chosen b on b.place = a.place + 1 where mod(a.place, 2) = 1"
        ),
        ids | {"n": queries * 2},
    ).scalars()
    recalls = []
    for middle in middles.all():
        values = ids | {"vector": vector_literal(map(float, middle.strip("[]").split(","))), "k": RECALL_AT}
        near = operator.scalars(
            text(
                "select embedding <=> cast(:vector as vector) from rag.embeddings "
                "where tenant_id = :tenant and space_id = :space "
                f"order by embedding::{kind}({size}) <=> cast(:vector as {kind}({size})) limit :k"
            ),
            values,
        ).all()
        exact = operator.scalars(
            text(
                "select embedding <=> cast(:vector as vector) from rag.embeddings "
                "where tenant_id = :tenant and space_id = :space "
                "order by (embedding <=> cast(:vector as vector)) + 0 limit :k"
            ),
            values,
        ).all()
        # By distance: of equal chunks (versions share texts, forms share paragraphs) each is as right as the other.
        found = sum(distance <= exact[-1] for distance in near) if exact else 0
        recalls.append(found / max(len(exact), 1))
    operator.execute(text("select set_config('enable_sort', 'on', true)"))
    return Recall(len(recalls), sum(recalls) / len(recalls), min(recalls)) if recalls else Recall(0, 1.0, 1.0)


def _method(operator: Session, corpus: Corpus) -> str:
    """`hnsw` or `ivfflat`; `exact` where there is no valid index now, whatever was there when the corpus was listed."""
    found: str | None = operator.execute(
        text(
            "select a.amname from pg_class r join pg_am a on a.oid = r.relam join pg_index i on i.indexrelid = r.oid "
            "where r.relname = :index and r.relnamespace = 'rag'::regnamespace and i.indisvalid"
        ),
        {"index": corpus.index},
    ).scalar()
    return found or "exact"
