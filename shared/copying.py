"""Values and rows in the forms in which PostgreSQL takes many of them: array and vector literals, COPY."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

MADE = "incoming tables"
"""Where a connection notes the temporary tables it has; `forget_made` when a transaction that may have made one ends
without a commit."""

TYPES = "types of columns"
"""Where a connection notes the types of the columns that it has copied."""

_HEADER, _NULL, _END = b"PGCOPY\n\xff\r\n\0" + bytes(8), struct.pack(">i", -1), struct.pack(">h", -1)
"""Of COPY's binary format (https://www.postgresql.org/docs/16/sql-copy.html, "Binary Format")."""

_MOST_IN_A_PAGE, _ROW_OVERHEAD, _VALUE_OVERHEAD = 8_160, 40, 12
"""Bytes: MaxHeapTupleSize of pages of 8 KiB, a row's header with its nulls, a value's length and alignment."""


def forget_made(connection: Connection, *_savepoint: object) -> None:
    """After a rollback, also to a savepoint: whatever was made since may be gone, and is made if it does not exist."""
    if connection.invalidated:
        return  # its notes are gone with it
    driver = connection.connection.driver_connection
    if driver is not None and not driver.autocommit:  # else there was no transaction (`run_alone`)
        connection.info.pop(MADE, None)


def copy_rows(
    session: Session, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, only: str = ""
) -> int:
    """Bulk insert by COPY; returns the number of new rows. Rows that already exist are left alone.

    COPY into a table with row-level security is refused for a non-owner, so the rows go to a temporary table first
    (FACTS: 16k rows/s against 0.3-0.8k/s by INSERT). The buffer is complete before the first byte is sent: a
    generator that fails half-way would kill the connection. `table`, `columns` and `only` (the condition under which a
    row, which it calls `incoming`, is kept) are code and ids, never input. Raises TypeError for a column of a type
    that nobody has copied yet (`_FORMS`).
    """
    connection = session.connection()
    types = _types(connection, table, columns)
    head = struct.pack(">h", len(columns))
    forms = [_FORMS[kind] for kind in types]
    # Elements of a text[] are aligned in a row, which may take half as much again.
    weights = [2 if kind == "text[]" else 1 for kind in types]
    parts, largest = [_HEADER], 0
    for row in rows:
        parts.append(head)
        size = _ROW_OVERHEAD + _VALUE_OVERHEAD * len(columns)
        for form, weight, value in zip(forms, weights, row, strict=True):
            if value is None:
                parts.append(_NULL)
                continue
            packed = form(value)
            parts += (_INTEGER(len(packed)), packed)
            size += len(packed) * weight
        largest = max(largest, size)
    if len(parts) == 1:
        return 0
    parts.append(_END)
    incoming = _incoming(session, connection, table, columns, types, wide=largest > _MOST_IN_A_PAGE)
    return _copy(connection, incoming, table, columns, io.BytesIO(b"".join(parts)), only)


def _types(connection: Connection, table: str, columns: Sequence[str]) -> list[str]:
    """The types of the columns, asked once for a connection."""
    known = connection.info.setdefault(TYPES, {})
    if (table, columns) not in known:
        rows = connection.exec_driver_sql(
            "select attname, format_type(atttypid, null) as kind from pg_attribute "
            f"where attrelid = '{table}'::regclass and attnum > 0 and not attisdropped"
        )
        by_name = {row.attname: row.kind for row in rows}
        types = [by_name[column] for column in columns]
        if unknown := sorted(set(types) - set(_FORMS)):
            raise TypeError(f"no COPY form for {', '.join(unknown)} in {table}")
        known[table, columns] = types
    found: list[str] = known[table, columns]
    return found


def _incoming(
    session: Session, connection: Connection, table: str, columns: Sequence[str], types: Sequence[str], *, wide: bool
) -> str:
    """The temporary table for rows of a table, made once for a connection and emptied by every commit.

    Two of them: where a page takes any row whole (`storage plain`) there is no TOAST table, whose index is built anew
    at every commit that empties it (2 ms on a busy machine); the other is for wide rows.
    """
    incoming = f"incoming_{table.replace('.', '_')}{'_wide' if wide else ''}"
    made = connection.info.setdefault(MADE, set())
    if incoming not in made:
        # JSON as it is sent: a jsonb may be several times larger.
        kinds = ("json" if kind == "jsonb" else kind for kind in types)
        storage = "" if wide else " storage plain"
        described = ", ".join(f"{name} {kind}{storage}" for name, kind in zip(columns, kinds, strict=True))
        connection.exec_driver_sql(
            f"create temporary table if not exists {incoming} ({described}) on commit delete rows"
        )
        made.add(incoming)
    transaction = session.get_transaction()
    if session.info.get(incoming) is transaction:
        connection.exec_driver_sql(f"delete from pg_temp.{incoming}")  # of an earlier call in this transaction
    session.info[incoming] = transaction
    return incoming


def _copy(
    connection: Connection, incoming: str, table: str, columns: Sequence[str], buffer: io.BytesIO, only: str
) -> int:
    names = ", ".join(columns)
    driver = connection.connection.driver_connection
    assert driver is not None
    cursor = driver.cursor()
    try:
        cursor.execute(f"copy pg_temp.{incoming} ({names}) from stdin (format binary)", stream=buffer)
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


_INTEGER = struct.Struct(">i").pack
_to_json = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps() makes an encoder for each value


def _json(value: Any) -> bytes:
    return _to_json(value).encode()


def _array(type_oid: int, items: Sequence[bytes]) -> bytes:
    """array_send: dimensions, whether there are nulls, type of the items, their number, first index, items."""
    if not items:
        return struct.pack(">iii", 0, 0, type_oid)
    head = struct.pack(">iiiii", 1, 0, type_oid, len(items), 1)
    return head + b"".join(_INTEGER(len(item)) + item for item in items)


def _texts(items: Sequence[str]) -> bytes:
    return _array(25, [item.encode() for item in items])


def _integers(items: Sequence[int]) -> bytes:
    return _array(23, [_INTEGER(item) for item in items])


def _vector(numbers: Sequence[float]) -> bytes:
    """vector_send of pgvector: dimension, 0, then 32-bit numbers."""
    return struct.pack(f">hh{len(numbers)}f", len(numbers), 0, *numbers)


_FORMS: dict[str, Callable[[Any], bytes]] = {
    "uuid": attrgetter("bytes"),
    "text": str.encode,
    "boolean": struct.Struct(">?").pack,
    "integer": _INTEGER,
    "bigint": struct.Struct(">q").pack,
    "jsonb": _json,
    "text[]": _texts,
    "integer[]": _integers,
    "vector": _vector,
}
"""A value of a column of that type as PostgreSQL sends it itself (the types' send functions, as array_send in
src/backend/utils/adt/arrayfuncs.c); a jsonb goes as the json that it is made from."""


def array_literal(items: Iterable[object]) -> str:
    """A PostgreSQL array literal of texts, for a `::text[]` or `::uuid[]` parameter."""
    quoted = ('"' + str(item).replace("\\", "\\\\").replace('"', '\\"') + '"' for item in items)
    return "{" + ",".join(quoted) + "}"


def vector_literal(vector: Iterable[float]) -> str:
    """A pgvector literal, for a `::vector` parameter; 9 significant digits keep a float32 exactly."""
    return "[" + ",".join(f"{x:.9g}" for x in vector) + "]"
