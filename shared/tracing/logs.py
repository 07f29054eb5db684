"""Logs: one JSON line an event, bound to the tenant and the W3C trace of the message at hand.

Log lines carry ids and codes, never the content of documents, questions or answers. What slips in all the same is
masked where it leaves (`shared.masking`), and of an exception only its kind and its place are told: its text may
quote what somebody wrote.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from shared.errors import NoesisError
from shared.tracing.context import fields_bound, policy

_LEVELS = {"WARNING": "WARNING", "ERROR": "ERROR", "CRITICAL": "CRITICAL", "DEBUG": "DEBUG", "INFO": "INFO"}
_STANDARD = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """Cloud Logging's structured form (https://cloud.google.com/logging/docs/structured-logging)."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON, masked."""
        fields = fields_bound()
        traceparent = fields.pop("traceparent", "")
        line: dict[str, Any] = {
            "severity": _LEVELS.get(record.levelname, "DEFAULT"),
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "message": _safe(_without_error(record)),
            "logger": record.name,
            **{name: _safe(value) for name, value in fields.items()},
        }
        if traceparent:
            line["logging.googleapis.com/trace"] = traceparent[3:35]
            line["logging.googleapis.com/spanId"] = traceparent[36:52]
        line |= {_safe(k): _safe(v) for k, v in record.__dict__.items() if k not in _STANDARD}
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["stack"] = _frames(record.exc_info[2])
        return json.dumps(line, ensure_ascii=False)


class Lines(logging.Formatter):
    """The same for people at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of text, masked; an exception by its kind and last place."""
        when = f"{datetime.fromtimestamp(record.created, UTC):%H:%M:%S}"
        extras = [f"{k}={_safe(v)}" for k, v in record.__dict__.items() if k not in _STANDARD]
        if record.exc_info and record.exc_info[0] is not None:
            extras.append(f"error={record.exc_info[0].__name__} at {(_frames(record.exc_info[2]) or ['?'])[-1]}")
        told = " ".join([_safe(_without_error(record)), *extras])
        return f"{when} {record.levelname:<7} {record.name} {' '.join(told.split())}"


def _without_error(record: logging.LogRecord) -> str:
    """The message; where arguments are exceptions (`log.error("…: %s", error)`) of strangers, only their kind."""
    args = record.args
    if isinstance(args, tuple):
        args = tuple(_kind(argument) for argument in args)
    elif isinstance(args, dict):
        args = {name: _kind(argument) for name, argument in args.items()}
    try:
        return str(_kind(record.msg)) % args if args else str(_kind(record.msg))
    except (TypeError, ValueError, KeyError):
        return f"a log message that cannot be formatted, from {record.module}:{record.lineno}"


def _kind(value: object) -> object:
    """An exception of ours as it is (its text never carries content), any other one by its kind."""
    return type(value).__name__ if isinstance(value, BaseException) and not isinstance(value, NoesisError) else value


def _safe(value: object) -> str:
    # A lone surrogate cannot be written; the stream would fail and logging would print the whole record instead.
    return policy().mask(str(_kind(value)).encode("utf-8", "replace").decode("utf-8"))


def _frames(traceback: TracebackType | None) -> list[str]:
    frames = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        frames.append(f"{code.co_filename.rsplit('/site-packages/')[-1]}:{traceback.tb_lineno} {code.co_name}")
        traceback = traceback.tb_next
    return frames[-12:]


class _Discreet(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 # the name logging calls
        """Nothing: the default prints the record with its arguments, unmasked."""


def configure_logging(style: str = "json", level: int = logging.INFO) -> None:
    """Send all logs of this process to standard error, as JSON lines or for people, all of them masked.

    Also those of gunicorn, functions-framework and Flask, which bring handlers of their own that print exceptions
    with their text, and what ends a thread or the process.
    """
    handler = _Discreet(sys.stderr)
    handler.setFormatter(JsonLines() if style == "json" else Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in list(logging.root.manager.loggerDict):
        other = logging.getLogger(name)
        if other.handlers:
            other.handlers.clear()
            other.propagate = True
    for noisy in ("google", "httpx", "httpcore", "urllib3", "pdfminer", "werkzeug"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    # Whoever has hooks already (a test runner) keeps them.
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _log_end
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _log_thread_end


def _log_end(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        sys.__excepthook__(kind, error, traceback)
    else:
        logging.getLogger("process").critical("ended by an error", exc_info=(kind, error, traceback))


def _log_thread_end(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_value is not None and not issubclass(failure.exc_type, SystemExit):
        logging.getLogger("process").error(
            "a thread ended by an error", exc_info=(failure.exc_type, failure.exc_value, failure.exc_traceback)
        )
