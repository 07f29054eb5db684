"""No tenant sees another's rows, whatever the query, the driver or the session does."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.pool import NullPool

from shared.database import (
    LostWrite,
    application_engine,
    copy_rows,
    platform_session,
    tenant_session,
    write_one,
)
from shared.tenants.directory import Principal
from tests.conftest import Database


def _collections(tenant: Principal) -> list[str]:
    with tenant_session(tenant.tenant_id) as session:
        return [row[0] for row in session.execute(text("select name from rag.collections order by name"))]


def test_a_session_sees_only_its_tenants_rows(make_tenant: Callable[..., Principal]) -> None:
    """Without any condition in the query, row-level security shows one tenant."""
    one, two = make_tenant(), make_tenant()
    with tenant_session(one.tenant_id) as session:
        write_one(
            session,
            "insert into rag.collections values (:t, :id, 'secret')",
            {"t": one.tenant_id, "id": uuid4()},
        )
    assert _collections(one) == ["default", "secret"]
    assert _collections(two) == ["default"]


def test_without_a_tenant_no_rows_are_seen(tenant: Principal) -> None:
    """An application session that nobody bound sees nothing and writes nothing."""
    with platform_session() as session:
        assert session.execute(text("select count(*) from rag.collections")).scalar() == 0
    with pytest.raises(ProgrammingError, match="row-level security"), platform_session() as session:
        session.execute(
            text("insert into rag.collections values (:t, :id, 'x')"), {"t": tenant.tenant_id, "id": uuid4()}
        )


def test_a_connection_that_was_never_bound_sees_nothing(tenant: Principal, database: Database) -> None:
    """The setting is NULL there and not empty, as it is after a commit; no table of any tenant shows a row."""
    engine = create_engine(database.application_url, poolclass=NullPool)
    with engine.connect() as connection:
        assert connection.execute(text("select current_setting('app.tenant_id', true)")).scalar() is None
        tables = connection.execute(
            text(
                "select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace "
                "join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' "
                "where n.nspname in ('core', 'rag') and c.relkind in ('r', 'p') "
                "and has_table_privilege(c.oid, 'select')"
            )
        ).scalars().all()  # fmt: skip
        assert {"core.tenants", "core.members", "rag.collections"} <= set(tables)
        seen = [t for t in tables if connection.execute(text(f"select exists (select from {t})")).scalar()]
    assert seen == []


def test_the_tenant_stays_bound_after_a_commit(tenant: Principal) -> None:
    """The second transaction of a session is bound like the first."""
    with tenant_session(tenant.tenant_id) as session:
        assert session.execute(text("select count(*) from rag.collections")).scalar() == 1
        session.commit()
        assert session.execute(text("select count(*) from rag.collections")).scalar() == 1


def test_a_row_cannot_be_written_for_another_tenant(make_tenant: Callable[..., Principal]) -> None:
    """WITH CHECK refuses a foreign tenant id, by INSERT and by COPY."""
    one, two = make_tenant(), make_tenant()
    row = (two.tenant_id, uuid4(), "planted")
    with pytest.raises(ProgrammingError, match="row-level security"), tenant_session(one.tenant_id) as session:
        copy_rows(session, "rag.collections", ("tenant_id", "collection_id", "name"), [row])
    assert _collections(two) == ["default"]


def test_two_copies_in_one_transaction_write_each_row_once(tenant: Principal) -> None:
    """Each counts its own new rows, also after a savepoint was taken back and in the session's next transaction."""
    columns = ("tenant_id", "collection_id", "name")
    rows = [(tenant.tenant_id, uuid4(), f"c-{number}") for number in range(5)]
    with tenant_session(tenant.tenant_id) as session:
        assert copy_rows(session, "rag.collections", columns, rows[:2]) == 2
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            assert copy_rows(session, "rag.collections", columns, rows[2:3]) == 1
            _ = 1 // 0
        assert copy_rows(session, "rag.collections", columns, rows[1:4]) == 2
        session.commit()
        assert copy_rows(session, "rag.collections", columns, rows[3:]) == 1
    assert _collections(tenant) == sorted(["default", *(name for _, _, name in rows)])


def test_a_reference_cannot_point_across_tenants(make_tenant: Callable[..., Principal]) -> None:
    """A document of one tenant in a collection of another violates the composite foreign key."""
    one, two = make_tenant(), make_tenant()
    with tenant_session(two.tenant_id) as session:
        foreign = session.execute(text("select collection_id from rag.collections")).scalar_one()
    with pytest.raises(DBAPIError, match="foreign key"), tenant_session(one.tenant_id) as session:
        session.execute(
            text(
                "insert into rag.documents (tenant_id, document_id, collection_id, source, external_id, title, state) "
                "values (:t, :id, :c, 'upstream', 'x', 'x', 'received')"
            ),
            {"t": one.tenant_id, "id": uuid4(), "c": foreign},
        )


def test_a_write_that_must_hit_a_row_says_so(make_tenant: Callable[..., Principal]) -> None:
    """An update of another tenant's row is not taken for success."""
    one, two = make_tenant(), make_tenant()
    with pytest.raises(LostWrite), tenant_session(one.tenant_id) as session:
        write_one(session, "update core.members set name = 'x' where member_id = :m", {"m": two.member_id})


@pytest.mark.parametrize("poison", ["\ud800", ["x"] * 70_000], ids=["surrogate", "too many parameters"])
def test_a_failed_encoding_never_shifts_answers(make_tenant: Callable[..., Principal], poison: object) -> None:
    """pg8000 stays one answer behind after an encoding error; such a connection is thrown away, not reused."""
    one, two = make_tenant(), make_tenant()
    values = {f"p{n}": v for n, v in enumerate(poison)} if isinstance(poison, list) else {"p0": poison}
    statement = text("select " + ", ".join(f"cast(:{name} as text)" for name in values))
    for _ in range(application_engine().pool.size() + 1):  # type: ignore[attr-defined]
        with pytest.raises(Exception), tenant_session(one.tenant_id) as session:  # noqa: B017, PT011 # any error
            session.execute(statement, values)
        with tenant_session(two.tenant_id) as session:
            assert session.execute(text("select cast(:x as text)"), {"x": "mine"}).scalar() == "mine"
            assert {row[0] for row in session.execute(text("select tenant_id from core.members"))} == {two.tenant_id}


def test_the_application_role_is_weak(tenant: Principal) -> None:
    """Neither superuser nor owner nor exempt from row-level security."""
    with platform_session() as session:
        role = session.execute(
            text("select rolsuper, rolbypassrls, rolcreatedb, rolcreaterole from pg_roles where rolname = current_user")
        ).one()
        owned = session.execute(
            text("select count(*) from pg_class where pg_get_userbyid(relowner) = current_user")
        ).scalar()
    assert tuple(role) == (False, False, False, False)
    assert owned == 0


def test_the_application_cannot_read_dead_letters_or_jobs(tenant: Principal) -> None:
    """Platform tables: dead letters can be added, never read; job runs not even touched."""
    for table in ("core.dead_letters", "core.job_runs"):
        with pytest.raises(ProgrammingError, match="permission denied"), platform_session() as session:
            session.execute(text(f"select * from {table}"))  # constants


def test_a_database_that_is_down_is_a_shared_failure(database: object) -> None:
    """A refused connection is worth trying again; a wrong statement is not."""
    from sqlalchemy.exc import SQLAlchemyError

    from local.postgres import free_port
    from shared.database import is_shared_failure, make_engine

    gone = make_engine(f"postgresql+pg8000://nobody:x@127.0.0.1:{free_port()}/none", 1)
    with pytest.raises(SQLAlchemyError) as refused:
        gone.connect()
    assert is_shared_failure(refused.value)
    with pytest.raises(SQLAlchemyError) as wrong, platform_session() as session:
        session.execute(text("select nonsense from nowhere"))
    assert not is_shared_failure(wrong.value)
