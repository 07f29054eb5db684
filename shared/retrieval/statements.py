"""The SQL of a search: one statement, one round trip.

Dense candidates come from the tenant's own approximate index where it has one, exactly otherwise; exactly too when a
filter leaves few of them. Lexical candidates come from rag.lexical_candidates, a definer function, because a GIN index
is never used under row-level security (FACTS). The tenant stands in the query as well as in the policies: the planner
needs the value for the partial index and for statistics.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from uuid import UUID

from sqlalchemy import TextClause, text

from shared.documents.access import MAY_SEE_VERSION

# The version that answers, or did at a moment; `c` a chunk's terms, `d` its document, `a` a period of answering.
_NOW = "d.current_version_id = c.version_id"
# What answered then had an access list of its own, which may have been narrower than the document's is now.
_THEN = """exists (select from rag.answering_periods a join rag.versions v
       on v.tenant_id = a.tenant_id and v.version_id = a.version_id
       where a.version_id = c.version_id and {period} and {seen})"""
OF_VERSION = MAY_SEE_VERSION.format(members="p.members", groups="p.groups")
PERIOD = """a.tenant_id = :tenant and a.document_id = d.document_id and a.answering_from <= cast(:as_of as timestamptz)
       and (a.answering_until is null or a.answering_until > cast(:as_of as timestamptz))"""

# Visible to this member under these filters; `p` is the principal.
_SEEN = """d.tenant_id = :tenant and {answering}
       and rag.visible(d, p.members, p.groups, p.collections, cast(:sources as text[]), cast(:about as jsonb),
                       cast(:since as timestamptz), cast(:until as timestamptz))
       and (cardinality(cast(:languages as text[])) = 0 or c.language = any(cast(:languages as text[])))"""

PRINCIPAL = """principal as materialized (
    select array(select m.email from core.members m
                 where m.tenant_id = :tenant and m.member_id = :member) as members,
           array(select g.name from core.groups g join core.group_members gm
                  on gm.tenant_id = g.tenant_id and gm.group_id = g.group_id
                 where g.tenant_id = :tenant and gm.member_id = :member) as groups,
           array(select cast(k.collection_id as text) from rag.collections k
                 where k.tenant_id = :tenant and k.name = any(cast(:collections as text[]))) as collections
)"""

# The neighbours come in the order of their distance and are asked for one by one: with enough of them visible the rest
# is never read (LATERAL and OFFSET 0 leave no other order of the joins).
# set_config stands in the same one-time filter as the index's existence: it is in force before the scan begins, and
# ends with the transaction.
_NEAR = """near_index as materialized (
    select set_config('hnsw.ef_search', cast(:effort as text), true) is not null
           and set_config('ivfflat.probes', '32', true) is not null
           and exists (select from pg_catalog.pg_class r join pg_catalog.pg_index i on i.indexrelid = r.oid
                       where r.relname = :index and r.relnamespace = 'rag'::regnamespace and i.indisvalid) as usable
), nearest as materialized (
    select e.chunk_id, e.embedding::{kind}({dimension}) <=> cast(:vector as {kind}({dimension})) as distance
    from rag.embeddings e
    where e.tenant_id = :tenant and e.space_id = :space and (select usable from near_index)
    order by e.embedding::{kind}({dimension}) <=> cast(:vector as {kind}({dimension}))
    limit cast(:breadth as integer)
), near as materialized (
    select n.chunk_id, n.distance
    from nearest n
    cross join lateral (select c.document_id, c.version_id, c.language from rag.chunk_terms c
                        where c.tenant_id = :tenant and c.chunk_id = n.chunk_id offset 0) c
    cross join principal p
    cross join lateral (select from rag.documents d where d.document_id = c.document_id and {seen} offset 0) d
    limit :candidates
)"""

# Of few chunks each vector is looked up. Of many, in a corpus without an index, all vectors are read in the order of
# the key and those of visible chunks are kept: two thirds of the time. IS TRUE keeps that a subplan instead of a join,
# and the limit, which never cuts, a hashed one: what the planner takes to be larger than work_mem is not hashed.
MANY, MOST = 2_000, 20_000
_EXACT = """visible as materialized (
    select c.chunk_id
    from principal p
    join rag.documents d on d.tenant_id = :tenant
    {versions}
    where (select count(*) from near) < :candidates and {seen}
), reading as materialized (
    select (select count(*) from visible) between {many} and {most} and not (select usable from near_index) as whole
), exact as materialized (
    select e.chunk_id, e.distance
    from visible v
    cross join lateral (
        select e.chunk_id, e.embedding <=> cast(:vector as vector) as distance from rag.embeddings e
        where e.tenant_id = :tenant and e.space_id = :space and e.chunk_id = v.chunk_id offset 0) e
    where not (select whole from reading)
    union all
    select e.chunk_id, e.embedding <=> cast(:vector as vector)
    from rag.embeddings e
    where (select whole from reading) and e.tenant_id = :tenant and e.space_id = :space
      and (e.chunk_id in (select v.chunk_id from visible v limit {most})) is true
), nearest_exactly as materialized (
    select x.chunk_id, x.distance from exact x order by x.distance, x.chunk_id limit :candidates
)"""

_FUSED = """dense as materialized (
    select n.chunk_id, n.distance from nearest_exactly n
    union all
    select n.chunk_id, n.distance from near n where (select count(*) from near) >= :candidates
), lexical as materialized (
    select l.chunk_id, l.score, l.matched, l.expanded
    from principal p, rag.lexical_candidates(
        :question, :language, :foreign_weight, p.members, p.groups, p.collections, cast(:sources as text[]),
        cast(:languages as text[]), cast(:about as jsonb), cast(:since as timestamptz), cast(:until as timestamptz),
        array(select d.chunk_id from dense d), :candidates, cast(:as_of as timestamptz)) l
    where cast(:lexical_weight as float8) > 0
), ranked as (
    select coalesce(d.chunk_id, l.chunk_id) as chunk_id, d.distance, l.score as bm25,
           rank() over (order by d.distance nulls last) as dense_rank,
           rank() over (order by l.score desc nulls last) as lexical_rank
    from dense d full join lexical l on l.chunk_id = d.chunk_id
), fused as materialized (
    select r.chunk_id, r.bm25, r.dense_rank, r.lexical_rank, r.distance is not null as is_dense,
           coalesce(1 - coalesce(r.distance, e.distance), 0) as similarity,
           coalesce(r.distance, e.distance) is null as without_vector
    from ranked r
    left join lateral (
        select e.embedding <=> cast(:vector as vector) as distance from rag.embeddings e
        where r.distance is null and e.tenant_id = :tenant and e.space_id = :space and e.chunk_id = r.chunk_id
        offset 0) e on true
    {kept}
), scored as (
    select f.*, case when cast(:by_rank as boolean)
        then case when f.is_dense then 1.0 / (60 + f.dense_rank) else 0 end
             + case when f.bm25 is null then 0 else cast(:lexical_weight as float8) / (60 + f.lexical_rank) end
        else f.similarity + cast(:lexical_weight as float8) * coalesce(f.bm25, 0) end as score
    from fused f
), best as (
    select s.* from scored s order by s.score desc, s.chunk_id limit :top_k
)"""

_RESULT = """select b.chunk_id, c.version_id, c.document_id, d.title, d.external_id, c.text, c.heading_path, c.position,
       c.language, b.similarity, coalesce(b.bm25, 0) as bm25, b.score, g.*
from (select (select cardinality(collections) from principal) as collections_known,
             (select usable from near_index) as index_usable,
             case when (select count(*) from near) < :candidates
                  then (select count(*) from nearest) end as near_candidates,
             (select count(*) from near) as near_visible,
             (select count(*) from exact) as exact_scanned, (select count(*) from dense) as dense_candidates,
             (select count(*) from lexical) as lexical_candidates,
             coalesce((select max(matched) from lexical), 0) as lexical_matched,
             coalesce((select max(expanded) from lexical), 0) as lexical_expanded,
             (select count(*) from fused) as fused,
             (select count(*) from fused where without_vector) as without_vector) g
left join best b on true
left join rag.chunks c on c.tenant_id = :tenant and c.chunk_id = b.chunk_id
left join rag.documents d on d.tenant_id = :tenant and d.document_id = c.document_id
order by b.score desc, b.chunk_id"""


@lru_cache(maxsize=32)
def search_sql(dimension: int, *, as_of: bool = False) -> TextClause:
    """The statement for spaces of `dimension` numbers a vector: the approximate index is on that very type.

    `as_of` is the statement over the versions that answered at a moment. What was superseded before a campaign may
    have no vector in the space that answers today: its chunks are then found by their words alone.
    """
    seen = _SEEN.format(answering=_THEN.format(period=PERIOD, seen=OF_VERSION) if as_of else _NOW)
    versions = f"join rag.answering_periods a on {PERIOD}" if as_of else ""
    version = "a.version_id" if as_of else "d.current_version_id"
    versions += f" join rag.chunk_terms c on c.tenant_id = :tenant and c.version_id = {version}"
    parts = (
        PRINCIPAL,
        _NEAR.format(dimension=int(dimension), kind=vector_type(dimension), seen=seen),
        _EXACT.format(seen=seen, versions=versions, many=MANY, most=MOST),
        _FUSED.format(kept="" if as_of else "where coalesce(r.distance, e.distance) is not null"),
    )
    # pg8000 reads a statement character by character to find its parameters: indentation would cost a millisecond.
    return text(" ".join(("with " + ", ".join(parts) + " " + _RESULT).split()))


def vector_type(dimension: int) -> str:
    """The type that is indexed: indexes on `vector` end at 2,000 dimensions, on `halfvec` at 4,000 (pgvector 0.8)."""
    return "vector" if dimension <= 2_000 else "halfvec"


def index_name(tenant_id: UUID, space_id: UUID) -> str:
    """Name of the approximate index of a tenant in a space, without the schema."""
    return f"embeddings_near_{sha256(tenant_id.bytes + space_id.bytes).hexdigest()[:24]}"
