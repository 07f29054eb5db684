"""How the words of chunks are stored: the same terms as in every release before, each word in the index once."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from schema.rag import r0002_lexical_search as r0002
from schema.rag.r0005_retrieval import trigger_function
from shared.database import tenant_session
from shared.documents.storing import REUSE
from shared.retrieval.planning import plan_nodes
from shared.tenants.directory import Principal
from tests.conftest import Database
from tests.integration.search_material import index
from tests.integration.test_search_lexical import candidates, corpus

LETTERS = "aegnrstz" + "äöüßéàçøłđæœ" + "ÄÖÜÉ" + "-/_§|.,'’12" + "жλ日" + "e\u0301" + "ﬁ½²" + "  \n"
HEADED = ("§ 3 Übergang", "Straße/Ort")


@pytest.fixture
def owner(database: Database) -> Iterator[Connection]:
    """A connection of the owner with the functions of r0002 in pg_temp; what it does is rolled back."""
    with create_engine(database.owner_url, poolclass=NullPool).connect() as connection:
        functions = r0002.TERMS.split("create function rag.likeness", maxsplit=1)[0]
        connection.exec_driver_sql(functions.replace("create function rag.", "create function pg_temp."))
        yield connection
        connection.rollback()


def texts(count: int) -> list[str]:
    """Texts of letters with and without accents, ligatures, digits and what stands between words."""
    dice = random.Random(11)
    made = ["".join(dice.choices(LETTERS, k=dice.randrange(1, 60))) for _ in range(count)]
    return ["", "Kündigungsfristen", "cafe\u0301 café Œuvre Łódź", "x_y|z-1/2 § 5", *made]


def stored(tenant: Principal) -> dict[Any, Any]:
    """What lexical search reads of each chunk, without regard to where the markers are, and the words of the tenant."""
    with tenant_session(tenant.tenant_id) as session:
        chunks = session.execute(
            text(
                "select c.chunk_id, c.document_id, c.version_id, c.language, c.length, "
                "array(select distinct t from unnest(c.terms || c.markers) t order by t) as terms "
                "from rag.chunk_terms c where c.tenant_id = :t"
            ),
            {"t": tenant.tenant_id},
        ).all()
        words = session.execute(
            text(
                "select v.language, v.stem, array(select s from unnest(v.spellings) s order by s) as spellings "
                "from rag.vocabulary v where v.tenant_id = :t"
            ),
            {"t": tenant.tenant_id},
        ).all()
    return {row.chunk_id: tuple(row) for row in chunks} | {(row.language, row.stem): row.spellings for row in words}


def test_terms_are_those_of_the_releases_before(owner: Connection) -> None:
    """Stems, plain words and the numbers they become are the same: what is stored needs no indexing anew."""
    different = owner.execute(
        text(
            "select count(*) as asked, count(*) filter (where "
            "rag.stems(l, w) <> pg_temp.stems(l, w) or rag.plain(w) <> pg_temp.plain(w) "
            "or rag.term(t, n, l, w) <> pg_temp.term(t, n, l, w)) as different "
            "from unnest(cast(:texts as text[])) w cross join unnest(array['de', 'en', 'simple', 'fr']) l "
            "cross join (values (0), (1), (4)) o(n) cross join (select gen_random_uuid() as t) tenant"
        ),
        {"texts": texts(400)},
    ).one()
    assert (different.asked, different.different) == (404 * 4 * 3, 0)


def test_the_same_rows_as_by_the_trigger_of_before(tenant: Principal, owner: Connection) -> None:
    """Chunks in three languages: every term, length, word and spelling is what r0005 would have stored."""
    for language in ("de", "en", "simple"):
        index(tenant, language, *(t or "leer" for t in texts(60)), language=language, headings=HEADED)
    now = stored(tenant)
    assert len(now) > 200
    # As the release before would store the same chunks: its function behind a trigger of another table.
    owner.exec_driver_sql("create temp table chunks (like rag.chunks)")
    owner.exec_driver_sql("create temp table chunk_terms (like rag.chunk_terms)")
    owner.exec_driver_sql("create temp table vocabulary (like rag.vocabulary including generated)")
    before = trigger_function().replace("rag.", "pg_temp.").replace("pg_temp.spellings", "rag.spellings")
    owner.exec_driver_sql(before)
    owner.exec_driver_sql(
        "create trigger index_terms after insert on chunks referencing new table as new_chunks "
        "for each statement execute function pg_temp.index_terms()"
    )
    owner.execute(
        text("insert into pg_temp.chunks select * from rag.chunks where tenant_id = :t"), {"t": tenant.tenant_id}
    )
    chunks = owner.exec_driver_sql(
        "select chunk_id, document_id, version_id, language, length, array(select t from unnest(terms) t order by t) "
        "from pg_temp.chunk_terms"
    ).all()
    words = owner.exec_driver_sql(
        "select language, stem, array(select s from unnest(spellings) s order by s) from pg_temp.vocabulary"
    ).all()
    assert {row[0]: tuple(row) for row in chunks} | {(row[0], row[1]): row[2] for row in words} == now


def test_what_was_stored_before_is_found_with_the_same_scores(tenant: Principal, database: Database) -> None:
    """Rows of the releases before have their markers among the terms: nobody has to index them anew."""
    corpus(tenant, 24)
    asked = ("eiche", "birke erle", "buche ahorn linde fichte")
    now = [candidates(tenant, question) for question in asked]
    assert len({score for found in now for _, score in found}) > 10
    with create_engine(database.owner_url, poolclass=NullPool).begin() as connection:
        changed = connection.execute(
            text("update rag.chunk_terms set terms = terms || markers, markers = null where tenant_id = :t"),
            {"t": tenant.tenant_id},
        )
        assert changed.rowcount == 24
    assert [candidates(tenant, question) for question in asked] == now


def test_a_word_has_one_posting_in_a_chunk(tenant: Principal) -> None:
    """How often a chunk has it stands in the row alone, which the index does not hold."""
    words = Counter({"eiche": 7, "birke": 3, "erle": 2, "linde": 1})
    index(tenant, "d", " ".join(words.elements()), language="simple")
    with tenant_session(tenant.tenant_id) as session:
        row = session.execute(
            text("select cardinality(terms) as terms, cardinality(markers) as markers, length from rag.chunk_terms")
        ).one()
    assert (row.terms, row.markers, row.length) == (4, 3 + 2 + 1, 13)


def scans_of_chunks(tenant: Principal, document_id: Any) -> list[int]:
    """How often the chunks are read when the vectors of a document's newest version are looked for."""
    with tenant_session(tenant.tenant_id) as session:
        ids = {"tenant": tenant.tenant_id, "document": document_id}
        version = session.execute(
            text(
                "select version_id from rag.versions where tenant_id = :tenant and document_id = :document "
                "order by source_version desc limit 1"
            ),
            ids,
        ).scalar_one()
        plan = session.execute(
            text(f"explain (analyze, format json) {REUSE.text}"), ids | {"version": version}
        ).scalar_one()
        session.rollback()
    (root,) = json.loads(plan) if isinstance(plan, str) else plan
    return [int(node["Actual Loops"]) for node in plan_nodes(root["Plan"]) if node.get("Relation Name") == "chunks"]


def test_a_first_version_is_compared_with_nothing(tenant: Principal) -> None:
    """Only a document that has another version has vectors to take over."""
    document = index(tenant, "d", "Die Pumpe wird geprüft.", "Die Dichtung auch.")
    assert set(scans_of_chunks(tenant, document)) == {0}
    index(tenant, "d", "Die Pumpe wird geprüft.", "Die Dichtung nicht.", version=2)
    assert max(scans_of_chunks(tenant, document)) > 0


def test_chunks_are_stored_letter_by_letter(tenant: Principal) -> None:
    """What COPY reads as a sign of its own (backslash, tab, line ends, \\N, \\.) is text like any other."""
    written = ["\\N", "\\.", "a\\tb\tc", "x\r\ny\\n\\\\", "Ä\\\tß\n\\."]
    index(tenant, "d", *written, headings=("a\\b", 'c\t"d"'))
    with tenant_session(tenant.tenant_id) as session:
        rows = session.execute(text("select c.text, c.heading_path from rag.chunks c order by c.ordinal")).all()
    assert [row.text for row in rows] == written
    assert {tuple(row.heading_path) for row in rows} == {("a\\b", 'c\t"d"')}
