"""The bus's memory: one SQLite file, one thread that writes it.

Every change is an operation handed to the writer, which takes all that wait, runs them in one transaction and answers
after COMMIT (`synchronous=FULL`: the bytes are on the disk, or nothing was promised). A message is one row per
subscription that has yet to acknowledge it; fan-out copies the body, because almost every topic has one subscription
and a copy costs less than counting references in every acknowledgement.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grpc

from local.bus.refusal import Refused

log = logging.getLogger(__name__)

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]

# Operations in one transaction: bounds the memory and the time of a commit.
_BATCH = 2000
# Acknowledgements alone need not hurry: wait this long (seconds) for company before paying for a disk flush.
_LINGER = 0.01

_SCHEMA = """
CREATE TABLE IF NOT EXISTS topics (name TEXT PRIMARY KEY, config BLOB NOT NULL, declared INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS subscriptions (
  key INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, config BLOB NOT NULL, declared INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS messages (
  subscription INTEGER NOT NULL, id INTEGER NOT NULL, failures INTEGER NOT NULL, due REAL NOT NULL,
  published REAL NOT NULL, body BLOB NOT NULL, PRIMARY KEY (subscription, id)
);
CREATE TABLE IF NOT EXISTS queues (name TEXT PRIMARY KEY, config BLOB NOT NULL, declared INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS tasks (
  name TEXT PRIMARY KEY, queue TEXT NOT NULL, due REAL NOT NULL, ended REAL, body BLOB
);
CREATE INDEX IF NOT EXISTS tasks_waiting ON tasks (queue, due) WHERE ended IS NULL;
CREATE INDEX IF NOT EXISTS tasks_ended ON tasks (ended) WHERE ended IS NOT NULL;
CREATE TABLE IF NOT EXISTS schedules (job TEXT PRIMARY KEY, last REAL NOT NULL);
"""


class StoredMessage(NamedTuple):
    """One undelivered message of one subscription; times in seconds since the epoch."""

    id: int
    failures: int
    due: float
    published: float
    body: bytes


class _Work(NamedTuple):
    operation: Operation[Any]
    done: Future[Any] | None
    after: Callable[[Any], None] | None


class Store:
    """The file, its writer and one reading connection. `path` is created; a second process is turned away."""

    def __init__(self, path: Path) -> None:
        """Open or create the file; raises BlockingIOError if another bus has it open."""
        descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        self._lock = os.fdopen(descriptor, "r+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._path = path
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._reading = threading.Lock()
        writer = self._connect()
        writer.executescript(_SCHEMA)
        self._reader = self._connect()
        # Larger than every id ever given out: ids of acknowledged messages are gone from the table, time is not.
        newest = self._reader.execute("SELECT coalesce(max(id), 0) FROM messages").fetchone()[0]
        self._next_id: int = max(newest + 1, time.time_ns() // 1000)
        self._thread = threading.Thread(target=self._write, args=(writer,), name="store", daemon=True)
        self._thread.start()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        connection.executescript(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA journal_size_limit=33554432; "
            "PRAGMA busy_timeout=5000;"
        )
        return connection

    def close(self) -> None:
        """Write what is waiting and close the file."""
        self._work.put(None)
        self._thread.join()
        self._reader.close()
        self._lock.close()

    # -- writing

    def submit(self, operation: Operation[T], after: Callable[[T], None] | None = None) -> Future[T]:
        """Run `operation` in the next transaction; the future answers after its COMMIT.

        `after` runs on the writer's thread between COMMIT and answer, in the order of submission: it must be short.
        """
        done: Future[T] = Future()
        self._work.put(_Work(operation, done, after))
        return done

    def later(self, operation: Operation[T], after: Callable[[T], None] | None = None) -> None:
        """As `submit`, for changes nobody waits for: losing the last of them means a redelivery, never a loss."""
        self._work.put(_Work(operation, None, after))

    def new_id(self) -> int:
        """The next message id; only for operations, so that ids grow in the order of commits."""
        self._next_id += 1
        return self._next_id

    def _write(self, connection: sqlite3.Connection) -> None:
        running = True
        while running:
            batch, running = self._gather()
            if batch:
                self._commit(connection, batch)
        connection.close()

    def _gather(self) -> tuple[list[_Work], bool]:
        """The operations of the next transaction, and whether there will be another one."""
        batch: list[_Work] = []
        waiting, until = False, 0.0
        while len(batch) < _BATCH:
            try:
                if not batch:
                    work = self._work.get()
                elif waiting:
                    work = self._work.get_nowait()
                else:
                    work = self._work.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if work is None:
                return batch, False
            if not batch:
                until = time.monotonic() + _LINGER
            waiting = waiting or work.done is not None
            batch.append(work)
        return batch, True

    def _commit(self, connection: sqlite3.Connection, batch: list[_Work]) -> None:
        try:
            connection.execute("BEGIN IMMEDIATE")
            results = [work.operation(connection) for work in batch]
            connection.execute("COMMIT")
        except (sqlite3.Error, Refused) as error:
            # Anything else is our own mistake: it ends this thread, and `__main__` then ends the process.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if len(batch) > 1:
                # One operation spoiled it for all: give each a transaction of its own.
                for work in batch:
                    self._commit(connection, [work])
            else:
                _report(batch[0], error)
            return
        for work, result in zip(batch, results, strict=True):
            if work.after is not None:
                work.after(result)
            if work.done is not None:
                work.done.set_result(result)

    # -- reading

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """All rows of a small query."""
        with self._reading:
            return self._reader.execute(sql, parameters).fetchall()

    def messages_after(self, subscription: int, after: int, limit: int, size: int) -> list[StoredMessage]:
        """The next messages of a subscription by id: at most `limit`, and at most `size` bytes but for the first."""
        found: list[StoredMessage] = []
        with self._reading:
            rows = self._reader.execute(
                "SELECT id, failures, due, published, body FROM messages WHERE subscription = ? AND id > ?"
                " ORDER BY id LIMIT ?",
                (subscription, after, limit),
            )
            for row in rows:
                found.append(StoredMessage(*row))
                size -= len(found[-1].body)
                if size <= 0:
                    break
            rows.close()
        return found

    def body(self, subscription: int, message: int) -> bytes | None:
        """The body of one message, or None if it is gone."""
        rows = self.rows("SELECT body FROM messages WHERE subscription = ? AND id = ?", subscription, message)
        return rows[0][0] if rows else None

    def count(self, subscription: int) -> int:
        """How many messages a subscription has yet to acknowledge."""
        rows = self.rows("SELECT count(*) FROM messages WHERE subscription = ?", subscription)
        return int(rows[0][0])

    def oldest(self, subscription: int) -> float | None:
        """When the oldest unacknowledged message was published, or None."""
        rows = self.rows("SELECT published FROM messages WHERE subscription = ? ORDER BY id LIMIT 1", subscription)
        return rows[0][0] if rows else None


def _report(work: _Work, error: sqlite3.Error | Refused) -> None:
    if work.done is None:
        log.error("a change nobody waits for could not be stored: %s", error)
    elif isinstance(error, sqlite3.OperationalError):
        # The disk is full, or the file out of reach: clients may try again.
        work.done.set_exception(Refused(grpc.StatusCode.UNAVAILABLE, f"The bus cannot write: {error}."))
    else:
        work.done.set_exception(error)


# -- operations on messages, the ones that are hot


def insert_messages(rows: Sequence[tuple[int, int, float, bytes]]) -> Operation[None]:
    """Store (subscription, id, published, body) rows as deliverable at once."""

    def operation(connection: sqlite3.Connection) -> None:
        connection.executemany(
            "INSERT INTO messages (subscription, id, failures, due, published, body) VALUES (?, ?, 0, 0, ?, ?)", rows
        )

    return operation


def delete_messages(subscription: int, ids: Sequence[int]) -> Operation[int]:
    """Forget messages; the result is how many of them were there."""

    def operation(connection: sqlite3.Connection) -> int:
        pairs: Iterator[tuple[int, int]] = ((subscription, message) for message in ids)
        rows: int = connection.executemany("DELETE FROM messages WHERE subscription = ? AND id = ?", pairs).rowcount
        return rows

    return operation


def record_failure(subscription: int, message: int, failures: int, due: float) -> Operation[None]:
    """Store that a delivery failed and when the next one may be."""

    def operation(connection: sqlite3.Connection) -> None:
        connection.execute(
            "UPDATE messages SET failures = ?, due = ? WHERE subscription = ? AND id = ?",
            (failures, due, subscription, message),
        )

    return operation
