"""The same text in two formats gives the same text, whatever program wrote it."""

from __future__ import annotations

import pytest

from functions.ingest.parsing import parse
from tests.unit.parsing_material import make_docx, make_eml, make_pdf, make_xlsx

ROWS = [["Teil", "Preis"], ["Schraube", "3,50"], ["Mutter", "0,20"]]
TABLE = "Teil | Preis\nSchraube | 3,50\nMutter | 0,20"
PARAGRAPHS = ["Die Pumpe wird jährlich geprüft.", "Die Dichtung wird nach fünf Jahren ersetzt."]
PROSE = "\n\n".join(PARAGRAPHS)


def _html_table() -> bytes:
    cells = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in ROWS)
    return f"<html><body><table>{cells}</table></body></html>".encode()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", "\n".join(";".join(row) for row in ROWS).encode()),
        ("a.xlsx", make_xlsx({"Preise": ROWS})),
        ("a.html", _html_table()),
    ],
    ids=["csv", "xlsx", "html"],
)
def test_a_table_reads_the_same_in_every_format(name: str, data: bytes) -> None:
    """Comma-separated, spreadsheet and page: the same rows (a spreadsheet says its sheet's name first)."""
    assert parse(data, name=name).text.removeprefix("Preise\n\n") == TABLE


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", PROSE.encode()),
        ("a.txt", PROSE.encode("utf-16")),
        ("a.txt", PROSE.encode("cp1252")),
        ("a.md", PROSE.encode()),
        ("a.html", "".join(f"<p>{each}</p>" for each in PARAGRAPHS).encode()),
        ("a.docx", make_docx(lambda document: [document.add_paragraph(each) for each in PARAGRAPHS])),
        ("a.eml", make_eml(PROSE)),
    ],
    ids=["utf-8", "utf-16", "windows-1252", "markdown", "html", "docx", "mail"],
)
def test_prose_reads_the_same_in_every_format(name: str, data: bytes) -> None:
    """Encodings, markup, Word and mail: the same paragraphs (a mail says from whom and to whom first)."""
    text = parse(data, name=name).text
    assert (text.partition("\n\n")[2] if name == "a.eml" else text) == PROSE


def test_a_pdf_has_the_words_of_its_source_in_their_order() -> None:
    """A page has no paragraphs, only places; the words and their order are those of the source."""
    lines = [(72, 700 - 40 * number, 11, each) for number, each in enumerate(PARAGRAPHS)]
    assert parse(make_pdf([lines]), name="a.pdf").text.split() == PROSE.split()
