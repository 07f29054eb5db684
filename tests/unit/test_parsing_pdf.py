"""How a PDF becomes text quickly: the short cuts take nothing away from what the slow way promises."""

from __future__ import annotations

import contextlib
import gc
import unicodedata

import pytest

from functions.ingest.parsing import parse, pdfium
from functions.ingest.parsing.assembly import clean
from functions.ingest.parsing.pdf import _tidy
from shared.errors import PermanentError
from tests.unit.parsing_material import make_pdf, pdf_of, stream

LETTERS = [chr(code) for code in range(0x30000)]


def mapped(text: str, code: str) -> bytes:
    """A page that prints `text` in a font that says "~" is the UTF-16 `code`."""
    unicode = (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /A def /CMapType 2 def\n"
        f"1 begincodespacerange <00> <ff> endcodespacerange\n1 beginbfchar <7e> <{code}> endbfchar\n"
        "endcmap end end"
    )
    return pdf_of(
        {
            1: b"<</Type/Catalog/Pages 2 0 R>>",
            2: b"<</Type/Pages/Count 1/Kids[4 0 R]>>",
            3: b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding/ToUnicode 6 0 R>>",
            4: b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<</Font<</F 3 0 R>>>>/Contents 5 0 R>>",
            5: stream(f"BT /F 12 Tf 72 700 Td ({text}) Tj ET".encode("cp1252")),
            6: stream(unicode.encode()),
        }
    )


def test_a_page_that_is_taken_for_tidy_is_not_changed_by_cleaning() -> None:
    """Every letter up to the rarest Chinese ones: where the page is not cleaned, cleaning would do nothing."""
    wrong = [letter for letter in LETTERS if _tidy(f"a{letter}b\r\nc") and clean(f"a{letter}b") != f"a{letter}b"]
    assert wrong == []
    assert _tidy("Ordinary text, Überschrift\r\nand a line\tmore")
    assert _tidy("日本語の文書\r\n二行目")
    assert not _tidy("zero\u200bwidth")
    assert not _tidy("u\u0308ber")


def test_clean_text_has_no_controls_and_is_composed() -> None:
    """Whatever letter comes in: LF is the only line end, nothing invisible stays, and the form is NFC."""
    for letter in LETTERS:
        cleaned = clean(f"a{letter}b")
        assert not set(cleaned) & set("\r\x0b\x0c\x00\x1f\x7f\x85\xa0\xad\u200b\u2028\u2029\u2060\ufeff\ufffe\uffff")
        assert unicodedata.is_normalized("NFC", cleaned)


def test_a_lone_carriage_return_in_a_font_does_not_reach_the_text() -> None:
    """A font may call any of its letters a control; pdfium passes it on."""
    document = parse(mapped("Copyright ~ 2026 by the makers", "000d"))
    assert "\r" not in document.text
    assert "Copyright" in document.text
    assert "by the makers" in document.text


@pytest.mark.parametrize("data", [make_pdf([[(72, 700, 12, "text")]]), b"%PDF-1.7 and nothing more"])
@pytest.mark.parametrize("collecting", [True, False])
def test_the_garbage_collector_is_left_as_it_was(data: bytes, collecting: bool) -> None:
    """It rests while a PDF is read, also one that cannot be, and nobody after it notices."""
    before = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        with contextlib.suppress(PermanentError):
            parse(data)
        assert gc.isenabled() is collecting
    finally:
        (gc.enable if before else gc.disable)()


def test_boxes_reach_from_the_first_letter_to_the_last() -> None:
    """Places asked for all at once are those of each letter, however many lines there are."""
    data = make_pdf([[(72, 700, 12, "first line of text"), (72, 600, 12, "second")]])
    document = pdfium.load_document(data, len(data), None)
    page = pdfium.load_page(document, 0)
    text = pdfium.load_text(page)
    try:
        whole, first, last = pdfium.boxes(text, [0, 0, 17], [17, 0, 17])
        assert (whole[0], whole[2]) == (first[0], last[2])
        assert first[0] == pytest.approx(72, abs=1)
        assert whole[1] <= 700 <= whole[3]
        assert pdfium.boxes(text, [], []) == []
    finally:
        pdfium.close_text(text)
        pdfium.close_page(page)
        pdfium.close_document(document)
