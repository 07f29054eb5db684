"""Logs and traces: one JSON line an event, bound to the tenant and the W3C trace of the message at hand.

Log lines carry ids and codes, never the content of documents, questions or answers.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

_context: ContextVar[dict[str, str] | None] = ContextVar("trace", default=None)

_LEVELS = {"WARNING": "WARNING", "ERROR": "ERROR", "CRITICAL": "CRITICAL", "DEBUG": "DEBUG", "INFO": "INFO"}
_STANDARD = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


@contextmanager
def bound(**fields: str) -> Iterator[None]:
    """Every log line inside carries these fields; `traceparent` becomes what an outgoing call should continue."""
    token = _context.set({**(_context.get() or {}), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def current(field: str) -> str:
    """A bound field, or an empty string."""
    return (_context.get() or {}).get(field, "")


class JsonLines(logging.Formatter):
    """Cloud Logging's structured form (https://cloud.google.com/logging/docs/structured-logging)."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        fields = dict(_context.get() or {})
        traceparent = fields.pop("traceparent", "")
        line: dict[str, Any] = {
            "severity": _LEVELS.get(record.levelname, "DEFAULT"),
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "message": record.getMessage(),
            "logger": record.name,
            **fields,
        }
        if traceparent:
            line["logging.googleapis.com/trace"] = traceparent[3:35]
            line["logging.googleapis.com/spanId"] = traceparent[36:52]
        line |= {k: str(v) for k, v in record.__dict__.items() if k not in _STANDARD}
        if record.exc_info and record.exc_info[0] is not None:
            # Only where it happened: the text of an exception may quote content.
            line["error"] = record.exc_info[0].__name__
            line["stack"] = _frames(record.exc_info[2])
        return json.dumps(line, ensure_ascii=False)


def _frames(traceback: Any) -> list[str]:
    frames = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        frames.append(f"{code.co_filename.rsplit('/site-packages/')[-1]}:{traceback.tb_lineno} {code.co_name}")
        traceback = traceback.tb_next
    return frames[-12:]


def configure_logging(style: str = "json", level: int = logging.INFO) -> None:
    """Send all logs of this process to standard error, as JSON lines or for people."""
    handler = logging.StreamHandler(sys.stderr)
    if style == "json":
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("google", "httpx", "httpcore", "urllib3", "pdfminer", "werkzeug"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
