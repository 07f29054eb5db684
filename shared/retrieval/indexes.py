"""Approximate indexes: one for each large tenant and space, built and dropped without blocking anybody.

Partial, so that no tenant's recall or time depends on another's rows (FACTS: a shared index with a tenant filter
reaches recall 0.26-0.54). Small tenants are searched exactly. DDL belongs to the owner of the tables, hence a
connection of its own; CONCURRENTLY cannot run in a transaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from shared.retrieval.statements import index_name, vector_type

BUILD_FROM = 10_000
"""Vectors. Exact search takes 3-7 ms over 2,000, 50-80 over 28,000; an index slows writing 20 times (FACTS)."""

DROP_BELOW = 7_000
"""Below BUILD_FROM, so that a tenant around it does not build and drop in turns."""

PATIENCE = "15min"
"""How long DDL waits CONCURRENTLY for transactions that began before it, of whatever tenant and table: longer than any
of ours (a recall probe, a count of statistics take minutes). Meanwhile it blocks neither reads nor writes."""

IMPATIENCE = "5s"
"""How long other DDL waits for a lock: everybody who comes after it waits behind it."""

Method = Literal["hnsw", "ivfflat"]


@dataclass(frozen=True, slots=True)
class Corpus:
    """The vectors of a tenant in a space, and whether they have a valid index."""

    tenant_id: UUID
    space_id: UUID
    dimension: int
    vectors: int
    indexed: bool

    @property
    def index(self) -> str:
        """Name of the index, there or not."""
        return index_name(self.tenant_id, self.space_id)


@dataclass(frozen=True, slots=True)
class Standing:
    """An operator's look at a tenant's vectors in a space.

    `method` is None without an index; `valid` is False for what a build left that failed or is still going on. `size`
    is bytes on disk. `mean` and `worst` are recall@10 of the last probe. `advice` is what index care would do.
    """

    corpus: Corpus
    tenant: str
    space: str
    method: str | None
    valid: bool
    size: int
    probed_at: datetime | None
    mean: float | None
    worst: float | None
    advice: Literal["build", "drop", "keep", "search exactly"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What index care would do."""

    build: list[Corpus]
    drop: list[Corpus]


def corpora(operator: Session) -> list[Corpus]:
    """Every tenant's vectors by space, largest first; spaces that are being dropped are none. For operators."""
    valid = set(
        operator.scalars(
            text(
                "select r.relname from pg_class r join pg_index i on i.indexrelid = r.oid "
                "where r.relnamespace = 'rag'::regnamespace and r.relname like 'embeddings\\_near\\_%' and i.indisvalid"
            )
        )
    )
    rows = operator.execute(
        text(
            "select e.tenant_id, e.space_id, s.dimension, count(*) as vectors from rag.embeddings e "
            "join rag.vector_spaces s on s.space_id = e.space_id join rag.tenant_spaces t "
            "on t.tenant_id = e.tenant_id and t.space_id = e.space_id and t.state <> 'retired' "
            "group by 1, 2, 3 order by 4 desc, 1, 2"
        )
    )
    return [
        Corpus(
            row.tenant_id, row.space_id, row.dimension, row.vectors, index_name(row.tenant_id, row.space_id) in valid
        )
        for row in rows
    ]


def plan(found: list[Corpus], *, build_from: int = BUILD_FROM, drop_below: int = DROP_BELOW) -> Plan:
    """Which indexes are missing and which are no longer worth their upkeep."""
    return Plan(
        [corpus for corpus in found if corpus.vectors >= build_from and not corpus.indexed],
        [corpus for corpus in found if corpus.vectors < drop_below and corpus.indexed],
    )


def standings(operator: Session) -> list[Standing]:
    """Every tenant's vectors by space with their index and their last probe, largest first. For operators."""
    found = corpora(operator)
    care = plan(found)
    rows = operator.execute(
        text(
            "select t.tenant_id, u.space_id, t.slug, s.name, p.probed_at, p.mean, p.worst from core.tenants t "
            "join rag.tenant_spaces u on u.tenant_id = t.tenant_id join rag.vector_spaces s on s.space_id = u.space_id "
            "left join lateral (select * from rag.recall_probes p where p.tenant_id = u.tenant_id "
            "and p.space_id = u.space_id order by p.probed_at desc limit 1) p on true"
        )
    )
    about = {(row.tenant_id, row.space_id): row for row in rows}
    made = {
        row.relname: row
        for row in operator.execute(
            text(
                "select r.relname, a.amname, i.indisvalid, pg_relation_size(r.oid) as bytes from pg_class r "
                "join pg_am a on a.oid = r.relam join pg_index i on i.indexrelid = r.oid "
                "where r.relnamespace = 'rag'::regnamespace and r.relname like 'embeddings\\_near\\_%'"
            )
        )
    }
    listed = []
    for corpus in found:
        row, index = about[corpus.tenant_id, corpus.space_id], made.get(corpus.index)
        advice: Literal["build", "drop", "keep", "search exactly"] = "keep" if corpus.indexed else "search exactly"
        advice = "build" if corpus in care.build else "drop" if corpus in care.drop else advice
        method, valid, size = (index.amname, index.indisvalid, index.bytes) if index else (None, False, 0)
        probe = (row.probed_at, row.mean, row.worst)
        listed.append(Standing(corpus, row.slug, row.name, method, valid, size, *probe, advice))
    return listed


@contextmanager
def owner_connection(url: str) -> Iterator[Connection]:
    """A connection of the owner without transactions, for index DDL. `url` is MIGRATION_DATABASE_URL."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("set maintenance_work_mem = '512MB'")
            connection.exec_driver_sql(f"set lock_timeout = '{IMPATIENCE}'")
            yield connection
    finally:
        engine.dispose()


def concurrently(owner: Connection, statement: str) -> None:
    """Execute DDL that blocks nobody while it waits for locks: the few seconds of other DDL would end every build that
    meets a longer transaction, after all of its work."""
    owner.exec_driver_sql(f"set lock_timeout = '{PATIENCE}'")
    try:
        owner.exec_driver_sql(statement)
    finally:
        owner.exec_driver_sql(f"set lock_timeout = '{IMPATIENCE}'")


def build(owner: Connection, corpus: Corpus, method: Method = "hnsw") -> None:
    """Build the index beside reads and writes. What a failed build left (INVALID) is removed first.

    HNSW with twice pgvector's m = 16 and ef_construction = 64: near-duplicates make islands that a walk over fewer
    links does not reach (worst query .1 against 1.0, docs/retrieval.md);
    IVFFLAT with lists = rows / 1000 (pgvector's README) for who needs quick builds.
    """
    kind = vector_type(corpus.dimension)
    options = f"lists = {max(corpus.vectors // 1000, 10)}" if method == "ivfflat" else "m = 32, ef_construction = 128"
    drop(owner, corpus)
    concurrently(
        owner,
        f"create index concurrently {corpus.index} on rag.embeddings "
        f"using {method} ((embedding::{kind}({corpus.dimension})) {kind}_cosine_ops) with ({options}) "
        f"where tenant_id = '{corpus.tenant_id}' and space_id = '{corpus.space_id}'",
    )


def build_missing(owner: Connection, corpus: Corpus) -> bool:
    """Build a corpus's index unless it is there by now or somebody is building it; whether it was built."""
    return not is_there(owner, corpus.tenant_id, corpus.space_id) and build_once(owner, corpus)


def is_there(reader: Connection | Session, tenant_id: UUID, space_id: UUID) -> bool:
    """Whether a tenant has a valid index in a space."""
    found: bool = reader.execute(
        text(
            "select exists (select from pg_catalog.pg_class r join pg_catalog.pg_index i on i.indexrelid = r.oid "
            "where r.relname = :index and r.relnamespace = 'rag'::regnamespace and i.indisvalid)"
        ),
        {"index": index_name(tenant_id, space_id)},
    ).scalar_one()
    return found


def build_once(owner: Connection, corpus: Corpus, method: Method = "hnsw") -> bool:
    """Build a corpus's index, anew if it is there, unless somebody is building it right now; whether it was built."""
    # A session lock, on a connection that is nobody else's: a build may outlive the lease of the job's turn.
    name = {"name": f"index:{corpus.index}"}
    if not owner.execute(text("select pg_try_advisory_lock(hashtextextended(:name, 0))"), name).scalar():
        return False
    try:
        build(owner, corpus, method)
    finally:
        owner.execute(text("select pg_advisory_unlock(hashtextextended(:name, 0))"), name)
    return True


def drop(owner: Connection, corpus: Corpus) -> None:
    """Drop the index, whatever its state, beside reads and writes."""
    concurrently(owner, f"drop index concurrently if exists rag.{corpus.index}")


def remove_orphans(owner: Connection, found: list[Corpus]) -> int:
    """Drop indexes of tenants or spaces that are gone, and half-built ones; returns how many."""
    wanted = {corpus.index for corpus in found}
    names = owner.exec_driver_sql(
        "select r.relname, i.indisvalid from pg_class r join pg_index i on i.indexrelid = r.oid "
        "where r.relnamespace = 'rag'::regnamespace and r.relname like 'embeddings\\_near\\_%%' "
        # One that is being built is invalid too.
        "and not exists (select from pg_stat_progress_create_index p where p.index_relid = r.oid)"
    ).all()
    doomed = [row.relname for row in names if row.relname not in wanted or not row.indisvalid]
    for name in doomed:
        concurrently(owner, f'drop index concurrently if exists rag."{name}"')
    return len(doomed)
