"""The process that reads one document after another for `sandbox`: `python -m functions.ingest.parsing.child FD`.

It answers over the socket it was given. Whatever happens to it, its own limits end it: memory and processor time by
the kernel, wall time by an alarm whose default action is to die, and the end of its parent by the end of the socket.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import struct
import sys
import time
from types import TracebackType
from typing import Any

from shared.errors import PermanentError

# Both directions: length of a JSON head, length of a body, then both.
FRAME = struct.Struct(">IQ")
_LARGEST_FILE = 128 * 1024 * 1024
"""Bytes of a temporary file: the language model unpacks into one of 68 MB, nothing else writes."""
_RECOGNITION = 0.7
"""Share of a document's time that text recognition may take."""
_GRACE = 5
"""Seconds after the parent's own limit: only needed when the parent is gone."""


def receive(connection: socket.socket, length: int) -> bytearray:
    """Exactly `length` bytes; EOFError when the other side is gone."""
    data = bytearray(length)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return data


def serve(connection: socket.socket) -> None:
    """Answer requests until the parent closes the socket."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, _LARGEST_FILE))
    _report_death(connection)
    _warm_up()
    while True:
        try:
            head_length, length = FRAME.unpack(receive(connection, FRAME.size))
        except EOFError:
            return
        head = json.loads(receive(connection, head_length))
        data = receive(connection, length)
        _limit(head["seconds"], head["memory"])
        try:
            answer, body = _answer(bytes(data), head)
        except MemoryError:
            # What led here is freed by now; a process that ran out once is not used again.
            answer, body = {"reason": "parse-memory", "done": True}, b""
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(connection, answer, body)


def _report_death(connection: socket.socket) -> None:
    """Tell the parent where an unforeseen error struck: kind and place, never its message, which may quote content."""

    def report(kind: type[BaseException], _error: BaseException, trace: TracebackType | None) -> None:
        while trace and trace.tb_next:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
        _send(connection, {"reason": "parse-crash", "where": f"{kind.__name__} at {where}"}, b"")

    sys.excepthook = report


def _answer(data: bytes, head: dict[str, Any]) -> tuple[dict[str, object], bytes]:
    from functions.ingest.parsing import parse, wire
    from functions.ingest.parsing.ocr import Recogniser

    # What is recognised by then is better than nothing: the rest of the time is for putting it together.
    until = time.monotonic() + head["seconds"] * _RECOGNITION
    recogniser = None
    if head["recogniser"]:
        program, languages = head["recogniser"]
        recogniser = Recogniser(program, languages, until)
    try:
        return {}, wire.encode(parse(data, name=head["name"], media_type=head["media_type"], recogniser=recogniser))
    except PermanentError as error:
        return {"reason": error.reason, "message": error.message, "next_action": error.next_action}, b""
    except RecursionError:
        return {"reason": "too-deep"}, b""


def _send(connection: socket.socket, answer: dict[str, object], body: bytes) -> None:
    head = json.dumps(answer).encode()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(FRAME.pack(len(head), len(body)) + head)
        connection.sendall(body)


def _limit(seconds: float, memory: int) -> None:
    """Memory for the process, processor and wall time for the next document."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(used.ru_utime + used.ru_stime + seconds) + _GRACE
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE)


def _warm_up() -> None:
    """Load what most documents need before the first one waits for it."""
    import functions.ingest.parsing.html
    import functions.ingest.parsing.markdown
    import functions.ingest.parsing.pdf  # noqa: F401


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
