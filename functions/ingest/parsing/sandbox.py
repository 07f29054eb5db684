"""Parsing in a child process with limits on memory, processor and wall time, so that no document can hurt the service.

A fresh interpreter for every document would cost about half a second, so children are kept and used again: up to
`_IDLE` wait, each is replaced after `_DOCUMENTS` documents and after any failure. Children are started as new programs
(never forked: a gunicorn worker has threads and locks), with an empty environment, so that no secret is in reach.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from functions.ingest.parsing import wire
from functions.ingest.parsing.child import FRAME
from functions.ingest.parsing.document import ParsedDocument
from functions.ingest.parsing.ocr import Recogniser
from functions.ingest.parsing.reasons import REASONS, failure
from shared.errors import PermanentError

_DOCUMENTS = 100
_IDLE = 2
"""Children that wait for work; the topology lets an instance ingest two documents at a time."""
_MAX_HEAD = 65_536
_MAX_BODY = 1_000_000_000


class _Child:
    """One child process and the socket to it; used by one thread at a time."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "functions.ingest.parsing.child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a library's complaint could quote the document
                pass_fds=[theirs.fileno()],
                env={
                    "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                    "LC_ALL": "C.UTF-8",
                    "OPENBLAS_NUM_THREADS": "1",  # its threads reserve memory that would count against the limit
                    "MALLOC_ARENA_MAX": "2",
                },
                start_new_session=True,  # Ctrl-C in a terminal is for the parent, which ends its children itself
            )
        # Until the child has held more, Linux reports the most that its parent held: it comes along through vfork and
        # exec (exec_mmap, setmax_mm_hiwater_rss).
        self._inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._socket = ours
        self.served = 0

    def parse(self, data: bytes, head: dict[str, Any], seconds: float) -> ParsedDocument:
        """Send the document, wait for the answer; TimeoutError, EOFError or OSError when there is none."""
        self.served += 1
        until = time.monotonic() + seconds
        packed = json.dumps(head).encode()
        self._socket.settimeout(seconds)
        self._socket.sendall(FRAME.pack(len(packed), len(data)) + packed)
        self._socket.sendall(data)
        head_length, length = FRAME.unpack(self._receive(FRAME.size, until))
        if head_length > _MAX_HEAD or length > _MAX_BODY:
            raise EOFError
        answer = json.loads(self._receive(head_length, until))
        body = self._receive(length, until)
        if not answer:
            return wire.decode(memoryview(body))
        reason = answer.get("reason")
        if reason not in REASONS:
            raise EOFError
        if reason == "parse-crash":
            raise ChildProcessError(str(answer.get("where"))[:500])
        if reason == "parse-memory":
            raise MemoryError
        if "message" not in answer:
            raise failure(reason, "nested structure")
        raise PermanentError(reason, str(answer["message"]), str(answer.get("next_action", "")))

    def _receive(self, length: int, until: float) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            count = self._socket.recv_into(view)
            if not count:
                raise EOFError
            view = view[count:]
        return data

    def end(self) -> tuple[int, int]:
        """Kill the child and collect it; its exit status and the most memory it held, in bytes (0: not known)."""
        self._socket.close()
        # Not Popen.kill(): that collects a dead child first, and its memory figure would be lost.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # text recognition is a process of its own in its group
        try:
            _, status, usage = os.wait4(self._process.pid, 0)
        except ChildProcessError:  # a parent that ignores SIGCHLD has its children collected by the kernel
            self._process.returncode = 0
            return 0, 0
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode, usage.ru_maxrss * 1024 if usage.ru_maxrss > self._inherited else 0


_idle: list[_Child] = []
_lock = threading.Lock()


def parse_in_child(
    data: bytes,
    *,
    name: str = "",
    media_type: str | None = None,
    seconds: float = 60,
    memory_mb: int = 1024,
    recogniser: Recogniser | None = None,
) -> ParsedDocument:
    """`parsing.parse` in a child process: the same values and errors, and it always comes back.

    `seconds` is wall time of all that is tried, `memory_mb` the address space of the child. Raises what `parse` raises,
    "parse-timeout", "parse-memory" and "parse-crash". Safe to call from several threads.
    """
    head = {
        "name": name,
        "media_type": media_type,
        "seconds": seconds,
        "memory": memory_mb * 1024 * 1024,
        "recogniser": [recogniser.program, recogniser.languages] if recogniser else None,
    }
    until = time.monotonic() + seconds
    child = _take()
    used = child.served > 0
    try:
        return _parse_with(child, data, head, seconds, memory_mb)
    except PermanentError as error:
        # A used child may have died while it waited, or be full of what came before: no document fails for that.
        left = until - time.monotonic()
        if not used or error.reason not in ("parse-crash", "parse-memory") or left <= 0:
            raise
        first = error
    try:
        return _parse_with(_Child(), data, head | {"seconds": left}, left, memory_mb)
    except PermanentError as error:
        if error.reason == "parse-timeout":  # it had less than its whole time: what the first one died of says more
            raise first from first.__cause__
        raise


def _parse_with(child: _Child, data: bytes, head: dict[str, Any], seconds: float, memory_mb: int) -> ParsedDocument:
    """One try with one child, which then waits for more work or is ended."""
    try:
        document = child.parse(data, head, seconds)
    except PermanentError:
        _give_back(child)
        raise
    except TimeoutError as error:
        child.end()
        raise failure("parse-timeout", f"{seconds:g} s") from error
    except MemoryError as error:
        child.end()
        raise failure("parse-memory", f"{memory_mb} MB") from error
    except (EOFError, OSError, ValueError, KeyError, TypeError) as error:
        raise _died(child, seconds, memory_mb) from error
    except BaseException:
        child.end()
        raise
    _give_back(child)
    return document


def _died(child: _Child, seconds: float, memory_mb: int) -> PermanentError:
    """What ended the child: C libraries abort when memory is refused to them, so a crash near the limit is memory."""
    status, most = child.end()
    if status in (-signal.SIGXCPU, -signal.SIGALRM):
        return failure("parse-timeout", f"{seconds:g} s")
    if most > memory_mb * 1024 * 1024 // 2:
        return failure("parse-memory", f"{memory_mb} MB")
    return failure("parse-crash")


def _take() -> _Child:
    with _lock:
        if _idle:
            return _idle.pop()
    return _Child()


def _give_back(child: _Child) -> None:
    with _lock:
        if child.served < _DOCUMENTS and len(_idle) < _IDLE:
            _idle.append(child)
            return
    child.end()


def close_children() -> None:
    """End the waiting children; the next document starts new ones."""
    with _lock:
        children = _idle[:]
        _idle.clear()
    for child in children:
        child.end()


def _forget() -> None:
    """After a fork (gunicorn's preload) the children belong to the parent alone."""
    global _lock
    _lock = threading.Lock()
    for child in _idle:
        child._socket.close()
        child._process.returncode = 0  # not ours to wait for
    _idle.clear()


atexit.register(close_children)
os.register_at_fork(after_in_child=_forget)
