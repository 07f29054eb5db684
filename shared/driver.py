"""The driver (pg8000) as we drive it: one round trip and one packet a statement, each statement read once.

Part of `shared.database`, which alone uses it.
"""

from __future__ import annotations

import math
import socket
import time
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


CALLED_ALONE: set[str] = set()
"""Statements of `call_alone`, with $1 for %s: few, and each is executed again and again."""


class _Remembered(NamedTuple):
    """A statement that the server has parsed: its name there, its columns, and what reads their values."""

    name: bytes
    columns: Any
    readers: Any


def in_one_trip(connection: Any, _record: object) -> None:
    """Have a new connection send a statement with its parameters in one round trip instead of three.

    pg8000 waits for the answers to PARSE and DESCRIBE before it sends BIND and EXECUTE. None of them changes what it
    sends, and the protocol lets them follow one another up to one SYNC
    (https://www.postgresql.org/docs/16/protocol-flow.html#PROTOCOL-FLOW-PIPELINING). Everything is encoded before
    anything is sent. What is `CALLED_ALONE` is parsed once for a connection.
    """
    from pg8000 import core

    if connection._usock.family in (socket.AF_INET, socket.AF_INET6):
        # Else the end of what is longer than 8 KiB waits up to 40 ms for the beginning to be acknowledged.
        connection._usock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    waiting = connection.execute_unnamed
    remembered: dict[str, _Remembered] = {}
    names = count()

    def execute_unnamed(statement: str, vals: Any = (), oids: Any = (), stream: Any = None) -> Any:
        if stream is not None:  # a SYNC sent ahead would be swallowed by COPY
            return waiting(statement, vals=vals, oids=oids, stream=stream)
        parameters = core.make_params(connection.py_types, vals)
        known = remembered.get(statement)
        if known:
            name, context = known.name, core.Context(statement, None, known.columns, known.readers)
        else:
            # A new name each time: one whose execution failed may be there already.
            name = b"alone_%d\0" % next(names) if statement in CALLED_ALONE else core.NULL_BYTE
            context = core.Context(statement)
        wire, letter = connection._sock, _Letter(core.FLUSH_MSG)
        if wire is None:
            raise core.InterfaceError("connection is closed")
        connection._sock = letter
        try:
            if not known:
                connection.send_PARSE(name, statement, oids)
                connection.send_DESCRIBE_STATEMENT(name)
            connection.send_BIND(name, parameters)
            connection.send_EXECUTE()
        finally:
            connection._sock = wire
        core._write(wire, letter.whole() + core.SYNC_MSG)
        core._flush(wire)
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
