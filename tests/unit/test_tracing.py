"""Logs and traces: one line an event, found by tenant and trace, without the content of anything."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shared import tracing
from shared.tracing import JsonLines, bound, configure_logging, current

TRACE = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:], logger.level = handlers, level


def _line(record: logging.LogRecord) -> dict[str, Any]:
    text = JsonLines().format(record)
    assert "\n" not in text
    line: dict[str, Any] = json.loads(text)
    return line


def _record(message: str, *args: object, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    logger = logging.getLogger("shared.test")
    return logger.makeRecord(logger.name, level, "f.py", 1, message, args, sys.exc_info(), extra=extra)


def test_a_line_is_cloud_loggings_structured_form() -> None:
    """Severity, time, message, logger; a line break in the message stays inside the line."""
    line = _line(_record("ingested %s\nchunks", 7, level=logging.WARNING))
    assert (line["severity"], line["message"], line["logger"]) == ("WARNING", "ingested 7\nchunks", "shared.test")
    assert line["time"].endswith("+00:00")


def test_extra_fields_become_fields() -> None:
    """Ids travel as fields, as text."""
    assert _line(_record("x", chunks=7, document_id="d"))["chunks"] == "7"


def test_lines_carry_what_is_bound() -> None:
    """Tenant as a field; the trace under the names Cloud Logging links by."""
    with bound(tenant_id="t", traceparent=TRACE):
        line = _line(_record("x"))
    assert line["tenant_id"] == "t"
    assert line["logging.googleapis.com/trace"] == "ab" * 16
    assert line["logging.googleapis.com/spanId"] == "cd" * 8
    assert "traceparent" not in line


def test_binding_nests_and_ends() -> None:
    """Inner fields cover outer ones, an error inside does not leave them behind."""
    assert current("event") == ""
    with bound(event="a", tenant_id="t"):
        with bound(event="b"):
            assert (current("event"), current("tenant_id")) == ("b", "t")
        with pytest.raises(ZeroDivisionError), bound(event="c"):
            raise ZeroDivisionError
        assert current("event") == "a"
    assert current("event") == current("tenant_id") == ""


def test_threads_do_not_see_each_others_tenant() -> None:
    """A function serves several requests at once."""
    seen: list[str] = []
    with bound(tenant_id="t"):
        other = threading.Thread(target=lambda: seen.append(current("tenant_id")))
        other.start()
        other.join()
    assert seen == [""]


def _failing() -> None:
    geheim = "Das Gehalt von Eva"
    raise ValueError(f"cannot parse {geheim}")


def test_a_stack_shows_where_and_never_what() -> None:
    """The text of an exception may quote a document: the log gets its type and the places it passed."""
    try:
        _failing()
    except ValueError:
        line = _line(_record("it failed"))
    assert line["error"] == "ValueError"
    assert line["stack"][-1].endswith(" _failing")
    assert "Gehalt" not in json.dumps(line, ensure_ascii=False)


def test_logs_go_to_standard_error_once(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configuring twice does not double the lines; libraries that chat are quietened."""
    stream = io.StringIO()
    monkeypatch.setattr(tracing.sys, "stderr", stream)  # type: ignore[attr-defined]
    configure_logging()
    configure_logging()
    logging.getLogger("shared.test").info("one")
    logging.getLogger("httpx").info("request to a model")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["one"]


def test_people_get_lines_they_can_read(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """LOG_FORMAT=console is for a terminal."""
    stream = io.StringIO()
    monkeypatch.setattr(tracing.sys, "stderr", stream)  # type: ignore[attr-defined]
    configure_logging("console")
    logging.getLogger("shared.test").warning("one")
    assert stream.getvalue().endswith("WARNING shared.test one\n")
