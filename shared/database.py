"""The one way to the database: an engine per role, a session bound to a tenant, bulk writing by COPY.

Only this module knows the driver (pg8000). `tenant_session` is for everything that belongs to a tenant; row-level
security sees the tenant through the transaction-local setting `app.tenant_id`. `operator_session` works across
tenants under a role of its own and is for maintenance and the CLI only (import-linter holds that).
"""

from __future__ import annotations

import io
import json
import math
import socket
import struct
import time
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

from shared import tracing
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
    _remember_conversions()
    event.listen(engine, "connect", _in_one_trip)
    engine.dialect.do_ping = _ping  # type: ignore[method-assign,assignment] # SQLAlchemy's own leaves a transaction open
    event.listen(engine, "handle_error", _drop_desynchronised)
    return engine


PING_SECONDS = 1.0
"""A connection that answered a moment ago is taken to be alive; if it is not, the delivery is tried again."""


@lru_cache(maxsize=2048)
def _dollars(statement: str) -> str:
    """The statement with $1, $2 … for its %s: what pg8000 makes of it, which takes a millisecond for a long one."""
    from pg8000.dbapi import convert_paramstyle

    converted: str = convert_paramstyle("format", statement, ())[0]
    return converted


def _remember_conversions() -> None:
    """Have pg8000 convert each statement once: it reads it character by character at every execution."""
    import pg8000.legacy

    original = pg8000.legacy.convert_paramstyle

    def remembered(style: str, query: str, args: Any) -> Any:
        # Only statements with parameters come here; the values of the format style are handed on as they are.
        return (_dollars(query), args) if style == "format" else original(style, query, args)

    if original.__module__.startswith("pg8000"):
        pg8000.legacy.convert_paramstyle = remembered


def _in_one_trip(connection: Any, _record: object) -> None:
    """Have a new connection send a statement with its parameters in one round trip instead of three.

    pg8000 waits for the answers to PARSE and DESCRIBE before it sends BIND and EXECUTE. None of them changes what it
    sends, and the protocol lets them follow one another up to one SYNC
    (https://www.postgresql.org/docs/16/protocol-flow.html#PROTOCOL-FLOW-PIPELINING). Parameters are encoded before
    anything is sent.
    """
    from pg8000 import core

    if connection._usock.family in (socket.AF_INET, socket.AF_INET6):
        # Else the end of what is longer than 8 KiB waits up to 40 ms for the beginning to be acknowledged.
        connection._usock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    waiting = connection.execute_unnamed

    def execute_unnamed(statement: str, vals: Any = (), oids: Any = (), stream: Any = None) -> Any:
        if stream is not None:  # a SYNC sent ahead would be swallowed by COPY
            return waiting(statement, vals=vals, oids=oids, stream=stream)
        context = core.Context(statement)
        parameters = core.make_params(connection.py_types, vals)
        try:
            connection.send_PARSE(core.NULL_BYTE, statement, oids)
            connection.send_DESCRIBE_STATEMENT(core.NULL_BYTE)
            connection.send_BIND(core.NULL_BYTE, parameters)
            connection.send_EXECUTE()
            core._write(connection._sock, core.SYNC_MSG)
            core._flush(connection._sock)
        except AttributeError:
            if connection._sock is None:
                raise core.InterfaceError("connection is closed") from None
            raise
        connection.handle_messages(context)
        return context

    connection.execute_unnamed = execute_unnamed


def _ping(connection: Any) -> bool:
    """Ask the server for a sign of life without beginning a transaction, which `call_alone` would be caught in."""
    now = time.monotonic()
    if now - getattr(connection, "pinged_at", -math.inf) < PING_SECONDS:
        return True
    before, connection.autocommit = connection.autocommit, True
    try:
        cursor = connection.cursor()
        cursor.execute("select 1")
        cursor.close()
    finally:
        connection.autocommit = before
    connection.pinged_at = now
    return True


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
    detail = error.orig.args[0] if error.orig is not None and error.orig.args else None
    return str(detail.get("C", "")) if isinstance(detail, dict) else ""


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
    connection.execute(
        text("select set_config('app.tenant_id', :tenant, true)"), {"tenant": str(session.info["tenant_id"])}
    )


def call_alone(statement: str, values: Sequence[Any]) -> Any:
    """One statement that is a transaction of its own, in one round trip; returns its one value.

    For a function of ours that binds itself to the tenant it is given, transaction-locally like `tenant_session`.
    `statement` has the driver's %s for values.
    """
    with application_engine().connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        # The driver's own switch: SQLAlchemy's isolation level would cost three round trips to set back.
        driver.autocommit = True
        try:
            return connection.exec_driver_sql(statement, tuple(values)).scalar_one()
        finally:
            driver.autocommit = False


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


def copy_rows(session: Session, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """Bulk insert by COPY; returns the number of new rows. Rows that already exist are left alone.

    COPY into a table with row-level security is refused for a non-owner, so the rows go to a temporary table first
    (FACTS: 16k rows/s against 0.3-0.8k/s by INSERT). The buffer is complete before the first byte is sent: a
    generator that fails half-way would kill the connection. `table` and `columns` are code, never input.
    """
    buffer = io.BytesIO()
    for row in rows:
        buffer.write("\t".join(map(_copy_text, row)).encode() + b"\n")
    return _copy(session, table, columns, buffer, "") if buffer.tell() else 0


def copy_binary_rows(
    session: Session, table: str, columns: Sequence[str], rows: Iterable[Sequence[UUID | bytes]]
) -> int:
    """As `copy_rows`, for rows of ids and of values that are in PostgreSQL's binary form already (`vector_bytes`)."""
    buffer = io.BytesIO()
    head = struct.pack(">h", len(columns))
    for row in rows:
        buffer.write(head)
        for value in row:
            packed = value.bytes if isinstance(value, UUID) else value
            buffer.write(struct.pack(">i", len(packed)) + packed)
    if not buffer.tell():
        return 0
    whole = io.BytesIO(b"PGCOPY\n\xff\r\n\0" + bytes(8) + buffer.getvalue() + struct.pack(">h", -1))
    return _copy(session, table, columns, whole, "(format binary)")


def _copy(session: Session, table: str, columns: Sequence[str], buffer: io.BytesIO, options: str) -> int:
    buffer.seek(0)
    names = ", ".join(columns)
    connection = session.connection()
    # Made once for a connection, emptied by every commit: making it anew costs more than a small batch.
    incoming = f"incoming_{table.replace('.', '_')}"
    connection.exec_driver_sql(
        f"create temporary table if not exists {incoming} on commit delete rows "
        f"as select {names} from {table} with no data"
    )
    driver = connection.connection.driver_connection
    assert driver is not None
    cursor = driver.cursor()
    try:
        cursor.execute(f"copy pg_temp.{incoming} ({names}) from stdin {options}", stream=buffer)
    except driver.Error as error:
        raise DBAPIError("copy", None, error) from error
    finally:
        cursor.close()
    insert = f"insert into {table} ({names}) select {names} from pg_temp.{incoming} on conflict do nothing"
    count: int = connection.exec_driver_sql(insert).rowcount
    connection.exec_driver_sql(f"delete from pg_temp.{incoming}")
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


def vector_bytes(vector: Sequence[float]) -> bytes:
    """A vector in pgvector's binary form (vector_send: dimension, 0, then 32-bit numbers), for `copy_binary_rows`."""
    return struct.pack(f">hh{len(vector)}f", len(vector), 0, *vector)


def vector_literal(vector: Iterable[float]) -> str:
    """A pgvector literal, for a `::vector` parameter; 9 significant digits keep a float32 exactly."""
    return "[" + ",".join(f"{x:.9g}" for x in vector) + "]"
