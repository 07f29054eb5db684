"""The rules (drawn lines) of a PDF page, and what stands between them as tables; by pdfium's bare functions."""

from __future__ import annotations

import re
from array import array
from typing import TypeAlias

from pypdfium2 import raw

from functions.ingest.parsing import pdfium
from functions.ingest.parsing.layout import Line
from functions.ingest.parsing.tables import MOST_RULES, SHORTEST, Grid, Piece, Row, Rule, find, read

Sheet: TypeAlias = list[tuple[list[Line], list[Row]]]
"""A page as pieces in reading order: lines of text, and the table (perhaps without rows) that follows them."""

_THIN = 3.0
"""Points: a filled rectangle no thicker than this is a rule."""
_STRIDE = 3
"""Only every third object is looked at to see whether a page draws anything: a table is many lines, and a page of text
has hundreds of objects."""
_MOST_SEGMENTS = 2_000
_SLANT = 0.5
_WORD = re.compile(r"\S+")


def draws(page: pdfium.Page) -> bool:
    """Whether a page has lines or boxes that could be those of a table."""
    get, kind_of, path = pdfium.get_object, pdfium.object_kind, raw.FPDF_PAGEOBJ_PATH
    return any(kind_of(get(page, index)) == path for index in range(0, pdfium.count_objects(page), _STRIDE))


def sheet_of(page: pdfium.Page, text: pdfium.TextPage, lines: list[Line], places: list[tuple[int, str]]) -> Sheet:
    """The pieces of a page that draws; `places` are each line's first letter, as pdfium counts, and its letters."""
    grids = find(*_rules(page))
    if not grids:
        return [(lines, [])]
    inside = [_grid_of(line, grids) for line in lines]
    tables: dict[int, list[Row]] = {}
    for number, grid in enumerate(grids):
        own = [place for place, at in zip(places, inside, strict=True) if at == number]
        tables[number] = read(grid, _pieces(text, own, grid)) if own else []
    sheet: Sheet = []
    pending: list[Line] = []
    told: set[int] = set()
    for line, at in zip(lines, inside, strict=True):
        if at is None or not tables[at]:
            pending.append(line)
        elif at not in told:
            told.add(at)
            sheet.append((pending, tables[at]))
            pending = []
    return [*sheet, (pending, [])]


def _grid_of(line: Line, grids: list[Grid]) -> int | None:
    x, y = (line[1] + line[3]) / 2, (line[2] + line[4]) / 2
    return next((number for number, grid in enumerate(grids) if grid.holds(x, y)), None)


def _rules(page: pdfium.Page) -> tuple[list[Rule], list[Rule]]:
    """Horizontal and vertical rules of a page: strokes along an axis, thin rectangles, the edges of boxes."""
    horizontal: list[Rule] = []
    vertical: list[Rule] = []
    get, kind_of, path = pdfium.get_object, pdfium.object_kind, raw.FPDF_PAGEOBJ_PATH
    bounds = array("f", bytes(16))
    for index in range(pdfium.count_objects(page)):
        item = get(page, index)
        if kind_of(item) != path:
            continue
        _add_rules(item, bounds, horizontal, vertical)
        if len(horizontal) + len(vertical) > 4 * MOST_RULES:
            return [], []
    return horizontal, vertical


def _add_rules(item: pdfium.PageObject, bounds: array[float], horizontal: list[Rule], vertical: list[Rule]) -> None:
    """Add the rules of a path; `bounds` is room for pdfium's answer, made once a page."""
    at, _ = bounds.buffer_info()
    if not pdfium.object_bounds(item, at, at + 4, at + 8, at + 12):
        return
    x0, y0, x1, y1 = bounds
    if y1 - y0 <= _THIN and x1 - x0 >= SHORTEST:
        horizontal.append(Rule((y0 + y1) / 2, x0, x1))
    elif x1 - x0 <= _THIN and y1 - y0 >= SHORTEST:
        vertical.append(Rule((x0 + x1) / 2, y0, y1))
    elif max(x1 - x0, y1 - y0) >= SHORTEST:
        for ax, ay, bx, by in _segments(item):
            if abs(ay - by) <= _SLANT and abs(ax - bx) > _SLANT:
                horizontal.append(Rule((ay + by) / 2, min(ax, bx), max(ax, bx)))
            elif abs(ax - bx) <= _SLANT and abs(ay - by) > _SLANT:
                vertical.append(Rule((ax + bx) / 2, min(ay, by), max(ay, by)))


def _segments(item: pdfium.PageObject) -> list[tuple[float, float, float, float]]:
    """The straight pieces of a path in the page's coordinates."""
    matrix, place = array("f", bytes(24)), array("f", bytes(8))
    count = pdfium.count_segments(item)
    if not 0 < count <= _MOST_SEGMENTS or not pdfium.object_matrix(item, matrix.buffer_info()[0]):
        return []
    found: list[tuple[float, float, float, float]] = []
    a, b, c, d, e, f = matrix
    get, point_of, kind_of = pdfium.get_segment, pdfium.segment_point, pdfium.segment_kind
    closes, move, line = pdfium.segment_closes, raw.FPDF_SEGMENT_MOVETO, raw.FPDF_SEGMENT_LINETO
    x_at, _ = place.buffer_info()
    y_at = x_at + 4
    begun = at = (0.0, 0.0)
    for index in range(count):
        segment = get(item, index)
        kind = kind_of(segment)
        point_of(segment, x_at, y_at)
        x, y = place
        point = (a * x + c * y + e, b * x + d * y + f)
        if kind == move:
            begun = point
        elif kind == line:
            found.append((*at, *point))
        at = point
        if closes(segment):
            found.append((*at, *begun))
            at = begun
    return found


def _pieces(text: pdfium.TextPage, places: list[tuple[int, str]], grid: Grid) -> list[Piece]:
    """The words of some lines with their boxes; a word that stands in two columns letter by letter."""
    words = list[tuple[str, int, int]]()
    for start, line in places:
        for match in _WORD.finditer(line):
            begin, end = match.span()
            words.append((line[begin:end], start + begin, start + end - 1))
    boxes = pdfium.boxes(text, [first for _, first, _ in words], [last for _, _, last in words])
    pieces: list[Piece] = []
    for (word, first, last), box in zip(words, boxes, strict=True):
        if grid.columns and last > first and grid.cuts(box[0], box[2]):
            letters = range(first, last + 1)
            apart = pdfium.boxes(text, letters, letters)
            pieces += [Piece(letter, *own) for letter, own in zip((f" {word[0]}", *word[1:]), apart, strict=True)]
        else:
            pieces.append(Piece(f" {word}", *box))
    return pieces
