"""Approximate indexes and statistics: made and dropped beside the search, which stays right with and without them."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID, uuid5

import pytest
from sqlalchemy import Connection, text

from functions.maintenance.jobs import index_care, recall_probe
from shared.database import copy_rows, operator_session, patiently, tenant_session, vector_literal
from shared.jobs.leases import Lease, Progress
from shared.retrieval import indexes, probing, statistics
from shared.retrieval.indexes import Corpus
from shared.retrieval.questions import Filters
from shared.retrieval.ranking import Tuning
from shared.retrieval.search import Search, search_explained
from shared.retrieval.spaces import Space, active_space
from shared.services import Services
from shared.tenants.directory import Principal
from tests.conftest import Database

CHUNKS = 600
RARE_EVERY = 100
"""Every hundredth chunk is in the small collection: a filter that leaves six."""

DOCUMENTS = ("tenant_id", "document_id", "collection_id", "source", "external_id", "title", "state")
VERSIONS = (
    "tenant_id", "version_id", "document_id", "source_version", "state", "content_hash", "blob_uri", "bytes",
    "file_name", "media_type", "chunks", "traceparent",
)  # fmt: skip
CHUNKS_OF = (
    "tenant_id", "chunk_id", "version_id", "document_id", "ordinal", "text", "text_hash", "start_offset",
    "end_offset", "tokens", "language", "heading_path", "position",
)  # fmt: skip


def fill(tenant: Principal, chunks: int = CHUNKS) -> Space:
    """A corpus of one-chunk documents with random vectors, all of it searchable."""
    tenant_id, dice = tenant.tenant_id, random.Random(7)
    with tenant_session(tenant_id) as session, patiently(session, 120):
        # A connection of an earlier test may keep plans of foreign keys and triggers from when the tables were tiny;
        # in the middle of a transaction nothing takes them away, and each row would read all others.
        session.execute(text("set local plan_cache_mode = force_custom_plan"))
        space = active_space(session, tenant_id)
        for name in ("many", "few"):
            values = {"t": tenant_id, "id": uuid5(tenant_id, f"collection:{name}"), "name": name}
            session.execute(text("insert into rag.collections values (:t, :id, :name)"), values)
        documents: list[tuple[object, ...]] = []
        versions: list[tuple[object, ...]] = []
        rows: list[tuple[object, ...]] = []
        vectors: list[tuple[object, ...]] = []
        for n in range(chunks):
            document, version, chunk = (uuid5(tenant_id, f"{kind}{n}") for kind in "dvc")
            collection = uuid5(tenant_id, "collection:" + ("few" if n % RARE_EVERY == 0 else "many"))
            documents.append((tenant_id, document, collection, "upstream", str(n), str(n), "searchable"))
            versions.append((tenant_id, version, document, 1, "searchable", "", "", 0, "", "", 1, ""))
            rows.append((tenant_id, chunk, version, document, 0, f"Vertrag Nummer {n}", str(n), 0, 9, 3, "de", [], {}))
            vector = [dice.gauss(0, 1) for _ in range(space.dimension)]
            vectors.append((tenant_id, space.space_id, chunk, vector))
        copy_rows(session, "rag.documents", DOCUMENTS, documents)
        copy_rows(session, "rag.versions", VERSIONS, versions)
        copy_rows(session, "rag.chunks", CHUNKS_OF, rows)
        copy_rows(session, "rag.embeddings", ("tenant_id", "space_id", "chunk_id", "embedding"), vectors)
        session.execute(
            text(
                "update rag.documents d set current_version_id = v.version_id from rag.versions v "
                "where d.tenant_id = :t and v.tenant_id = :t and v.document_id = d.document_id"
            ),
            {"t": tenant_id},
        )
    return space


def look(who: Principal, space: Space, filters: Filters | None = None, seed: int = 1) -> Search:
    """A search by vector alone, over few neighbours."""
    dice = random.Random(seed)
    vector = [dice.gauss(0, 1) for _ in range(space.dimension)]
    tuning = Tuning(candidates=10, breadth=100, lexical_weight=0)
    with tenant_session(who.tenant_id) as session:
        return search_explained(
            session, who.tenant_id, who.member_id, space, "Vertrag", vector, top_k=10, filters=filters, tuning=tuning
        )


def corpus_of(tenant_id: UUID) -> Corpus:
    """What index care sees of a tenant."""
    with operator_session() as session:
        return next(corpus for corpus in indexes.corpora(session) if corpus.tenant_id == tenant_id)


@pytest.mark.parametrize("method", ["hnsw", "ivfflat"])
def test_an_index_is_built_used_and_dropped(tenant: Principal, owner: Connection, method: indexes.Method) -> None:
    """Search says which way it went, and finds the same either way on a corpus this small."""
    space = fill(tenant)
    exact = look(tenant, space)
    assert exact.diagnostics.dense_method == "exact"
    indexes.build(owner, corpus_of(tenant.tenant_id), method)
    by_index = look(tenant, space)
    assert by_index.diagnostics.dense_method == "index"
    assert by_index.diagnostics.exact_compared == 0
    if method == "hnsw":
        assert [p.chunk_id for p in by_index.passages] == [p.chunk_id for p in exact.passages]
    indexes.drop(owner, corpus_of(tenant.tenant_id))
    assert look(tenant, space).diagnostics.dense_method == "exact"


def test_the_planner_takes_the_tenants_index(tenant: Principal, owner: Connection) -> None:
    """Through the policies of row-level security, with the tenant as a bound value."""
    space = fill(tenant, 3000)
    corpus = corpus_of(tenant.tenant_id)
    indexes.build(owner, corpus)
    owner.exec_driver_sql("analyze rag.embeddings")
    with tenant_session(tenant.tenant_id) as session:
        rows = session.scalars(
            text(
                f"explain select chunk_id from rag.embeddings where tenant_id = :t and space_id = :s "
                f"order by embedding::vector({space.dimension}) <=> cast(:v as vector({space.dimension})) limit 100"
            ),
            {"t": tenant.tenant_id, "s": space.space_id, "v": vector_literal([1.0] * space.dimension)},
        ).all()
    assert any(corpus.index in row for row in rows)


def test_a_narrow_filter_is_searched_exactly(tenant: Principal, owner: Connection) -> None:
    """Where the index's neighbours are mostly filtered out, every visible chunk is compared: recall stays whole."""
    space = fill(tenant)
    before = look(tenant, space, Filters(collections=("few",)))
    indexes.build(owner, corpus_of(tenant.tenant_id))
    after = look(tenant, space, Filters(collections=("few",)))
    assert after.diagnostics.dense_method == "exact-after-index"
    assert after.diagnostics.exact_compared == CHUNKS // RARE_EVERY
    assert [p.chunk_id for p in after.passages] == [p.chunk_id for p in before.passages]
    assert len(after.passages) == CHUNKS // RARE_EVERY


def test_a_half_built_index_is_neither_used_nor_kept(tenant: Principal, owner: Connection, database: Database) -> None:
    """What a killed CREATE INDEX CONCURRENTLY leaves is ignored by search and removed by care."""
    space = fill(tenant, 50)
    corpus = corpus_of(tenant.tenant_id)
    indexes.build(owner, corpus)
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.pool import NullPool

    admin = create_engine(make_url(database.admin_url).set(database="noesis2"), poolclass=NullPool)
    with admin.begin() as superuser:
        superuser.exec_driver_sql(
            f"update pg_index set indisvalid = false where indexrelid = 'rag.{corpus.index}'::regclass"
        )
    assert look(tenant, space).diagnostics.dense_method == "exact"
    assert corpus_of(tenant.tenant_id).indexed is False
    assert indexes.remove_orphans(owner, [corpus]) == 1


def test_the_recall_probe_stores_mean_and_worst(tenant: Principal, owner: Connection) -> None:
    """By index and without one; the figures are shares."""
    fill(tenant)
    with operator_session() as session:
        assert probing.probe(session, corpus_of(tenant.tenant_id)).mean == 1
    indexes.build(owner, corpus_of(tenant.tenant_id))
    with operator_session() as session:
        found = probing.probe(session, corpus_of(tenant.tenant_id), queries=20)
    assert found.queries == 20
    assert 0.9 <= found.mean <= 1
    with operator_session() as session:
        rows = session.execute(
            text("select method, mean, worst from rag.recall_probes where tenant_id = :t order by probed_at"),
            {"t": tenant.tenant_id},
        ).all()
    assert [row.method for row in rows] == ["exact", "hnsw"]
    assert rows[1].mean == pytest.approx(found.mean)


def test_a_bad_index_is_seen_by_the_probe(tenant: Principal, owner: Connection) -> None:
    """With one neighbour looked at instead of hundreds the probe reports less than the guarantee."""
    fill(tenant)
    indexes.build(owner, corpus_of(tenant.tenant_id))
    with operator_session() as session:
        assert probing.measure(session, corpus_of(tenant.tenant_id), queries=20, effort=1).mean < 0.5


def test_statistics_change_the_work_and_not_the_find(make_tenant: Callable[..., Principal]) -> None:
    """A common word is counted beforehand; a rare one still finds its passage and a common one still ranks."""
    tenant = make_tenant()
    space = fill(tenant)

    def find(question: str) -> list[str]:
        with tenant_session(tenant.tenant_id) as session:
            vector = [1.0] + [0.0] * (space.dimension - 1)
            return [
                p.external_id
                for p in search_explained(
                    session,
                    tenant.tenant_id,
                    tenant.member_id,
                    space,
                    question,
                    vector,
                    tuning=Tuning(lexical_weight=9),
                ).passages
            ]

    assert find("Vertrag 417")[0] == "417"
    with operator_session() as session:
        assert statistics.refresh(session, tenant.tenant_id) > 0
    assert find("Vertrag 417")[0] == "417"
    assert len(find("Vertrag")) == 5


def test_words_of_deleted_chunks_are_forgotten(tenant: Principal) -> None:
    """Index care leaves no word behind that only deleted documents had."""
    fill(tenant, 5)
    words = text("select count(*) from rag.vocabulary where tenant_id = :t")
    with operator_session() as session:
        assert session.execute(words, {"t": tenant.tenant_id}).scalar() == 2
        session.execute(text("delete from rag.chunks where tenant_id = :t"), {"t": tenant.tenant_id})
        assert statistics.prune(session, tenant.tenant_id) == 2
        assert session.execute(words, {"t": tenant.tenant_id}).scalar() == 0


def test_the_jobs_refresh_and_probe(tenant: Principal, fake_services: Services) -> None:
    """Index care counts a grown corpus once and not again; the probe looks at every tenant and stores what it saw."""
    fill(tenant, statistics.SMALL)
    lease = Lease("index-care", datetime.now(UTC), 1, "schedule", Progress())
    counts = [progress.counts for progress in index_care.run(lease, fake_services)][-1]
    assert counts["refreshed"] >= 1
    with operator_session() as session:
        assert tenant.tenant_id not in statistics.stale(session)
    probes = list(recall_probe.run(lease, fake_services))
    assert probes[-1].done == probes[-1].total
    with operator_session() as session:
        stored = text("select mean from rag.recall_probes where tenant_id = :t")
        assert session.scalars(stored, {"t": tenant.tenant_id}).all() == [1.0]
