"""Rows by COPY through a temporary table that a connection keeps, and what is kept of them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from functions.ingest.ingestion import ingest_document
from shared.copying import array_literal, copy_rows
from shared.database import application_engine, forget_engines, run_alone, tenant_session
from shared.documents.vectors import store_vectors
from shared.fakes import FakeBus
from shared.retrieval.spaces import active_space
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.round_trips import statements
from tests.integration.test_ingestion import submission
from tests.integration.test_repeats import commands

COLUMNS = ("tenant_id", "collection_id", "name")


class Undone(Exception):
    """Ends a transaction without a commit."""


def creations(seen: list[str]) -> int:
    """How many of the statements make a temporary table."""
    return sum(statement.startswith("create temporary table") for statement in seen)


def copy_one(session: Session, tenant_id: UUID, name: str) -> int:
    """Copy a collection of that name."""
    return copy_rows(session, "rag.collections", COLUMNS, [(tenant_id, uuid4(), name)])


def collections(tenant_id: UUID) -> set[str]:
    """The names of the tenant's collections that a test here may have made."""
    with tenant_session(tenant_id) as session:
        names = session.execute(
            text("select name from rag.collections where tenant_id = :t and name like 'copied %'"), {"t": tenant_id}
        )
        return set(names.scalars())


def test_a_connection_makes_its_temporary_table_once(tenant: Principal) -> None:
    """Also when a statement alone runs in between, which SQLAlchemy counts as a transaction without a commit."""
    forget_engines()
    with statements() as seen:
        for number in range(3):
            with tenant_session(tenant.tenant_id) as session:
                assert copy_one(session, tenant.tenant_id, f"copied {number}") == 1
            run_alone(tenant.tenant_id, "select 1")
    assert creations(seen) == 1
    assert collections(tenant.tenant_id) == {"copied 0", "copied 1", "copied 2"}


@pytest.mark.parametrize("savepoint", [False, True], ids=["transaction", "savepoint"])
def test_a_temporary_table_that_was_undone_is_made_again(tenant: Principal, savepoint: bool) -> None:
    """A rollback takes it away, as a whole or back to a savepoint before it was made."""
    forget_engines()
    with statements() as seen:
        if savepoint:
            with tenant_session(tenant.tenant_id) as session:
                with pytest.raises(Undone), session.begin_nested():
                    copy_one(session, tenant.tenant_id, "copied and undone")
                    raise Undone
                assert copy_one(session, tenant.tenant_id, "copied") == 1
        else:
            with pytest.raises(Undone), tenant_session(tenant.tenant_id) as session:
                copy_one(session, tenant.tenant_id, "copied and undone")
                raise Undone
            with tenant_session(tenant.tenant_id) as session:
                assert copy_one(session, tenant.tenant_id, "copied") == 1
    assert creations(seen) == 2
    with tenant_session(tenant.tenant_id) as session:
        names = session.execute(
            text("select name from rag.collections where tenant_id = :t and name like 'copied%'"),
            {"t": tenant.tenant_id},
        )
        assert names.scalars().all() == ["copied"]


FORMS: dict[str, tuple[Any, ...]] = {
    "uuid": (UUID(int=0), UUID(int=2**128 - 1)),
    "text": ("", "\\N", "\\.", "Zeile\r\n\tzwei\\", "日本 \U0001f600", "a" * 100_000),
    "boolean": (True, False),
    "integer": (0, -1, 2**31 - 1, -(2**31)),
    "bigint": (0, -1, 2**63 - 1, -(2**63)),
    "jsonb": ({}, {"ä": [1, 2.5, None, "\n\\"], "b": {"c": True}}, [0] * 2_000),
    "text[]": ([], ("",), ("a,b", '"{}"', "\\", "NULL"), ["x"] * 2_000),
    "integer[]": ([], [0], [-(2**31), 2**31 - 1], list(range(5_000))),
    "vector": ([0.5], [1.5, -2.25, 1e30], [0.25] * 3_072),
}


@pytest.mark.parametrize("kind", FORMS)
def test_every_kind_of_value_arrives_as_it_is(tenant: Principal, kind: str) -> None:
    """In rows that fit into a page and in those that do not, and none: compared with PostgreSQL's own reading."""
    table = "of_" + kind.replace("[]", "_list")
    with tenant_session(tenant.tenant_id) as session:
        session.execute(text(f"create temporary table {table} (number integer, value {kind})"))
        rows = list(enumerate([*FORMS[kind], None]))
        columns = ("number", "value")
        assert copy_rows(session, f"pg_temp.{table}", columns, rows[:1]) == 1
        assert copy_rows(session, f"pg_temp.{table}", columns, rows[1:]) == len(rows) - 1
        for number, value in rows:
            same = session.execute(
                text(f"select value is not distinct from cast(:value as {kind}) from {table} where number = :number"),
                {"number": number, "value": literal(kind, value)},
            ).scalar_one()
            assert same, f"{value!r:.60}"
        session.rollback()


def literal(kind: str, value: Any) -> str | None:
    """The value as text that PostgreSQL reads itself."""
    if value is None or isinstance(value, str):
        return value
    if kind.endswith("[]"):
        return array_literal(value)
    return str(value) if kind == "uuid" else json.dumps(value)


def test_a_row_too_wide_for_a_page_is_stored_whole(tenant: Principal) -> None:
    """Rows a little smaller than a page and a little larger, and texts of many small pieces, which are aligned."""
    with tenant_session(tenant.tenant_id) as session:
        session.execute(text("create temporary table wide (pieces text[], value text)"))
        rows = [
            (["a"] * number, "b" * (8_200 - 5 * number + extra))
            for number in (0, 400, 1_600)
            for extra in range(-99, 99, 9)
        ]
        for row in rows:
            assert copy_rows(session, "pg_temp.wide", ("pieces", "value"), [row]) == 1
        found = session.execute(text("select cardinality(pieces) as pieces, length(value) as size from wide")).all()
        assert [tuple(row) for row in found] == [(len(pieces), len(value)) for pieces, value in rows]
        session.rollback()


def test_a_kind_of_value_nobody_copied_yet_is_refused_by_name(tenant: Principal) -> None:
    """Before anything is sent, so that the connection stays in step."""
    with tenant_session(tenant.tenant_id) as session:
        session.execute(text("create temporary table priced (value money, other text)"))
        with pytest.raises(TypeError, match="money in pg_temp"):
            copy_rows(session, "pg_temp.priced", ("value", "other"), [(1, "a")])
        assert copy_rows(session, "pg_temp.priced", ("other",), [("a",)]) == 1
        with pytest.raises(struct.error):
            session.execute(text("create temporary table numbered (number integer)"))
            copy_rows(session, "pg_temp.numbered", ("number",), [(1,), ("no number",)])
        assert session.execute(text("select other from priced")).scalars().all() == ["a"]
        session.rollback()


def test_a_statement_alone_sees_one_tenant(make_tenant: Callable[..., Principal]) -> None:
    """It is committed, reaches no other tenant's rows, and leaves nobody bound."""
    tenant, other_tenant = make_tenant(), make_tenant()
    for principal in (tenant, other_tenant):
        with tenant_session(principal.tenant_id) as session:
            copy_one(session, principal.tenant_id, "copied 1")
    run_alone(tenant.tenant_id, "delete from rag.collections where name = 'copied 1'")
    assert (collections(tenant.tenant_id), collections(other_tenant.tenant_id)) == (set(), {"copied 1"})
    with application_engine().connect() as connection:
        assert not connection.execute(text("select current_setting('app.tenant_id', true)")).scalar()


def test_only_chunks_that_are_there_get_a_vector_and_only_in_a_space_in_use(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """What was purged, or given up, while the model worked is left out; the others are stored once."""
    ingest_document(
        submission(tenant, b"# Pumpen\n\nDie Dichtung wird getauscht.\n", "p.md"), "upstream", fake_services
    )
    (command,) = commands(bus)
    (here,), gone = command.chunk_ids, uuid4()
    vector = [1.0] + [0.0] * (dimension_of(tenant) - 1)
    ids = (tenant.tenant_id, command.space_id)
    with tenant_session(tenant.tenant_id) as session:
        assert store_vectors(session, ids[0], uuid4(), [here], [vector]) == 0
        assert store_vectors(session, *ids, [gone, here], [vector, vector]) == 1
        assert store_vectors(session, *ids, [here], [vector]) == 0
        stored = session.execute(text("select chunk_id from rag.embeddings where tenant_id = :t"), {"t": ids[0]})
        assert stored.scalars().all() == [here]


def dimension_of(tenant: Principal) -> int:
    """Of the space in which the tenant's chunks are embedded."""
    with tenant_session(tenant.tenant_id) as session:
        return active_space(session, tenant.tenant_id).dimension
