"""A file is what its content says; name and declared type only decide between kinds of text."""

from __future__ import annotations

import pytest

from functions.ingest.parsing import parse
from functions.ingest.parsing.reasons import REASONS, failure
from functions.ingest.parsing.sniffing import CSV, DOCX, EML, HTML, MARKDOWN, PDF, PPTX, TEXT, XLSX, sniff
from shared.errors import PermanentError
from tests.unit.parsing_material import make_eml, make_pdf, simple_docx, simple_pptx, simple_xlsx

PROSE = b"Dear reader, this is prose, with commas, and nothing else.\nA second line, with one comma.\nA third."
TABLE = b"name;price;stock\nscrew;1,50;7\nnut;2,00;8\nbolt;3,10;9\n"
NOTES = b"# Heading\n\nSome *text* and a [link](https://example.org).\n\n- one\n- two\n"
PAGE = b"<!doctype html><title>t</title><p>text"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (make_pdf([[(72, 700, 11, "text")]]), PDF),
        (b"\n\n" + make_pdf([[(72, 700, 11, "text")]]), PDF),
        (simple_docx(), DOCX),
        (simple_pptx(), PPTX),
        (simple_xlsx(), XLSX),
        (PAGE, HTML),
        (b"\xef\xbb\xbf" + PAGE, HTML),
        (PAGE.decode().encode("utf-16"), HTML),
        (b"<!-- a comment -->\n <?xml version='1.0'?><html><body>text</body></html>", HTML),
        (b"<p>one</p><p>two <b>three</b></p>", HTML),
        (make_eml("Hello"), EML),
        (b"Received: from a by b\r\nFrom: a@example.org\r\n\r\ntext", EML),
        (NOTES, MARKDOWN),
        (TABLE, CSV),
        (b"a\tb\n1\t2\n3\t4\n", CSV),
        (PROSE, TEXT),
        (b'{"json": [1, 2, 3], "is": "text"}', TEXT),
        (b"Note: this is no mail.\nSubject: it only looks a bit like one.\n\nReally.", TEXT),
    ],
)
@pytest.mark.parametrize("name", ["", "file.pdf", "file.docx", "file.exe"])
def test_content_decides_whatever_the_name(data: bytes, expected: str, name: str) -> None:
    """A wrong extension changes nothing."""
    assert sniff(data, name).media_type == expected


@pytest.mark.parametrize(
    ("data", "name", "media_type", "expected"),
    [
        (NOTES, "notes.txt", None, TEXT),
        (PROSE, "notes.md", None, MARKDOWN),
        (PROSE, "", "text/markdown; charset=utf-8", MARKDOWN),
        (b"a,b\n1,2\n", "x.csv", None, CSV),
        (b"a,b\n1,2\n", "", None, TEXT),
        (b"no table at all", "x.csv", None, TEXT),
        (b"<p>one</p>", "x.html", None, HTML),
        (b"<p>one</p>", "", None, TEXT),
        (b"no tags at all", "x.html", "text/html", TEXT),
        (PAGE, "x.txt", "text/plain", HTML),
    ],
)
def test_name_and_type_decide_between_kinds_of_text(
    data: bytes, name: str, media_type: str | None, expected: str
) -> None:
    """Where the content leaves it open, the sender is believed."""
    assert sniff(data, name, media_type).media_type == expected


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"{\\rtf1 text}", "RTF"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "JPEG"),
        (b"BM" + bytes(60), "BMP"),
        (b"MZ\x90\x00" + bytes(60), "executable"),
        (b"%!PS-Adobe-3.0", "PostScript"),
        (b"\x00\x00\x00\x20ftypheic" + bytes(60), "image"),
        (b"<?xml version='1.0'?><data/>", "XML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "XML"),
    ],
)
def test_what_is_not_read_is_named(data: bytes, kind: str) -> None:
    """`unsupported-type` says which type it found and which are read."""
    with pytest.raises(PermanentError) as caught:
        parse(data, name="report.pdf", media_type="application/pdf")
    assert caught.value.reason == "unsupported-type"
    assert kind in caught.value.message
    assert "PDF" in caught.value.next_action


def test_words_that_begin_like_a_signature_are_text() -> None:
    """ "BM", "MZ" and "ID3" also begin sentences."""
    for text in ("BM ist die Abkürzung für Bundesministerium.", "MZ steht für Mainz.", "ID3 ist ein Format."):
        assert sniff(text.encode()).media_type == TEXT


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_text_is_decoded_whatever_its_encoding(encoding: str) -> None:
    """Byte order marks, wide encodings without one, and the old Western one."""
    text = "Die Größe der Bücher übertrifft das Maß – sagte er. Straße, Äpfel, Öl, Übung, süß, heiß, müde."
    document = parse(text.encode(encoding), name="a.txt")
    assert document.text == text
    assert not document.warnings


def test_a_declared_charset_is_used_where_it_fits() -> None:
    """The media type and the page's own declaration are believed for bytes that are not UTF-8."""
    text = "Привет, мир"
    assert text in parse(text.encode("koi8-r"), media_type="text/plain; charset=koi8-r").text
    page = f'<html><head><meta charset="windows-1251"></head><body><p>{text}</p></body></html>'
    assert parse(page.encode("cp1251")).text == text
    assert parse("<html><meta charset=utf-16><p>müde</p></html>".encode()).text == "müde"


def test_text_that_is_only_nearly_utf8_is_kept() -> None:
    """One broken byte in a long UTF-8 text does not turn every umlaut into rubbish."""
    document = parse("Größe und Maß. ".encode() * 50 + b"\xff" + " Übung.".encode(), name="a.txt")
    assert document.text.count("Größe") == 50
    assert document.warnings == ("undecodable-text",)


def test_text_is_clean() -> None:
    """NUL, lone surrogates, controls and invisible characters go, NFC and LF are made."""
    document = parse("a\0b\x07 e\u0301 so\u00adft\u200b\ufeff no\u00a0break\r\nline\rend\u2028x".encode(), name="a.txt")
    assert document.text == "ab é soft no break\nline\nend\nx"


def test_every_reason_says_what_to_do() -> None:
    """Codes are kebab-case; each has a message and a next action."""
    for code in REASONS:
        error = failure(code, "PDF")
        assert code == code.lower().replace("_", "-")
        assert error.reason == code
        assert error.message.endswith(".")
        assert error.next_action.endswith(".")
        assert "{" not in error.message
