"""The one way to the database: an engine per role, a session bound to a tenant, bulk writing by COPY.

Only this module knows the driver (pg8000). `tenant_session` is for everything that belongs to a tenant; row-level
security sees the tenant through the transaction-local setting `app.tenant_id`. `operator_session` works across
tenants under a role of its own and is for maintenance and the CLI only (import-linter holds that).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, MetaData, create_engine, event, make_url, text
from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from shared.errors import NoesisError, SettingsError
from shared.settings import get_settings

metadata = MetaData()
"""Every table of the product; the packages named after nouns declare their own on it."""


class LostWrite(NoesisError):
    """A write that had to hit a row hit none: the tenant is not set, or the row is not there."""


def make_engine(url: str, pool_size: int, *, cloud_sql_instance: str = "") -> Engine:
    """An engine for one role: pooled, pinged before use, safe against pg8000's desynchronisation."""
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
        options["creator"] = _cloud_sql_creator(url, cloud_sql_instance)
        url = "postgresql+pg8000://"
    else:
        options["connect_args"] = {"timeout": 30, "application_name": "noesis2"}
    engine = create_engine(url, **options)
    event.listen(engine, "handle_error", _drop_desynchronised)
    return engine


def _cloud_sql_creator(url: str, instance: str) -> Any:
    # Imported late: the connector pulls in aiohttp, and a laptop never needs it.
    from google.cloud.sql.connector import Connector

    address = make_url(url)
    # Lazy refresh: Cloud Run throttles the CPU between requests, a background refresh would not run (FACTS).
    connector = Connector(refresh_strategy="lazy")
    return lambda: connector.connect(
        instance, "pg8000", user=address.username, password=address.password, db=address.database
    )


def _drop_desynchronised(context: ExceptionContext) -> None:
    """Throw a connection away when encoding parameters failed half-way.

    pg8000 then stays one answer behind and would give the next query (of another tenant) this one's rows; the pool's
    ping does not notice (FACTS). Anything that is not an answer of the server leaves the stream in doubt.
    """
    import pg8000.exceptions

    if not isinstance(context.original_exception, pg8000.exceptions.DatabaseError):
        context.is_disconnect = True


_SHARED_FAILURES = ("08", "40", "53", "57", "55P03")
"""SQLSTATEs (classes) that say nothing about the statement: connection, rollback by the server (deadlock), resources,
operator intervention, lock not available (https://www.postgresql.org/docs/16/errcodes-appendix.html)."""


def is_shared_failure(error: SQLAlchemyError) -> bool:
    """Whether trying again later can help: the database, its pool or the way to it failed, not the statement."""
    if isinstance(error, PoolTimeout | InterfaceError | OperationalError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    # pg8000 raises ProgrammingError for nearly everything; the SQLSTATE is in its first argument (FACTS).
    detail = error.orig.args[0] if error.orig is not None and error.orig.args else None
    state = str(detail.get("C", "")) if isinstance(detail, dict) else ""
    return error.connection_invalidated or state.startswith(_SHARED_FAILURES)


@lru_cache(maxsize=1)
def application_engine() -> Engine:
    """The engine of the application role: not owner, no BYPASSRLS."""
    settings = get_settings()
    return make_engine(
        settings.database_url.get_secret_value(),
        settings.database_pool,
        cloud_sql_instance=settings.cloud_sql_instance,
    )


@lru_cache(maxsize=1)
def operator_engine() -> Engine:
    """The engine of the operator role. Raises SettingsError where this process must not have it."""
    settings = get_settings()
    if settings.operator_database_url is None:
        raise SettingsError("OPERATOR_DATABASE_URL is not set: only maintenance and operators' commands have it.")
    return make_engine(
        settings.operator_database_url.get_secret_value(), 2, cloud_sql_instance=settings.cloud_sql_instance
    )


def forget_engines() -> None:
    """Close all connections and read the settings anew at the next use (tests, forked workers)."""
    for maker in (application_engine, operator_engine):
        if maker.cache_info().currsize:
            maker().dispose()
        maker.cache_clear()


@contextmanager
def tenant_session(tenant_id: UUID) -> Iterator[Session]:
    """A session that sees the rows of one tenant. Commits at the end, rolls back on an error.

    `app.tenant_id` is set anew in every transaction of the session, so work after a `session.commit()` is still bound.
    """
    session = Session(application_engine(), expire_on_commit=False)
    session.info["tenant_id"] = tenant_id
    event.listen(session, "after_begin", _bind_tenant)
    with _closing(session):
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
    connection.execute(
        text("select set_config('app.tenant_id', :tenant, true)"), {"tenant": str(session.info["tenant_id"])}
    )


@contextmanager
def operator_session() -> Iterator[Session]:
    """A session across tenants, under the operator role. Commits at the end, rolls back on an error."""
    session = Session(operator_engine(), expire_on_commit=False)
    with _closing(session):
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


def copy_rows(session: Session, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """Bulk insert by COPY; returns the number of new rows. Rows that already exist are left alone.

    COPY into a table with row-level security is refused for a non-owner, so the rows go to a temporary table first
    (FACTS: 16k rows/s against 0.3-0.8k/s by INSERT). The buffer is complete before the first byte is sent: a
    generator that fails half-way would kill the connection. `table` and `columns` are code, never input.
    """
    buffer = io.BytesIO()
    for row in rows:
        buffer.write("\t".join(map(_copy_text, row)).encode() + b"\n")
    if not buffer.tell():
        return 0
    buffer.seek(0)
    names = ", ".join(columns)
    connection = session.connection()
    connection.exec_driver_sql("drop table if exists pg_temp.incoming")
    connection.exec_driver_sql(
        f"create temporary table incoming on commit drop as select {names} from {table} with no data"
    )
    driver = connection.connection.driver_connection
    assert driver is not None
    cursor = driver.cursor()
    try:
        cursor.execute(f"copy pg_temp.incoming ({names}) from stdin", stream=buffer)
    except driver.Error as error:
        raise DBAPIError("copy", None, error) from error
    finally:
        cursor.close()
    insert = f"insert into {table} ({names}) select {names} from pg_temp.incoming on conflict do nothing"
    count: int = connection.exec_driver_sql(insert).rowcount
    connection.exec_driver_sql("drop table pg_temp.incoming")
    return count


_COPY_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def _copy_text(value: Any) -> str:
    """One value in COPY's text format (https://www.postgresql.org/docs/16/sql-copy.html)."""
    if value is None:
        return "\\N"
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, int | float | UUID):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False).translate(_COPY_ESCAPES)
    if isinstance(value, list | tuple):
        return array_literal(value).translate(_COPY_ESCAPES)
    if isinstance(value, str):
        return value.translate(_COPY_ESCAPES)
    raise TypeError(f"no COPY form for {type(value).__name__}")


def array_literal(items: Iterable[object]) -> str:
    """A PostgreSQL array literal of texts, for a `::text[]` or `::uuid[]` parameter."""
    quoted = ('"' + str(item).replace("\\", "\\\\").replace('"', '\\"') + '"' for item in items)
    return "{" + ",".join(quoted) + "}"


def vector_literal(vector: Iterable[float]) -> str:
    """A pgvector literal, for a `::vector` parameter; 9 significant digits keep a float32 exactly."""
    return "[" + ",".join(f"{x:.9g}" for x in vector) + "]"
