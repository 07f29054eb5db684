"""What identifies people or opens doors leaves no trace; what only looks like it stays readable."""

from __future__ import annotations

import io
import json
import logging
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import PermanentError
from shared.masking import LIMIT, mask
from shared.tracing import JsonLines, Lines, bound, configure_logging

PERSONAL = {
    "erika.müller+news@post.example.com": "[email]",
    "a@b.co": "[email]",
    "+49 30 1234567": "[phone]",
    "+49 (0)30 1234567": "[phone]",
    "0049 30 1234567": "[phone]",
    "(030) 1234567": "[phone]",
    "030/1234567": "[phone]",
    "030 1234567": "[phone]",
    "0176 12345678": "[phone]",
    "01761234567": "[phone]",
    "+1-555-123-4567": "[phone]",
    "(555) 123-4567": "[phone]",
    "DE89 3704 0044 0532 0130 00": "[iban]",
    "DE89370400440532013000": "[iban]",
    "GB82 WEST 1234 5698 7654 32": "[iban]",
    "NO93 8601 1117 947": "[iban]",
    "4111 1111 1111 1111": "[card]",
    "5500-0055-5555-5559": "[card]",
    "378282246310005": "[card]",
    "203.0.113.7": "[ip]",
    "2001:db8::1": "[ip]",
    "2001:0db8:85a3:0000:0000:8a2e:0370:7334": "[ip]",
    "::ffff:203.0.113.7": "[ip]",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-_1": "[jwt]",
    "sk-proj-abcdefghijklmnop123": "[key]",
    "AKIAIOSFODNN7EXAMPLE": "[key]",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789": "[key]",
    "Bearer abcdefghijk": "Bearer [token]",
    "postgresql://noesis:geheim@db/noesis2": "postgresql://noesis:[password]@db/noesis2",
    "https://x.example/?X-Goog-Signature=0af3bc19&a=1": "https://x.example/?X-Goog-Signature=[secret]&a=1",
    "password=hunter22": "password=[secret]",
    '{"api_key": "abcd1234"}': '{"api_key": "[secret]"}',
    "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----": "[key]",
}

HARMLESS = [
    "2026-11-21T04:28:40.123456+00:00",
    "21.11.2026",
    "01.02.2026 bis 03.04.2026",
    "10:15:30",
    "1.234.567,89 EUR",
    "12 345 678 Bytes",
    "§ 3 Abs. 2 Nr. 4",
    "Art. 6 Abs. 1",
    "3b241101-e2bb-4255-8caf-4136c566a962",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "1763699320000000",
    "1234567890123",
    "127.0.0.1:8080",
    "0.0.0.0",
    "std::vector<int>",
    "version 4.1.2",
    "Seite 12 von 300",
    "Rechnung 2026-00123",
    "4111 1111 1111 1112",
    "AT61 1904 3002 3457 3202",
    "tokens: 123",
    "HP-200, Fault E17",
    "functions/ingest/ingestion.py:42 ingest_document",
]


@pytest.mark.parametrize(("text", "masked"), PERSONAL.items(), ids=list(PERSONAL))
def test_what_identifies_or_opens_is_masked(text: str, masked: str) -> None:
    """In the middle of a sentence, alone, before a comma."""
    assert mask(f"von {text} am") == f"von {masked} am"
    assert mask(text) == masked
    assert mask(f"({text}, ") == f"({masked}, "


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_it_stays(text: str) -> None:
    """Dates, amounts, paragraphs, ids, failed checksums: logs and messages stay useful."""
    assert mask(f"von {text} am") == f"von {text} am"


def test_an_iban_before_capital_letters_ends_where_its_country_says() -> None:
    """What follows the number stays."""
    assert mask("DE89 3704 0044 0532 0130 00 UND MEHR") == "[iban] UND MEHR"


def test_what_is_too_long_to_look_at_does_not_leave() -> None:
    """Nothing goes out unseen."""
    assert "eva@example.com" not in mask("x" * LIMIT + " eva@example.com")


@given(st.text(max_size=300))
def test_masking_twice_is_masking_once(text: str) -> None:
    """A masked text holds nothing to mask."""
    assert mask(mask(text)) == mask(text)


@given(st.sampled_from(sorted(PERSONAL)), st.text(alphabet=" ,;\n", min_size=1, max_size=5))
def test_neighbours_do_not_hide_each_other(text: str, between: str) -> None:
    """Two in a row are both found."""
    assert text not in mask(f"{text}{between}{text}")


def test_masking_stays_fast_on_hostile_input() -> None:
    """No pattern backtracks: the longest text that is looked at takes milliseconds, whatever it repeats."""
    for piece in (
        "1",
        "1 ",
        "a@",
        "a.",
        "+4",
        "0:",
        ":",
        "(0",
        "DE89 ",
        "A1",
        "://a:",
        "-----BEGIN PRIVATE KEY-----",
        "token=",
    ):
        began = time.perf_counter()
        mask(piece * (LIMIT // len(piece)))
        assert time.perf_counter() - began < 0.5, piece


CANARY = "eva.canary@example.com"


def _formatted(formatter: logging.Formatter, message: object, *args: object, **extra: object) -> str:
    logger = logging.getLogger("shared.test")
    record = logger.makeRecord(logger.name, logging.ERROR, "f.py", 1, message, args, sys.exc_info(), extra=extra)
    return formatter.format(record)


@pytest.mark.parametrize("formatter", [JsonLines(), Lines()], ids=["json", "people"])
def test_messages_arguments_extras_and_bound_fields_are_masked(formatter: logging.Formatter) -> None:
    """Everything that goes into a line goes through the mask."""
    with bound(tenant_id=CANARY, event=CANARY):
        line = _formatted(formatter, f"{CANARY} %s", CANARY, who=CANARY, several={"a": [CANARY]})
    assert CANARY not in line
    assert "[email]" in line
    assert "\n" not in line


@pytest.mark.parametrize("formatter", [JsonLines(), Lines()], ids=["json", "people"])
def test_the_text_of_a_strangers_exception_is_not_told(formatter: logging.Formatter) -> None:
    """As the message, as an argument, as the exception of the record: only its kind and where it happened."""
    try:
        raise ValueError("Das Gehalt von Eva beträgt")
    except ValueError as error:
        told = [
            _formatted(formatter, error),
            _formatted(formatter, "it failed: %s", error),
            _formatted(formatter, "x", why=error),
        ]
    assert all("Gehalt" not in line and "ValueError" in line for line in told)


def test_an_error_of_ours_is_told() -> None:
    """Its text never carries content, and operators need it."""
    assert "is protected" in _formatted(JsonLines(), "failed: %s", PermanentError("encrypted", "It is protected."))


@pytest.mark.parametrize("message", ["%s %s", "%d"])
def test_a_log_call_that_is_wrong_neither_fails_nor_tells(message: str) -> None:
    """Arguments that do not fit the message are left out, the place is named."""
    line = json.loads(_formatted(JsonLines(), message, "Gehalt"))
    assert "Gehalt" not in line["message"]
    assert "cannot be formatted" in line["message"]


def test_frameworks_lose_their_own_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """gunicorn and Flask bring handlers that print an exception with its text; all of them end in ours."""
    stream, theirs = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logger = logging.getLogger("gunicorn.error")
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logger.handlers[:], logger.propagate)
    logger.handlers[:], logger.propagate = [logging.StreamHandler(theirs)], False
    try:
        configure_logging()
        try:
            raise ValueError("Das Gehalt von Eva")
        except ValueError:
            logger.exception("Error handling request")
    finally:
        root.handlers[:], root.level, logger.handlers[:], logger.propagate = before
    assert theirs.getvalue() == ""
    line = json.loads(stream.getvalue())
    assert (line["logger"], line["error"]) == ("gunicorn.error", "ValueError")
    assert "Gehalt" not in stream.getvalue()


def test_text_that_cannot_be_written_is_replaced() -> None:
    """A lone surrogate does not make logging print the record in its own way."""
    assert "\ud800" not in _formatted(JsonLines(), "x\ud800", who="y\udfff")
