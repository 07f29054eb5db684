"""What each format gives: its text in reading order, its structure, and where everything stood."""

from __future__ import annotations

import datetime as dt

import docx
import pptx
import pytest
from lxml import etree
from pptx.chart.data import CategoryChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.util import Inches

from functions.ingest.parsing import Block, ParsedDocument, parse
from tests.unit.parsing_material import make_docx, make_eml, make_pdf, make_pptx, make_xlsx, simple_docx, with_member

MARKDOWN = """---
title: "Die Ordnung"
tags: [eins, zwei]
---
# Ordnung

Ein *erster* Absatz mit `Code`
und einer zweiten [Zeile](https://example.org).

## Teil A

1. Erstens
2. Zweitens
   - darunter

| Name | Preis |
|------|-------|
| Rad  | 12    |

```
for x in y:
    pass
```
"""
PAGE = """<html lang="de"><head><title>Die Ordnung</title><script>var x = "nie";</script><style>p {}</style></head>
<body>
<nav><a href="/">Start</a></nav><header>Kopf der Seite</header>
<main><h1>Ordnung</h1>
<p>Ein <em>erster</em> Absatz mit <code>Code</code>
und einer zweiten <a href="https://example.org">Zeile</a>.</p>
<h2>Teil A</h2>
<ol><li>Erstens<li>Zweitens<ul><li>darunter</ul></ol>
<table><tr><th>Name<th>Preis<tr><td>Rad<td>12</table>
<pre>
for x in y:
    pass
</pre></main><footer>Impressum</footer><div style="display: none">versteckt</div></body></html>"""
TEXT = """Ordnung

Ein erster Absatz mit Code und einer zweiten Zeile.

Teil A

1. Erstens
2. Zweitens
  - darunter

Name | Preis
Rad | 12

for x in y:
    pass"""


def kinds(document: ParsedDocument) -> list[tuple[str, int]]:
    return [(block.kind, block.level) for block in document.blocks]


def text_of(document: ParsedDocument, block: Block) -> str:
    return document.text[block.start : block.end]


def test_markdown_and_html_of_the_same_document_give_the_same_text() -> None:
    """Text, structure and title do not depend on the format; navigation, scripts and hidden parts are gone."""
    notes, page = parse(MARKDOWN.encode(), name="a.md"), parse(PAGE.encode())
    assert notes.text == TEXT
    assert page.text == TEXT
    assert kinds(notes) == kinds(page) == [
        ("heading", 1), ("paragraph", 0), ("heading", 2), ("list", 0), ("table", 0), ("code", 0),
    ]  # fmt: skip
    assert notes.title == page.title == "Die Ordnung"
    assert notes.metadata["tags"] == "eins, zwei"


def test_word_gives_the_same_text_as_markdown() -> None:
    """Headings, automatic numbers, bullets and tables of a DOCX read like those of the Markdown."""

    def build(document: docx.document.Document) -> None:
        document.core_properties.title = "Die Ordnung"
        document.add_heading("Ordnung", 1)
        document.add_paragraph("Ein erster Absatz mit Code und einer zweiten Zeile.")
        document.add_heading("Teil A", 2)
        document.add_paragraph("Erstens", "List Number")
        document.add_paragraph("Zweitens", "List Number")
        table = document.add_table(2, 2)
        for cell, text in zip(table._cells, ("Name", "Preis", "Rad", "12"), strict=True):
            cell.text = text
        document.sections[0].header.paragraphs[0].text = "Kopfzeile"

    document = parse(make_docx(build))
    expected = TEXT.partition("\n\nfor x")[0].replace("\n  - darunter", "")
    assert document.text == expected
    assert kinds(document) == [("heading", 1), ("paragraph", 0), ("heading", 2), ("list", 0), ("table", 0)]
    assert document.title == "Die Ordnung"


def test_word_reads_boxes_notes_and_revisions() -> None:
    """Text boxes once, footnotes at the end, deleted text not at all, inserted text as text."""
    namespace = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    compatibility = "http://schemas.openxmlformats.org/markup-compatibility/2006"
    box = "<w:txbxContent><w:p><w:r><w:t>in a box</w:t></w:r></w:p></w:txbxContent>"
    body = (
        f'<w:document xmlns:w="{namespace}" xmlns:mc="{compatibility}"><w:body>'
        "<w:p><w:r><w:t>kept </w:t></w:r><w:del><w:r><w:delText>deleted</w:delText></w:r></w:del>"
        "<w:ins><w:r><w:t>inserted</w:t></w:r></w:ins></w:p>"
        f"<w:p><w:r><mc:AlternateContent><mc:Choice>{box}</mc:Choice><mc:Fallback>{box}</mc:Fallback>"
        "</mc:AlternateContent></w:r></w:p>"
        "<w:sdt><w:sdtContent><w:p><w:r><w:t>in a</w:t><w:tab/><w:t>control</w:t></w:r></w:p></w:sdtContent></w:sdt>"
        "</w:body></w:document>"
    )
    etree.fromstring(body)
    assert parse(with_member(simple_docx(), "word/document.xml", body.encode())).text == (
        "kept inserted\n\nin a box\n\nin a\tcontrol"
    )


def test_pdf_keeps_pages_boxes_and_words_that_were_divided() -> None:
    """Lines become paragraphs; each line has a box that holds it; hyphens at line ends go only where it is safe."""
    first = [
        (72, 780, 24, "Die Überschrift"),
        (72, 740, 11, "Ein Absatz, der über mehrere Zeilen geht und ein getrenn-"),
        (72, 726, 11, "tes Wort hat, dazu Haupt-"),
        (72, 712, 11, "und Nebensätze aus Baden-"),
        (72, 698, 11, "Württemberg."),
        (72, 660, 11, "Ein neuer Absatz beginnt nach einem Abstand."),
        (72, 630, 11, "1. erster Punkt"),
        (72, 616, 11, "2. zweiter Punkt"),
    ]
    document = parse(make_pdf([first, [(72, 780, 11, "Die zweite Seite.")]]))
    texts = [text_of(document, block) for block in document.blocks]
    assert texts == [
        "Die Überschrift",
        "Ein Absatz, der über mehrere Zeilen geht und ein getrenntes Wort hat, dazu Haupt- und Nebensätze aus "
        "Baden-Württemberg.",
        "Ein neuer Absatz beginnt nach einem Abstand.",
        "1. erster Punkt\n2. zweiter Punkt",
        "Die zweite Seite.",
    ]
    assert [block.kind for block in document.blocks] == ["heading", "paragraph", "paragraph", "list", "paragraph"]
    assert [block.page for block in document.blocks] == [1, 1, 1, 1, 2]
    start, end, page, x0, y0, x1, y1 = document.blocks[1].boxes[0]
    assert texts[1][start:end] == "Ein Absatz, der über mehrere Zeilen geht und ein getrenn"
    assert (page, round(x0)) == (1, 72)
    assert y0 < 740 < y1
    assert 300 < x1 < 400
    assert [(p.number, p.width, p.height) for p in document.pages] == [(1, 595, 842), (2, 595, 842)]
    assert document.text[document.pages[1].start : document.pages[1].end] == "Die zweite Seite."


def test_pdf_takes_headings_from_its_outline() -> None:
    """Where a PDF has a table of contents, size does not decide."""
    page = [(72, 760, 11, "1 Einleitung"), (72, 740, 11, "Text unter der Überschrift."), (72, 700, 30, "GROSS")]
    document = parse(make_pdf([page], outline=[(0, "Einleitung")]))
    headings = [text_of(document, block) for block in document.blocks if block.kind == "heading"]
    assert headings == ["1 Einleitung"]


def test_pdf_says_which_pages_have_no_text() -> None:
    """A picture of a page among pages of text is left out with a warning; pictures alone are `no-text`."""
    document = parse(make_pdf([[(72, 700, 11, "text")], []]))
    assert len(document.pages) == 2
    assert document.pages[1].start == document.pages[1].end


def test_slides_keep_titles_lists_tables_charts_and_notes() -> None:
    """Every block names its slide; footers and slide numbers are left out."""

    def build(presentation: pptx.presentation.Presentation) -> None:
        slide = presentation.slides.add_slide(presentation.slide_layouts[1])
        slide.shapes.title.text = "Umsatz"
        slide.placeholders[1].text = "steigt\nsinkt nie"
        slide.notes_slide.notes_text_frame.text = "Pause machen"
        second = presentation.slides.add_slide(presentation.slide_layouts[6])
        table = second.shapes.add_table(2, 2, 0, 0, Inches(2), Inches(1)).table
        for cell, text in zip(table.iter_cells(), ("Jahr", "Wert", "2026", "7"), strict=True):
            cell.text = text
        data = CategoryChartData()  # type: ignore[no-untyped-call]
        data.categories = ["Ost", "West"]
        data.add_series("2026", (1.5, 2))  # type: ignore[no-untyped-call]
        second.shapes.add_chart(XL_CHART_TYPE.BAR_CLUSTERED, 0, 0, Inches(3), Inches(3), data)

    document = parse(make_pptx(build))
    assert document.text == (
        "Umsatz\n\n- steigt\n- sinkt nie\n\nPause machen\n\nJahr | Wert\n2026 | 7\n\n| 2026\nOst | 1.5\nWest | 2"
    )
    assert [block.slide for block in document.blocks] == [1, 1, 1, 2, 2]
    assert document.blocks[0].kind == "heading"
    assert [page.number for page in document.pages] == [1, 2]


def test_sheets_keep_names_ranges_and_values_as_shown() -> None:
    """A table for each run of rows, with its range; dates, percentages and numbers as people read them."""
    rows: list[list[object]] = [
        ["Artikel", "Preis", "Seit"],
        ["Rad", 0.1 + 0.2, dt.datetime(2026, 11, 2)],  # noqa: DTZ001 - a sheet knows no zones
        [],
        [None, "Summe", True],
    ]
    document = parse(make_xlsx({"Lager": rows, "Leer": [], "Zwei": [["x"]]}))
    assert document.text == "Lager\n\nArtikel | Preis | Seit\nRad | 0.3 | 2026-11-02\n\nSumme | TRUE\n\nZwei\n\nx"
    tables = [(block.sheet, block.cells) for block in document.blocks if block.kind == "table"]
    assert tables == [("Lager", "A1:C2"), ("Lager", "B4:C4"), ("Zwei", "A1:A1")]


@pytest.mark.parametrize(
    ("sheets", "title"),
    [(("Sheet1",), None), (("Tabelle1", "Preise 2026"), "Preise 2026"), (("Lager", "Sheet2"), "Lager")],
)
def test_a_sheet_that_nobody_named_gives_no_title(sheets: tuple[str, ...], title: str | None) -> None:
    """Every workbook has a Sheet1: the name of the file tells more. The text keeps the name, for places refer to it."""
    document = parse(make_xlsx({name: [["x", number]] for number, name in enumerate(sheets)}))
    assert document.title == title
    if len(sheets) > 1:
        assert all(name in document.text for name in sheets)


def test_csv_finds_its_dialect_and_counts_rows() -> None:
    """Semicolons, quotes and line breaks in cells; a row stays one line."""
    document = parse(b'Name;Text\n"Ada";"eine\nZeile; mehr"\nBob;"""Zitat"""\n', name="a.csv")
    assert document.text == 'Name | Text\nAda | eine Zeile; mehr\nBob | "Zitat"'
    assert document.blocks[0].cells == "A1:B3"


def test_mail_keeps_heads_body_and_attachments() -> None:
    """Plain text is preferred to HTML; attachments are children with their bytes."""
    data = make_eml(
        "Guten Tag,\n\nanbei die Zahlen.",
        page="<p>not this</p>",
        attachments=[("zahlen.csv", "text/csv", b"a,b\n1,2\n"), ("bild.png", "image/png", b"\x89PNG")],
    )
    document = parse(data)
    assert document.title == "Über die Maschine"
    assert document.text == (
        "From: Ada Lovelace <ada@example.org>\nTo: charles@example.org\nSubject: Über die Maschine\n"
        "Date: Mon, 02 Nov 2026 10:00:00 +0100\n\nGuten Tag,\n\nanbei die Zahlen."
    )
    assert [(child.name, child.media_type, child.data) for child in document.children] == [
        ("zahlen.csv", "text/csv", b"a,b\n1,2\n"),
        ("bild.png", "image/png", b"\x89PNG"),
    ]


def test_mail_without_plain_text_gives_its_html_as_text() -> None:
    """A page in a mail keeps its structure."""
    document = parse(make_eml("", page="<h2>Angebot</h2><ul><li>eins</ul>"))
    assert document.text.endswith("\n\nAngebot\n\n- eins")


def test_an_attached_mail_is_a_child_that_can_be_read() -> None:
    """A forwarded message is a document of its own."""
    inner = make_eml("innen")
    outer = (
        b"From: a@example.org\r\nTo: b@example.org\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: multipart/mixed; boundary="x"\r\n\r\n--x\r\n\r\nbody\r\n--x\r\n'
        b"Content-Type: message/rfc822\r\n\r\n" + inner + b"\r\n--x--\r\n"
    )
    child = parse(outer).children[0]
    assert parse(child.data, name=child.name, media_type=child.media_type).text.endswith("innen")


def test_html_that_is_all_furniture_still_gives_its_text() -> None:
    """A page without a main part is not empty."""
    assert parse(b"<html><body><nav><a href='/'>Only a menu</a></nav></body></html>").text == "Only a menu"


def test_html_tables_that_only_arrange_the_page_are_read_as_page() -> None:
    """A table with headings or tables in it is layout."""
    document = parse(b"<html><body><table><tr><td><h1>Title</h1><p>one</p></td><td><p>two</p></td></tr></table>")
    assert kinds(document) == [("heading", 1), ("paragraph", 0), ("paragraph", 0)]


def test_plain_text_keeps_lines_and_finds_lists() -> None:
    """Paragraphs between empty lines; line breaks inside stay."""
    document = parse(b"First line\nsecond line\n\n \n- one\n- two\n\nEnd.", name="a.txt")
    assert document.text == "First line\nsecond line\n\n- one\n- two\n\nEnd."
    assert [block.kind for block in document.blocks] == ["paragraph", "list", "paragraph"]


def test_large_letters_make_levels_of_headings() -> None:
    """The largest size is level one, the next level two; body text is what most letters are in."""
    body = [(72, 700 - 14 * line, 11, "Ganz gewöhnlicher Text, Zeile um Zeile") for line in range(30)]
    document = parse(make_pdf([[(72, 800, 24, "Buch"), (72, 760, 16, "Kapitel"), *body]]))
    assert [(text_of(document, block), block.level) for block in document.blocks if block.kind == "heading"] == [
        ("Buch", 1),
        ("Kapitel", 2),
    ]


def test_language_is_found() -> None:
    """German, English, others; None where there is too little to tell."""
    german = "Der Vertrag wird von beiden Seiten unterschrieben und ist nicht ohne Grund kündbar. " * 3
    english = "The contract is signed by both sides and cannot be terminated without a reason that is given. " * 3
    french = "Le contrat est signé par les deux parties et ne peut pas être résilié sans motif valable. " * 3
    assert [parse(text.encode(), name="a.txt").language for text in (german, english, french)] == ["de", "en", "fr"]
    assert parse(b"12 34", name="a.txt").language is None
