"""Logs and traces: one line an event, found by tenant and trace, without the content of anything."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shared.masking import mask
from shared.tracing import (
    JsonLines,
    attributes,
    bound,
    configure_logging,
    continued_by,
    current,
    operation,
    span,
    use_sink,
)
from shared.tracing.spans import Recording

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
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging()
    configure_logging()
    logging.getLogger("shared.test").info("one")
    logging.getLogger("httpx").info("request to a model")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["one"]


def test_people_get_lines_they_can_read(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """LOG_FORMAT=console is for a terminal."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging("console")
    logging.getLogger("shared.test").warning("one")
    assert stream.getvalue().endswith("WARNING shared.test one\n")


def test_threads_record_their_own_operations() -> None:
    """A function serves several messages at once: the spans of one never land in another's trace."""

    class Kept:
        def __init__(self) -> None:
            self.recordings: list[Recording] = []

        def is_sampled(self, trace_id: str, rate: float | None) -> bool:
            return True

        def take(self, recording: Recording) -> None:
            self.recordings.append(recording)

    kept = Kept()
    use_sink(kept)

    def work(name: str) -> None:
        for _ in range(50):
            with operation(name), span(f"{name} a"), span(f"{name} b"):
                continued_by("")

    try:
        threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        use_sink(None)
    assert len(kept.recordings) == 300
    assert len({recording.trace_id for recording in kept.recordings}) == 300
    for recording in kept.recordings:
        inner, outer, root = recording.spans
        assert [one.name.partition(" ")[0] for one in recording.spans] == [root.name] * 3
        assert (inner.parent_id, outer.parent_id, root.parent_id) == (outer.span_id, root.span_id, "")


@pytest.mark.parametrize(
    "traceparent", ["", "x", "00-" + "g" * 32 + "-" + "a" * 16 + "-01", TRACE + "\r\nx: y", "\x00"]
)
def test_a_traceparent_that_is_none_begins_a_new_trace(traceparent: str) -> None:
    """What came from outside is a hint, and only in its one form."""
    seen: list[Recording] = []

    class Kept:
        def is_sampled(self, trace_id: str, rate: float | None) -> bool:
            return False

        def take(self, recording: Recording) -> None:
            seen.append(recording)

    use_sink(Kept())
    try:
        with operation("x", traceparent=traceparent):
            assert current("traceparent").endswith("-00")
    finally:
        use_sink(None)
    assert seen[0].spans[0].parent_id == ""
    assert len(seen[0].trace_id) == 32


def test_langfuses_names_are_those_of_its_own_sdk() -> None:
    """What we send under `langfuse.…` is what its SDK of the pinned version sends."""
    from langfuse._client.attributes import LangfuseOtelSpanAttributes

    theirs = {value for name, value in vars(LangfuseOtelSpanAttributes).items() if name.isupper()}
    known = dict.fromkeys(attributes._NAMES, "1") | {"input_tokens": 1, "cost_eur": 1, "prompt_version": "answer-1"}
    sent = attributes.wire_attributes(known, "failed", mask, content=True)
    ours = {name for name in sent if name.startswith(("langfuse.", "user.", "session."))}
    assert len(ours) >= 12
    assert {name for name in ours if not name.startswith("langfuse.trace.metadata.")} <= theirs


def test_doors_start_without_opentelemetry() -> None:
    """A cold start pays for encoding spans only when there is a trace to send."""
    code = (
        "import sys; import functions.embed.main, functions.ingest.main, shared.tracing.export; "
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'langfuse'))])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"


def test_a_whole_prompt_is_told_masked_and_a_longer_one_is_cut() -> None:
    """Each text of a conversation by itself, so that a long one does not hide the others."""
    messages = [{"role": "user", "content": "x " * 15_000 + "eva@nordwind.example"}, {"content": "y" * 40_000, "n": 1}]
    sent = attributes.wire_attributes({"input": messages, "note": "z" * 9_000}, "", mask, content=True)
    told = json.loads(sent["langfuse.observation.input"])
    assert told[0]["content"].endswith("x [email]")
    assert len(told[1]["content"]) < 32_010
    assert told[1]["n"] == 1
    assert len(sent["noesis.note"]) < 8_010
    assert attributes.wire_attributes({"input": messages}, "", mask, content=False) == {}
