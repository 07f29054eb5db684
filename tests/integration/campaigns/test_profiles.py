"""A vector space is one profile, says how its texts are cut and prefixed, and never changes."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from functions.ingest.ingestion import ingest_document
from shared.database import operator_session, tenant_session
from shared.events import DocumentSubmitted
from shared.fakes import FakeStorage
from shared.retrieval.spaces import Chunker, ensure_space
from shared.services import Services
from shared.tenants.directory import Principal
from tests.conftest import Database
from tests.integration.campaign_material import Pump, begin, paid


def test_a_profile_is_one_space_and_never_changes(database: object) -> None:
    """The same profile again is the same space; another chunker or prefix is another; no update gets through."""
    with operator_session() as operator:
        one = ensure_space(operator, "model-p", 8)
        assert ensure_space(operator, "model-p", 8) == one
        other = ensure_space(operator, "model-p", 8, Chunker(400, 40), "query: ", "passage: ")
    assert other.space_id != one.space_id
    assert (other.as_query("a"), other.as_passage("b")) == ("query: a", "passage: b")
    assert Chunker.parse(other.chunker) == Chunker(400, 40)


def test_the_database_refuses_another_profile_under_the_same_space(database: Database) -> None:
    """Not even the owner of the tables changes what its vectors were made by."""
    with operator_session() as operator:
        one = ensure_space(operator, "model-i", 8)
    engine = create_engine(database.owner_url, poolclass=NullPool)
    for change in ("model = 'x'", "dimension = 9", "chunker = 'x/1/1'", "query_prefix = 'x'", "passage_prefix = 'x'"):
        with engine.connect() as connection, pytest.raises(DBAPIError, match="never changes"):
            connection.execute(text(f"update rag.vector_spaces set {change} where space_id = :s"), {"s": one.space_id})
    with engine.begin() as connection:
        connection.execute(
            text("update rag.vector_spaces set evidence_floor = 0.5 where space_id = :s"), {"s": one.space_id}
        )
    engine.dispose()


def test_the_model_sees_the_prefix_of_the_space(
    tenant: Principal, pump: Pump, corpus: list[str], working: Services
) -> None:
    """Chunks are embedded with the passage prefix of the profile they are embedded for."""
    with operator_session() as operator:
        prefixed = ensure_space(operator, "model-prefixed", 16, query_prefix="query: ", passage_prefix="passage: ")
    begin(tenant, prefixed)
    pump.run()
    assert set(paid(working)) == {f"passage: {t}" for t in corpus}


def test_documents_are_cut_as_the_space_that_answers_says(tenant: Principal, working: Services) -> None:
    """CHUNK_SIZE describes new tenants' spaces; a tenant's chunks are all cut alike until its space changes."""
    with operator_session() as operator:
        fine = ensure_space(operator, "model-fine", 16, Chunker(60, 0))
        operator.execute(
            text("update rag.tenant_spaces set space_id = :s where tenant_id = :t"),
            {"s": fine.space_id, "t": tenant.tenant_id},
        )
    body = "".join(f"Absatz {n} handelt von der Wartung der Pumpe Nummer {n}.\n\n" for n in range(40)).encode()
    event = DocumentSubmitted(
        tenant_id=tenant.tenant_id,
        external_id="long.txt",
        file_name="long.txt",
        source_version=1,
        content=base64.b64encode(body).decode(),
    )
    ingest_document(event, "upstream", replace(working, _storage=FakeStorage()))
    with tenant_session(tenant.tenant_id) as session:
        tokens = session.scalars(text("select tokens from rag.chunks")).all()
    assert len(tokens) > 3
    assert max(tokens) <= 90  # the size, and half of it where a sentence ends later
