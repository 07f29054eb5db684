"""Hostile and broken files end in a typed outcome, inside their limits, and hurt nobody else."""

from __future__ import annotations

import time

import pytest

from functions.ingest.chunking import chunk_document
from functions.ingest.parsing.document import ParsedDocument
from functions.ingest.parsing.reasons import REASONS, WARNINGS
from functions.ingest.parsing.sandbox import parse_in_child
from shared.errors import PermanentError
from tests.unit.parsing_bombs import ANY, BOMBS
from tests.unit.parsing_material import make_eml, make_pdf, simple_docx, simple_pptx, simple_xlsx

SECONDS = 20


def outcome(data: bytes, name: str) -> ParsedDocument | str:
    """The document, or the reason code; anything else fails the test."""
    begun = time.monotonic()
    refusal: PermanentError | None = None
    try:
        document = parse_in_child(data, name=name, seconds=SECONDS, memory_mb=512)
    except PermanentError as error:
        refusal = error
    assert time.monotonic() - begun < SECONDS + 5
    if refusal is None:
        check(document)
        return document
    assert refusal.reason in REASONS
    assert refusal.message
    assert refusal.next_action
    return refusal.reason


def check(document: ParsedDocument) -> None:
    """What `ParsedDocument` promises of itself."""
    end = 0
    for block in document.blocks:
        assert not document.text[end : block.start].strip()
        assert block.start < block.end
        assert all(0 <= box[0] < box[1] <= block.end - block.start for box in block.boxes)
        end = block.end
    assert not document.text[end:].strip()
    assert set(document.warnings) <= set(WARNINGS)
    assert "\0" not in document.text
    document.text.encode("utf-8")


@pytest.mark.parametrize("name", BOMBS)
def test_every_bomb_ends_in_its_reason(name: str) -> None:
    """A bomb is read or refused with the reason that fits it, in bounded time and memory."""
    make, expected = BOMBS[name]
    result = outcome(make(), name)
    if isinstance(result, ParsedDocument):
        assert expected in ("", ANY), "it should have been refused"
        begun = time.monotonic()
        chunks = chunk_document(result)
        assert all(chunk.tokens <= 1200 for chunk in chunks)
        assert time.monotonic() - begun < SECONDS
    else:
        assert expected in (result, ANY)


@pytest.mark.parametrize("make", [simple_docx, simple_pptx, simple_xlsx], ids=["docx", "pptx", "xlsx"])
def test_an_office_file_cut_anywhere_is_corrupt(make: object) -> None:
    """Half an office file is never half a document."""
    assert callable(make)
    whole: bytes = make()
    for part in range(1, 16):
        assert outcome(whole[: len(whole) * part // 16], "x") in ("corrupt", "unsupported-type")


def test_a_pdf_cut_anywhere_is_read_or_refused() -> None:
    """pdfium repairs what it can; the rest is corrupt or has no text."""
    whole = make_pdf([[(72, 700 - 14 * line, 11, f"line {line} of a page") for line in range(40)]] * 5)
    for part in range(1, 16):
        result = outcome(whole[: len(whole) * part // 16], "x.pdf")
        assert isinstance(result, ParsedDocument) or result in ("corrupt", "no-text")


def test_flipped_bytes_never_escape_untyped() -> None:
    """One damaged byte anywhere gives a document or a reason."""
    for whole in (simple_docx(), simple_xlsx(), make_pdf([[(72, 700, 11, "text")]]), make_eml("Hello\n\nthere")):
        for at in range(0, len(whole), max(1, len(whole) // 25)):
            outcome(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :], "x")


def test_no_message_carries_content() -> None:
    """Messages speak of kinds and limits; the words of a document or its name are not in them."""
    for data, name in ((simple_docx("geheimnis")[:-900], "geheimnis.docx"), (b"%PDF-1.7 geheimnis", "geheimnis.pdf")):
        with pytest.raises(PermanentError) as caught:
            parse_in_child(data, name=name)
        assert "geheimnis" not in f"{caught.value.message}{caught.value.next_action}"
