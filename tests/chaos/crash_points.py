"""Every instant at which a process can die, found by running the work once, and death at exactly one of them.

How to sweep work of your own (tests/chaos/ingestion_work.py is the example):

    # a module of yours; it runs in a fresh process that is forked from a warm one
    def work(job: dict[str, Any], points: CrashPoints) -> Any:        # returns plain JSON
        points.wrap(Journal, "append", "journal", lambda journal, row: row.kind)   # what is special to your work
        with points.step("ack", "204 /"):                                          # or a piece of code
            ...

    # the test
    with ForkServer("tests.chaos.your_module:work", environment, folder) as forks:
        points = forks.record(job)              # runs the work whole; `for point in points: print(point)`
        forks.kill(another_job, points[17])     # the same work in a fresh process, SIGKILL at that point
        late = forks.stop(another_job, point)   # SIGSTOP there instead; later: late.resume()
        forks.run(job)                          # undisturbed, the result of `work`

Recorded without doing anything: every SQL statement, COPY, commit and rollback (at the driver, so nothing passes by),
every HTTP call of httpx, every blob that is stored, every document handed to a parser. A statement is one point, just
before it; what leaves the process (commit, HTTP call, blob, publish, acknowledgement) is two, before and after.
Publishing and acknowledging are the harness's: it wraps them with `step`. The sequence must be the same in every run;
`kill` fails when the process reaches its point and it is another than was recorded.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

STRAYED = 77
"""Exit status of a process whose point is not the one that was recorded."""

PINGS = (";", "select 1")
_SPACE = re.compile(r"\s+")
_DIFFERS = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?<=statement_timeout = )\d+")
"""Ids, and what is left of a deadline: no two runs have the same."""


@dataclass(frozen=True, slots=True)
class Point:
    """An instant of a run: just before or after an operation."""

    number: int
    kind: str
    what: str
    when: str
    in_transaction: bool
    """A process that only stops here keeps its locks: others wait until it goes on or is ended."""

    def __str__(self) -> str:
        mark = " (in a transaction)" if self.in_transaction else ""
        return f"{self.number:4d} {self.when:6s} {self.kind:8s} {self.what}{mark}"

    def same_as(self, other: Point) -> bool:
        """Whether this is the same instant of another run."""
        return asdict(self) == asdict(other)


class CrashPoints:
    """The points of this process: recorded, or obeyed at one of them."""

    def __init__(self, at: Point | None = None, end: int = signal.SIGKILL, *, idle: bool = False) -> None:
        self.seen: list[Point] = []
        self._idle = idle
        self._at = at
        self._end = end
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()

    def reach(self, kind: str, what: str, when: str) -> None:
        """Note a point, and end the process here if it is the one."""
        if self._idle:
            return
        with self._lock:
            busy = any(connection._in_transaction for connection in list(self._connections))
            point = Point(len(self.seen), kind, _SPACE.sub(" ", what).strip()[:110], when, busy)
            self.seen.append(point)
            if self._at is None or point.number != self._at.number:
                return
            if not point.same_as(self._at):
                os.write(2, f"recorded {self._at}, now {point}\n".encode())
                os._exit(STRAYED)
            os.kill(os.getpid(), self._end)

    @contextmanager
    def step(self, kind: str, what: str) -> Iterator[None]:
        """Points before and after an operation that succeeds."""
        self.reach(kind, what, "before")
        yield
        self.reach(kind, what, "after")

    def wrap(self, owner: Any, name: str, kind: str, describe: Callable[..., str], *, after: bool = True) -> None:
        """Points around a method or function, for the life of this process.

        `describe` gets its arguments and says what it is about; an empty text means that this call is no point.
        """
        inner = getattr(owner, name)

        @wraps(inner)
        def outer(*arguments: Any, **named: Any) -> Any:
            what = describe(*arguments, **named)
            if not what:
                return inner(*arguments, **named)
            self.reach(kind, what, "before")
            result = inner(*arguments, **named)
            if after:
                self.reach(kind, what, "after")
            return result

        setattr(owner, name, outer)

    def install(self) -> None:
        """Wrap driver, HTTP client, blobs and parser. The process is thrown away afterwards: nothing is put back."""
        if self._idle:
            return
        import httpx
        import pg8000.legacy

        from functions.ingest.parsing import sandbox
        from shared.storage.folder import FolderStorage

        def statement(cursor: Any, sql: str, *_: Any, **__: Any) -> str:
            self._connections.add(cursor._c)
            # A ping of the pool (after a while, so not always) is the same instant as the end of what came before.
            # A transaction begins with its tenant in the text: another one in every run.
            return "" if sql in PINGS else _DIFFERS.sub("…", sql)

        self.wrap(pg8000.legacy.Cursor, "execute", "sql", statement, after=False)
        self.wrap(pg8000.legacy.Connection, "commit", "commit", lambda _: "transaction")
        # Given back to the pool a connection is rolled back always; nothing happens outside a transaction.
        self.wrap(
            pg8000.legacy.Connection,
            "rollback",
            "rollback",
            lambda connection: "transaction" if connection._in_transaction else "",
            after=False,
        )
        self.wrap(httpx.Client, "send", "http", lambda _client, request, **_: f"{request.method} {request.url.path}")
        self.wrap(FolderStorage, "put", "blob", lambda _store, _tenant, data: f"{len(data)} bytes")
        # Between before and after a draft of the file exists: its name and its rename are one effect more.
        self.wrap(Path, "replace", "file", lambda *_: "rename")
        self.wrap(sandbox._Child, "parse", "parse", lambda _child, data, *_: f"{len(data)} bytes")
