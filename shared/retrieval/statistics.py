"""Statistics of a tenant's corpus for lexical search: size, mean length, and in how many chunks common terms are.

For operators. A tenant without statistics is searched rightly, only with more work; index care refreshes them.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

RARE = 100
"""Terms in fewer chunks have no row: they are counted when they are asked for (`rag.lexical_candidates` assumes so)."""

SMALL = 1_000
"""Chunks below which statistics are not worth their rows: counting everything takes a millisecond."""


def stale(operator: Session) -> list[UUID]:
    """Tenants whose statistics are missing, a tenth off, or a week old; largest corpus first."""
    rows = operator.execute(
        text(
            "select c.tenant_id from (select tenant_id, count(*) as chunks from rag.chunk_terms group by tenant_id) c "
            "left join rag.corpus_statistics s on s.tenant_id = c.tenant_id "
            "where (c.chunks >= :small or s.tenant_id is not null) and (s.tenant_id is null "
            "or abs(c.chunks - s.chunks) > 0.1 * s.chunks or s.refreshed_at < now() - interval '7 days') "
            "order by c.chunks desc"
        ),
        {"small": SMALL},
    )
    return [row.tenant_id for row in rows]


def refresh(operator: Session, tenant_id: UUID) -> int:
    """Count a tenant's corpus anew; returns how many terms are common. Some 15 s for 100,000 chunks."""
    operator.execute(text("delete from rag.term_statistics where tenant_id = :tenant"), {"tenant": tenant_id})
    counted = operator.execute(
        text(
            "insert into rag.term_statistics (tenant_id, term, chunks) "
            "select :tenant, t.term, count(*) from rag.chunk_terms c cross join lateral unnest(c.terms) t(term) "
            "where c.tenant_id = :tenant group by t.term having count(*) >= :rare"
        ),
        {"tenant": tenant_id, "rare": RARE},
    )
    operator.execute(
        text(
            "insert into rag.corpus_statistics (tenant_id, chunks, average_length) "
            "select :tenant, count(*), coalesce(avg(length), 0) from rag.chunk_terms where tenant_id = :tenant "
            "on conflict (tenant_id) do update set chunks = excluded.chunks, "
            "average_length = excluded.average_length, refreshed_at = now()"
        ),
        {"tenant": tenant_id},
    )
    common: int = counted.rowcount  # type: ignore[attr-defined]
    return common


def prune(operator: Session, tenant_id: UUID) -> int:
    """Forget the words that no chunk of the tenant has any more; returns how many. Erasure calls it too."""
    gone = operator.execute(
        text(
            "delete from rag.vocabulary v where v.tenant_id = :tenant and not exists ("
            "select from rag.chunk_terms c "
            "where c.terms @> array[rag.term(v.tenant_id, 1, v.language, v.stem)] and c.tenant_id = v.tenant_id)"
        ),
        {"tenant": tenant_id},
    )
    words: int = gone.rowcount  # type: ignore[attr-defined]
    return words
