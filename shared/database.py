"""The one way to the database: an engine per role, a session bound to a tenant, and how long a statement may take.

Only this module knows the driver (pg8000). `tenant_session` is for everything that belongs to a tenant; row-level
security sees the tenant through the transaction-local setting `app.tenant_id`. `operator_session` works across
tenants under a role of its own and is for maintenance and the CLI only (import-linter holds that).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, MetaData, TextClause, create_engine, event, make_url, text
from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from shared import tracing
from shared.copying import array_literal, copy_rows, forget_made, vector_literal
from shared.driver import PARSED_ONCE, dollars, in_one_trip, ping, remember_conversions
from shared.errors import NoesisError, SettingsError
from shared.settings import get_settings

metadata = MetaData()
"""Every table of the product; the packages named after nouns declare their own on it."""


class LostWrite(NoesisError):
    """A write that had to hit a row hit none: the tenant is not set, or the row is not there."""


SERVER_FIRST = 0.9
"""Part of the driver's patience after which the server ends a statement itself. A driver that stops waiting leaves it
running, with its locks, for nobody."""


def make_engine(url: str, pool_size: int, *, cloud_sql_instance: str = "", statement_seconds: float = 30) -> Engine:
    """An engine for one role: pooled, pinged before use, safe against pg8000's desynchronisation.

    No statement takes longer than `statement_seconds`, nor waits longer for an answer, unless `patiently`.
    """
    limits = {
        "timeout": statement_seconds,
        "application_name": "noesis2",
        "startup_params": {"statement_timeout": _milliseconds(statement_seconds)},
    }
    options: dict[str, Any] = {
        "pool_size": pool_size,
        "max_overflow": 0,
        "pool_pre_ping": True,
        "pool_recycle": 1800,
        "pool_timeout": 20,
        "hide_parameters": True,  # an error must not carry the text of a document into the log
        "json_serializer": lambda value: json.dumps(value, ensure_ascii=False),
    }
    if cloud_sql_instance:
        options["creator"] = _cloud_sql_creator(url, cloud_sql_instance, limits)
        url = "postgresql+pg8000://"
    else:
        options["connect_args"] = limits
    engine = create_engine(url, **options)
    remember_conversions()
    event.listen(engine, "connect", in_one_trip)
    engine.dialect.do_ping = ping  # type: ignore[method-assign,assignment] # SQLAlchemy's own leaves a transaction open
    event.listen(engine, "handle_error", _drop_desynchronised)
    event.listen(engine, "before_cursor_execute", _parse_once)
    event.listen(engine, "rollback", forget_made)
    event.listen(engine, "rollback_savepoint", forget_made)
    return engine


def _milliseconds(seconds: float) -> str:
    return str(max(1, int(seconds * SERVER_FIRST * 1000)))


@contextmanager
def patiently(session: Session, seconds: float) -> Iterator[Session]:
    """Statements of the transaction at hand may take `seconds`, for work on all that a tenant has.

    For one transaction: what begins after a commit has the ordinary limit again (on the server at once, in the driver
    at the end of this block).
    """
    driver = session.connection().connection.driver_connection
    assert driver is not None
    ordinary = driver._usock.gettimeout()
    session.execute(text(f"set local statement_timeout = {_milliseconds(seconds)}"))
    driver._usock.settimeout(seconds)
    try:
        yield session
    finally:
        if driver._usock is not None:
            driver._usock.settimeout(ordinary)


def _cloud_sql_creator(url: str, instance: str, limits: dict[str, Any]) -> Any:
    # Imported late: the connector pulls in aiohttp, and a laptop never needs it.
    from google.cloud.sql.connector import Connector

    address = make_url(url)
    # Lazy refresh: Cloud Run throttles the CPU between requests, a background refresh would not run (FACTS).
    connector = Connector(refresh_strategy="lazy")
    return lambda: connector.connect(
        instance, "pg8000", user=address.username, password=address.password, db=address.database, **limits
    )


def _drop_desynchronised(context: ExceptionContext) -> None:
    """Throw a connection away when encoding parameters failed half-way.

    pg8000 then stays one answer behind and would give the next query (of another tenant) this one's rows; the pool's
    ping does not notice (FACTS). Anything that is not an answer of the server leaves the stream in doubt.
    """
    import pg8000.exceptions

    error = context.original_exception
    if not isinstance(error, pg8000.exceptions.DatabaseError) or _state_of(error) in _STALE:
        context.is_disconnect = True


_STALE = ("0A000", "26000")
"""A statement that was parsed once is not what it was ("cached plan must not change result type": a table was changed
under it), or not there: a new connection parses it anew."""


def often(sql: str) -> TextClause:
    """A statement of every question: a connection has it parsed once, by its text as it is at the first use.

    For statements that go by keys. PostgreSQL may plan such a statement without its values from its sixth execution on
    (https://www.postgresql.org/docs/16/sql-prepare.html#SQL-PREPARE-NOTES), which a search by statistics would suffer.
    """
    return text(sql).execution_options(parsed_once=True)


def _parse_once(_connection: object, _cursor: object, statement: str, _values: object, context: Any, _: bool) -> None:
    if context.execution_options.get("parsed_once"):
        PARSED_ONCE.add(dollars(statement))


_SHARED_FAILURES = ("08", "25P03", "40", "53", "57", "55P03")
"""SQLSTATEs (classes) that say nothing about the statement: connection, a transaction that stood still for too long,
rollback by the server (deadlock), resources, operator intervention, lock not available
(https://www.postgresql.org/docs/16/errcodes-appendix.html)."""


def is_shared_failure(error: SQLAlchemyError) -> bool:
    """Whether trying again later can help: the database, its pool or the way to it failed, not the statement."""
    if isinstance(error, PoolTimeout | InterfaceError | OperationalError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or sqlstate(error).startswith(_SHARED_FAILURES)


def sqlstate(error: DBAPIError) -> str:
    """The SQLSTATE of an error of the server, empty for any other.

    pg8000 raises ProgrammingError for nearly everything; the state is in its first argument (FACTS).
    """
    return _state_of(error.orig) if error.orig is not None else ""


def _state_of(error: BaseException) -> str:
    detail = error.args[0] if error.args else None
    return str(detail.get("C", "")) if isinstance(detail, dict) else ""


@lru_cache(maxsize=1)
def application_engine() -> Engine:
    """The engine of the application role: not owner, no BYPASSRLS."""
    settings = get_settings()
    return make_engine(
        settings.database_url.get_secret_value(),
        settings.database_pool,
        cloud_sql_instance=settings.cloud_sql_instance,
        statement_seconds=settings.database_statement_seconds,
    )


@lru_cache(maxsize=1)
def operator_engine() -> Engine:
    """The engine of the operator role. Raises SettingsError where this process must not have it."""
    settings = get_settings()
    if settings.operator_database_url is None:
        raise SettingsError("OPERATOR_DATABASE_URL is not set: only maintenance and operators' commands have it.")
    return make_engine(
        settings.operator_database_url.get_secret_value(),
        2,
        cloud_sql_instance=settings.cloud_sql_instance,
        statement_seconds=settings.database_statement_seconds,
    )


def forget_engines() -> None:
    """Close all connections and read the settings anew at the next use (tests, forked workers)."""
    for maker in (application_engine, operator_engine):
        if maker.cache_info().currsize:
            maker().dispose()
        maker.cache_clear()


class _TenantSession(Session):
    """Bound by `_bind_tenant`, registered once for the class: for every session it was two thirds of making one."""


@contextmanager
def tenant_session(tenant_id: UUID) -> Iterator[Session]:
    """A session that sees the rows of one tenant. Commits at the end, rolls back on an error.

    `app.tenant_id` is set anew in every transaction of the session, so work after a `session.commit()` is still bound.
    """
    session = _TenantSession(application_engine(), expire_on_commit=False)
    session.info["tenant_id"] = tenant_id
    with _closing(session), tracing.span("transaction", kind="client"):
        yield session
        session.commit()


@contextmanager
def _closing(session: Session) -> Iterator[None]:
    """Close the session, then do what was put into `session.info["after_close"]` (the outbox is flushed there).

    Not in an after_commit hook: the session still holds its connection then, and work that takes a second one from
    the pool deadlocks as soon as as many requests commit together as the pool has connections.
    """
    try:
        with session:
            yield
    finally:
        for callback in session.info.pop("after_close", ()):
            callback()


def _bind_tenant(session: Session, _transaction: object, connection: Connection) -> None:
    tenant = UUID(str(session.info["tenant_id"]))
    if connection.in_nested_transaction():
        connection.execute(text("select set_config('app.tenant_id', :tenant, true)"), {"tenant": str(tenant)})
        return
    # With BEGIN, which goes out with the first statement: together they are one round trip.
    driver: Any = connection.connection.driver_connection
    driver.begin_with(f"begin; select set_config('app.tenant_id', '{tenant}', true)")


event.listen(_TenantSession, "after_begin", _bind_tenant)


@contextmanager
def _driver_alone(connection: Connection) -> Iterator[None]:
    """Statements in here are sent as they are, without a BEGIN before them.

    By the driver's own switch: SQLAlchemy's isolation level would cost three round trips to set back.
    """
    driver = connection.connection.driver_connection
    assert driver is not None
    driver.autocommit = True
    try:
        yield
    finally:
        driver.autocommit = False


def call_alone(statement: str, values: Sequence[Any]) -> Any:
    """One statement that is a transaction of its own, in one round trip; returns its one value.

    For a function of ours that binds itself to the tenant it is given, transaction-locally like `tenant_session`.
    `statement` has the driver's %s for values.
    """
    PARSED_ONCE.add(dollars(statement))
    with application_engine().connect() as connection, _driver_alone(connection):
        found = connection.exec_driver_sql(statement, tuple(values)).scalar_one()
        connection.rollback()  # see run_alone
    return found


def run_alone(tenant_id: UUID, statement: str) -> None:
    """A statement that sees the rows of one tenant and is a transaction of its own, in one round trip instead of three.

    It has no parameters: what it says of them is written into it, so they may be ids and nothing else.
    """
    # What the simple protocol is given at once is one transaction
    # (https://www.postgresql.org/docs/16/protocol-flow.html#PROTOCOL-FLOW-MULTI-STATEMENT).
    bound = f"select set_config('app.tenant_id', '{UUID(str(tenant_id))}', true)"
    with (
        tracing.span("transaction", kind="client"),
        application_engine().connect() as connection,
        _driver_alone(connection),
    ):
        connection.exec_driver_sql(f"{bound}; {statement}")
        # To SQLAlchemy it is a transaction yet to end: here that undoes nothing, and `forget_made` can tell.
        connection.rollback()


@contextmanager
def operator_session() -> Iterator[Session]:
    """A session across tenants, under the operator role. Commits at the end, rolls back on an error."""
    session = Session(operator_engine(), expire_on_commit=False)
    with _closing(session), tracing.span("transaction across tenants", kind="client"):
        yield session
        session.commit()


@contextmanager
def platform_session() -> Iterator[Session]:
    """A session of the application role without a tenant: it sees no tenant's rows.

    For definer functions that resolve a principal and for the dead-letter archive.
    """
    session = Session(application_engine(), expire_on_commit=False)
    with _closing(session):
        yield session
        session.commit()


def write_one(session: Session, sql: str, values: dict[str, Any]) -> None:
    """Run a write that must hit exactly one row. Raises LostWrite otherwise.

    Under row-level security a forgotten tenant updates nothing and says nothing; taking that for success would
    acknowledge a lost document.
    """
    count = session.execute(text(sql), values).rowcount  # type: ignore[attr-defined]
    if count != 1:
        raise LostWrite(f"a write that had to hit one row hit {count}: {sql.split(' set ', maxsplit=1)[0][:60]}")


__all__ = [
    "LostWrite",
    "application_engine",
    "array_literal",
    "call_alone",
    "copy_rows",
    "forget_engines",
    "is_shared_failure",
    "make_engine",
    "metadata",
    "often",
    "operator_engine",
    "operator_session",
    "patiently",
    "platform_session",
    "run_alone",
    "sqlstate",
    "tenant_session",
    "vector_literal",
    "write_one",
]
