"""The driver as we drive it: one round trip a statement, and never another statement's answer."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from shared.database import application_engine, call_alone, is_shared_failure, often, tenant_session
from shared.tenants.directory import Principal


def test_a_failed_statement_leaves_the_next_one_its_own_answer(tenant: Principal) -> None:
    """PARSE, BIND and EXECUTE go out together: whichever of them the server refuses, the rest is skipped up to SYNC."""
    engine = application_engine()
    failing = ("select cast(:x as integer) / 0", "select nothing from :x", "select 1 from missing where :x = 1")
    with engine.connect() as connection:
        for number, statement in enumerate(failing):
            with pytest.raises(DBAPIError):
                connection.execute(text(statement), {"x": 1})
            connection.rollback()
            assert connection.execute(text("select cast(:x as integer)"), {"x": number}).scalar_one() == number


def test_what_is_longer_than_a_buffer_comes_back_whole(tenant: Principal) -> None:
    """Bytes, text and percent signs, in one statement and as a transaction of its own."""
    body = bytes(range(256)) * 400
    found = call_alone("select %s::bytea", [body])
    assert bytes(found) == body
    with tenant_session(tenant.tenant_id) as session:
        value = session.execute(text("select cast(:a as text) || '%'"), {"a": "ä" * 50_000}).scalar_one()
    assert value == "ä" * 50_000 + "%"


def test_a_statement_alone_is_committed_and_binds_nobody_else(tenant: Principal) -> None:
    """The tenant it was told holds for its transaction only; the connection goes back as it was."""
    bound = call_alone("select set_config('app.tenant_id', %s::text, true)", [str(tenant.tenant_id)])
    assert bound == str(tenant.tenant_id)
    with application_engine().connect() as connection:
        assert not connection.execute(text("select current_setting('app.tenant_id', true)")).scalar()
    with tenant_session(uuid4()) as session:
        assert session.execute(text("select count(*) from core.conversations")).scalar_one() == 0


def test_a_statement_alone_is_parsed_once_a_connection(tenant: Principal) -> None:
    """One that failed when it was new is parsed again; one that fails later leaves the next one its own answer."""
    statement = "select 10 / %s::integer + 0 * length(%s::text)"
    for divisor in (0, *[5] * 40, 0, 2, 1):
        if divisor == 0:
            with pytest.raises(DBAPIError):
                call_alone(statement, [divisor, "x"])
        else:
            assert call_alone(statement, [divisor, "ä" * divisor]) == 10 // divisor
    with application_engine().connect() as connection:
        names = connection.execute(
            text("select name from pg_prepared_statements where statement = :s"),
            {"s": "select 10 / $1::integer + 0 * length($2::text)"},
        )
        assert 1 <= len(names.scalars().all()) <= 2


def test_what_cannot_be_encoded_is_not_sent(tenant: Principal) -> None:
    """Half a statement would leave the connection one answer behind."""
    with pytest.raises(UnicodeEncodeError):
        call_alone("select %s::text || %s::text", ["a", "\ud800"])
    assert call_alone("select %s::text || %s::text", ["a", "b"]) == "ab"


def state_of(connection: Connection) -> str:
    """What the server says a connection is doing, asked by another one."""
    driver: Any = connection.connection.driver_connection
    process = int.from_bytes(driver._backend_key_data[:4], "big")
    with application_engine().connect() as other:
        seen = other.execute(text("select state from pg_stat_activity where pid = :pid"), {"pid": process})
        return str(seen.scalar_one())


def test_a_transaction_begins_with_its_first_statement(tenant: Principal) -> None:
    """Until then nothing has been sent and nothing is held open; then the tenant is bound, also for what comes next."""
    with tenant_session(tenant.tenant_id) as session:
        connection = session.connection()
        assert state_of(connection) == "idle"
        for _ in range(2):
            bound = text("select current_setting('app.tenant_id', true) where :x = 1")
            assert session.execute(bound, {"x": 1}).scalar_one() == str(tenant.tenant_id)
            assert state_of(connection) == "idle in transaction"


def test_a_transaction_that_asked_nothing_ends_without_a_word(tenant: Principal) -> None:
    """The next one is bound to its own tenant, or to none, whichever connection it gets."""
    with tenant_session(tenant.tenant_id) as session:
        session.connection()
        session.commit()
        assert state_of(session.connection()) == "idle"
        session.rollback()
        assert session.execute(text("select current_setting('app.tenant_id', true)")).scalar_one() == str(
            tenant.tenant_id
        )
    for _ in range(application_engine().pool.size()):  # type: ignore[attr-defined]
        with application_engine().connect() as connection:
            assert not connection.execute(text("select current_setting('app.tenant_id', true)")).scalar()


def test_what_follows_a_refused_beginning_is_not_done_and_leaves_the_next_its_own_answer(tenant: Principal) -> None:
    """Both are under way when the first is refused."""
    with application_engine().connect() as connection:
        for number in range(3):
            driver: Any = connection.connection.driver_connection
            driver.begin_with("begin; select 1 / 0")
            with pytest.raises(DBAPIError, match="division by zero"):
                connection.execute(text("select cast(:x as integer)"), {"x": 7})
            connection.rollback()
            assert connection.execute(text("select cast(:x as integer)"), {"x": number}).scalar_one() == number
            connection.rollback()


def test_a_statement_of_every_question_is_parsed_once_a_connection(tenant: Principal) -> None:
    """Its rows come as they did; when a table was changed under it, that connection goes and a new one knows better."""
    asked = often("select a, b from pg_temp.changing where a = :a and :b = :b")
    with application_engine().connect() as connection:
        connection.execute(text("create temp table changing as select 1 as a, 2 as b union all select 1, 3"))
        for number in range(8):
            rows = connection.execute(asked, {"a": number % 2, "b": "x"}).all()
            assert [tuple(row) for row in rows] == [(1, 2), (1, 3)] * (number % 2)
        named = text("select count(*) from pg_prepared_statements where statement like 'select a, b from pg_temp.%'")
        assert connection.execute(named).scalar_one() == 1
        connection.execute(text("alter table pg_temp.changing alter b type text"))
        with pytest.raises(DBAPIError) as caught:
            connection.execute(asked, {"a": 1, "b": "x"})
        assert is_shared_failure(caught.value)
    with application_engine().connect() as connection:
        connection.execute(text("create temp table changing as select 1 as a, 'new' as b"))
        assert connection.execute(asked, {"a": 1, "b": "x"}).one().b == "new"
