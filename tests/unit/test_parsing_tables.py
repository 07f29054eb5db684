"""Tables of PDFs: what is drawn with rules becomes rows and cells; what is not stays text."""

from __future__ import annotations

import random

import pytest

from functions.ingest.parsing import Block, ParsedDocument, parse
from functions.ingest.parsing.tables import Rule, find
from tests.unit.parsing_material import pdf_of, stream

CELLS = [
    ["Modell", "Leistung", "Preis"],
    ["HP-100", "1,1 kW", "1.200 Euro"],
    ["HP-200 mit Fuß", "2,2 kW", "1.900 Euro"],
    ["HP-300", "4 kW", "2.750 Euro"],
]


def page(content: str) -> bytes:
    """A PDF of one page from drawing operators; /F is Helvetica."""
    return pdf_of(
        {
            1: b"<</Type/Catalog/Pages 2 0 R>>",
            2: b"<</Type/Pages/Count 1/Kids[4 0 R]>>",
            3: b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
            4: b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<</Font<</F 3 0 R>>>>/Contents 5 0 R>>",
            5: stream(content.encode("cp1252")),
        }
    )


def words(x: float, y: float, text: str, size: float = 10) -> str:
    return f"BT /F {size} Tf {x} {y} Td ({text}) Tj ET\n"


def line(x0: float, y0: float, x1: float, y1: float) -> str:
    return f"{x0} {y0} m {x1} {y1} l S\n"


def grid(cells: list[list[str]], x: float = 72, y: float = 700, width: float = 120, height: float = 20) -> str:
    """A table with a rule around every cell."""
    rows, columns = len(cells), len(cells[0])
    content = "".join(line(x, y - n * height, x + columns * width, y - n * height) for n in range(rows + 1))
    content += "".join(line(x + n * width, y, x + n * width, y - rows * height) for n in range(columns + 1))
    return content + "".join(
        words(x + column * width + 4, y - (row + 1) * height + 6, cell)
        for row, texts in enumerate(cells)
        for column, cell in enumerate(texts)
    )


def tables(document: ParsedDocument) -> list[list[list[str]]]:
    return [
        [row.split(" | ") for row in document.text[block.start : block.end].split("\n")]
        for block in document.blocks
        if block.kind == "table"
    ]


def kinds(document: ParsedDocument) -> list[str]:
    return [block.kind for block in document.blocks]


def test_a_grid_becomes_rows_and_cells_between_its_neighbours() -> None:
    """The text before, the table, the text after: in the order of the page, each letter once."""
    content = words(72, 760, "Alle Preise ohne Steuer.") + grid(CELLS) + words(72, 560, "Nach der Tabelle.")
    document = parse(page(content))
    assert tables(document) == [CELLS]
    assert document.text.startswith("Alle Preise ohne Steuer.\n\nModell | ")
    assert document.text.endswith("\n\nNach der Tabelle.")
    assert sorted("".join(document.text.replace("|", "").split())) == sorted(
        "".join(("Alle Preise ohne Steuer." + "".join(map("".join, CELLS)) + "Nach der Tabelle.").split())
    )


def test_each_row_of_a_table_has_its_place_on_the_page() -> None:
    """A box for every row, which spans exactly the row's text and lies where the row is printed."""
    document = parse(page(grid(CELLS)))
    block: Block = document.blocks[0]
    text = document.text[block.start : block.end]
    assert [text[start:end] for start, end, *_ in block.boxes] == [" | ".join(row) for row in CELLS]
    assert [(number, round(y0), round(y1)) for _, _, number, _, y0, _, y1 in block.boxes] == [
        (1, 680, 700), (1, 660, 680), (1, 640, 660), (1, 620, 640)
    ]  # fmt: skip


def test_thin_boxes_and_rectangles_are_rules_too() -> None:
    """Word processors fill thin rectangles, spreadsheets stroke one rectangle a cell."""
    thin = "".join(f"72 {700 - 20 * n} 360 0.5 re f\n" for n in range(5))
    thin += "".join(f"{72 + 120 * n} 620 0.5 80 re f\n" for n in range(4))
    boxes = "".join(f"{72 + 120 * c} {680 - 20 * r} 120 20 re S\n" for r in range(4) for c in range(3))
    text = "".join(words(76 + 120 * c, 686 - 20 * r, cell) for r, row in enumerate(CELLS) for c, cell in enumerate(row))
    assert tables(parse(page(thin + text))) == [CELLS]
    assert tables(parse(page(boxes + text))) == [CELLS]


def test_cells_that_are_joined_are_one_cell() -> None:
    """Where no rule parts two cells of a row, their text stands in the first of them."""
    content = "".join(line(72, 700 - 20 * n, 432, 700 - 20 * n) for n in range(4))
    content += line(72, 700, 72, 640) + line(432, 700, 432, 640) + line(192, 680, 192, 640) + line(312, 700, 312, 640)
    content += words(76, 686, "Technische Daten der Pumpe im Dauerbetrieb") + words(316, 686, "Preis")
    content += words(76, 666, "HP-100") + words(196, 666, "1,1 kW") + words(316, 666, "1.200")
    content += words(76, 646, "HP-200") + words(196, 646, "2,2 kW") + words(316, 646, "1.900")
    assert tables(parse(page(content))) == [
        [["Technische Daten der Pumpe im Dauerbetrieb", "", "Preis"], ["HP-100", "1,1 kW", "1.200"],
         ["HP-200", "2,2 kW", "1.900"]]
    ]  # fmt: skip


def test_a_table_with_horizontal_rules_only_has_the_columns_that_white_strips_part() -> None:
    """Top, middle and bottom rule as in a book; a wrapped cell goes on with its row."""
    content = line(72, 700, 400, 700) + line(72, 680, 400, 680) + line(72, 600, 400, 600)
    for row, texts in enumerate(CELLS):
        content += "".join(words(76 + 120 * column, 686 - 20 * row, cell) for column, cell in enumerate(texts))
    content += words(196, 614, "im Dauerbetrieb")
    expected = [*CELLS[:3], ["HP-300", "4 kW im Dauerbetrieb", "2.750 Euro"]]
    assert tables(parse(page(content))) == [expected]


@pytest.mark.parametrize(
    "drawn",
    [
        "72 600 400 120 re S\n",
        line(72, 700, 400, 700) + line(72, 600, 400, 600),
        line(72, 715, 300, 715) + line(72, 680, 250, 680) + line(72, 645, 180, 645),
        "1 0 0 RG 100 100 m 200 300 300 300 400 100 c S\n",
        "".join(line(72 + n, 100, 72 + n, 500) for n in range(0, 400, 20)),
    ],
    ids=["a box around a remark", "two rules", "underlined words", "a curve", "hatching"],
)
def test_lines_that_are_no_table_leave_the_text_alone(drawn: str) -> None:
    """Boxes, underlines, separators and pictures do not tear paragraphs apart."""
    text = "".join(words(76, 705 - 14 * n, f"Ganz gewöhnlicher Text, Zeile {n} von sechs") for n in range(6))
    with_drawing, without = parse(page(drawn + text)), parse(page(text))
    assert "table" not in kinds(with_drawing)
    assert with_drawing.text == without.text


def test_a_grid_without_text_in_it_is_no_table() -> None:
    """Squared paper, a calendar without entries: nothing is made of nothing."""
    content = grid([["", "", ""]] * 4) + words(72, 760, "Darüber") + words(72, 500, "Darunter")
    assert kinds(parse(page(content))) == ["paragraph", "paragraph"]


def test_known_tables_are_found_cell_by_cell() -> None:
    """Forty tables of all sizes: every cell is found, none is made up (recall and precision 1)."""
    draw = random.Random(1337)
    for _ in range(40):
        rows, columns = draw.randint(2, 12), draw.randint(2, 6)
        cells = [[f"Z{r}S{c} {draw.randint(1, 9999)}" for c in range(columns)] for r in range(rows)]
        width, height = draw.uniform(65, 75), draw.uniform(14, 40)
        found = tables(parse(page(grid(cells, width=width, height=height))))
        assert found == [cells], (rows, columns)


def test_two_tables_on_a_page_stay_two() -> None:
    """Side by side and below each other, each with its own cells."""
    content = grid(CELLS, x=40, width=80) + grid(CELLS[:2], x=320, width=80) + grid(CELLS[2:], y=500)
    found = tables(parse(page(content)))
    assert sorted(found) == sorted([CELLS, CELLS[:2], CELLS[2:]])


def test_a_page_full_of_lines_is_a_drawing() -> None:
    """Thousands of rules are given up on instead of being compared with each other."""
    many = [Rule(float(n), 0, 500) for n in range(0, 6000, 3)]
    assert find(many, [Rule(0.0, 0, 6000)]) == []
