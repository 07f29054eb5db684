"""The driver (pg8000) as we drive it: one round trip and one packet a statement, each statement read once.

Part of `shared.database`, which alone uses it.
"""

from __future__ import annotations

import math
import socket
import time
from contextlib import suppress
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple

PING_SECONDS = 1.0
"""A connection that answered a moment ago is taken to be alive; if it is not, the delivery is tried again."""


@lru_cache(maxsize=2048)
def dollars(statement: str) -> str:
    """The statement with $1, $2 … for its %s: what pg8000 makes of it, which takes a millisecond for a long one."""
    from pg8000.dbapi import convert_paramstyle

    converted: str = convert_paramstyle("format", statement, ())[0]
    return converted


def remember_conversions() -> None:
    """Have pg8000 convert each statement once: it reads it character by character at every execution."""
    import pg8000.legacy

    original = pg8000.legacy.convert_paramstyle

    def remembered(style: str, query: str, args: Any) -> Any:
        # Only statements with parameters come here; the values of the format style are handed on as they are.
        return (dollars(query), args) if style == "format" else original(style, query, args)

    if original.__module__.startswith("pg8000"):
        pg8000.legacy.convert_paramstyle = remembered


class _Letter:
    """Stands in for a connection's socket while a statement is put together: nothing goes out half encoded.

    pg8000 asks for an answer (Flush) after each of the four messages of a statement; the server then sends five small
    packets where one does, and both sides wake up for each.
    """

    def __init__(self, flush: bytes) -> None:
        self._flush = flush
        self._pages: list[bytes] = []

    def write(self, page: bytes) -> None:
        """A message of the protocol."""
        if page != self._flush:
            self._pages.append(page)

    def whole(self) -> bytes:
        """All messages in order."""
        return b"".join(self._pages)


PARSED_ONCE: set[str] = set()
"""Statements that a connection has parsed once, with $1 for %s: few, and each is executed again and again."""


_ENDS = ("commit", "rollback")
"""How the driver ends a transaction."""


class _Remembered(NamedTuple):
    """A statement that the server has parsed: its name there, its columns, and what reads their values."""

    name: bytes
    columns: Any
    readers: Any


class _Beginning:
    """The BEGIN of a connection's next transaction: it goes out with the first statement, not before it.

    Until then the driver takes the transaction for begun, so that it sends no BEGIN of its own.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._waiting = ""
        self._send_alone = connection.execute_simple
        connection.begin_with = self.put_off
        connection.execute_simple = self.simple

    def put_off(self, statement: str) -> None:
        """Begin the transaction with these statements, in the simple protocol."""
        from pg8000 import core

        self._waiting = statement
        self._connection._transaction_status = core.IN_TRANSACTION

    def take(self) -> str:
        """What is to be sent before a statement; it is no longer waiting."""
        statement, self._waiting = self._waiting, ""
        return statement

    def forgotten(self) -> bool:
        """Whether a transaction ends that has not begun: nothing is sent."""
        from pg8000 import core

        if not self._waiting:
            return False
        self._waiting = ""
        self._connection._transaction_status = core.IDLE
        return True

    def simple(self, statement: str) -> Any:
        """A statement without parameters."""
        from pg8000 import core

        if statement == "begin transaction":  # the driver's own, before the first statement of a transaction
            self.put_off(statement)
            return core.Context(statement)
        if waiting := self.take():
            self._send_alone(waiting)
        return self._send_alone(statement)


def _read_answer(connection: Any, begun: Any, following: Any) -> None:
    """The answer to a BEGIN; when it was refused, the answer to what followed is read too, and the refusal raised."""
    from pg8000 import core

    try:
        connection.handle_messages(begun)
    except core.DatabaseError:
        with suppress(core.DatabaseError):  # refused as well: its transaction had failed
            connection.handle_messages(following)
        raise


def in_one_trip(connection: Any, _record: object) -> None:
    """Have a new connection send a statement with its parameters in one round trip instead of three.

    pg8000 waits for the answers to PARSE and DESCRIBE before it sends BIND and EXECUTE. None of them changes what it
    sends, and the protocol lets them follow one another up to one SYNC
    (https://www.postgresql.org/docs/16/protocol-flow.html#PROTOCOL-FLOW-PIPELINING). Everything is encoded before
    anything is sent. What is `PARSED_ONCE` is parsed once for a connection. A transaction's BEGIN goes with its first
    statement, and COMMIT is one message instead of five.
    """
    from pg8000 import core

    if connection._usock.family in (socket.AF_INET, socket.AF_INET6):
        # Else the end of what is longer than 8 KiB waits up to 40 ms for the beginning to be acknowledged.
        connection._usock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    waiting = connection.execute_unnamed
    beginning = _Beginning(connection)
    remembered: dict[str, _Remembered] = {}
    names = count()

    def execute_unnamed(statement: str, vals: Any = (), oids: Any = (), stream: Any = None) -> Any:
        if statement in _ENDS:
            return core.Context(statement) if beginning.forgotten() else connection.execute_simple(statement)
        if stream is not None:  # a SYNC sent ahead would be swallowed by COPY
            if begin := beginning.take():
                connection.execute_simple(begin)
            return waiting(statement, vals=vals, oids=oids, stream=stream)
        parameters = core.make_params(connection.py_types, vals)
        known = remembered.get(statement)
        if known:
            name, context = known.name, core.Context(statement, None, known.columns, known.readers)
        else:
            # A new name each time: one whose execution failed may be there already.
            name = b"once_%d\0" % next(names) if statement in PARSED_ONCE else core.NULL_BYTE
            context = core.Context(statement)
        wire, letter = connection._sock, _Letter(core.FLUSH_MSG)
        if wire is None:
            raise core.InterfaceError("connection is closed")
        connection._sock = letter
        begin = beginning.take()
        try:
            if begin:
                connection.send_QUERY(begin)
            if not known:
                connection.send_PARSE(name, statement, oids)
                connection.send_DESCRIBE_STATEMENT(name)
            connection.send_BIND(name, parameters)
            connection.send_EXECUTE()
        finally:
            connection._sock = wire
        core._write(wire, letter.whole() + core.SYNC_MSG)
        core._flush(wire)
        if begin:
            _read_answer(connection, core.Context(begin), context)
        connection.handle_messages(context)
        if not known and name != core.NULL_BYTE:
            remembered[statement] = _Remembered(name, context.columns, context.input_funcs)
        return context

    connection.execute_unnamed = execute_unnamed


def ping(connection: Any) -> bool:
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
