"""Values and rows in the forms in which PostgreSQL takes many of them: array and vector literals, COPY."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

MADE = "incoming tables"
"""Where a connection notes the temporary tables it has; `forget_made` when a transaction that may have made one ends
without a commit."""


def forget_made(connection: Connection, *_savepoint: object) -> None:
    """After a rollback, also to a savepoint: whatever was made since may be gone, and is made if it does not exist."""
    if connection.invalidated:
        return  # its notes are gone with it
    driver = connection.connection.driver_connection
    if driver is not None and not driver.autocommit:  # else there was no transaction (`run_alone`)
        connection.info.pop(MADE, None)


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
    session: Session, table: str, columns: Sequence[str], rows: Iterable[Sequence[UUID | bytes]], *, only: str = ""
) -> int:
    """As `copy_rows`, for rows of ids and of values that are in PostgreSQL's binary form already (`vector_bytes`).

    `only`: the condition under which a row, which it calls `incoming`, is kept; code and ids, never input.
    """
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
    return _copy(session, table, columns, whole, "(format binary)", only)


def _copy(
    session: Session, table: str, columns: Sequence[str], buffer: io.BytesIO, options: str, only: str = ""
) -> int:
    buffer.seek(0)
    names = ", ".join(columns)
    connection = session.connection()
    # Made once for a connection, emptied by every commit: making it anew costs more than a small batch.
    incoming = f"incoming_{table.replace('.', '_')}"
    made = connection.info.setdefault(MADE, set())
    if incoming not in made:
        connection.exec_driver_sql(
            f"create temporary table if not exists {incoming} on commit delete rows "
            f"as select {names} from {table} with no data"
        )
        made.add(incoming)
    transaction = session.get_transaction()
    if session.info.get(incoming) is transaction:
        connection.exec_driver_sql(f"delete from pg_temp.{incoming}")  # of an earlier call in this transaction
    session.info[incoming] = transaction
    driver = connection.connection.driver_connection
    assert driver is not None
    cursor = driver.cursor()
    try:
        cursor.execute(f"copy pg_temp.{incoming} ({names}) from stdin {options}", stream=buffer)
    except driver.Error as error:
        raise DBAPIError("copy", None, error) from error
    finally:
        cursor.close()
    kept = f" where {only}" if only else ""
    insert = (
        f"insert into {table} ({names}) select {names} from pg_temp.{incoming} as incoming{kept} on conflict do nothing"
    )
    count: int = connection.exec_driver_sql(insert).rowcount
    return count


def _escaped(value: str) -> str:
    """Four searches for rare letters: str.translate() looks up every letter, which takes five times as long."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


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
        return _escaped(json.dumps(value, ensure_ascii=False))
    if isinstance(value, list | tuple):
        return _escaped(array_literal(value))
    if isinstance(value, str):
        return _escaped(value)
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
