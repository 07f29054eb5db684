"""The rules (drawn lines) of a PDF page, and what stands between them as tables; by pdfium's bare functions."""

from __future__ import annotations

import ctypes
import re
from typing import TypeAlias

from pypdfium2 import raw

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


def draws(page: raw.FPDF_PAGE) -> bool:
    """Whether a page has lines or boxes that could be those of a table."""
    get, kind_of, path = raw.FPDFPage_GetObject, raw.FPDFPageObj_GetType, raw.FPDF_PAGEOBJ_PATH
    return any(kind_of(get(page, index)) == path for index in range(0, raw.FPDFPage_CountObjects(page), _STRIDE))


def sheet_of(page: raw.FPDF_PAGE, text: raw.FPDF_TEXTPAGE, lines: list[Line], places: list[tuple[int, str]]) -> Sheet:
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


def _rules(page: raw.FPDF_PAGE) -> tuple[list[Rule], list[Rule]]:
    """Horizontal and vertical rules of a page: strokes along an axis, thin rectangles, the edges of boxes."""
    horizontal: list[Rule] = []
    vertical: list[Rule] = []
    get, kind_of, path = raw.FPDFPage_GetObject, raw.FPDFPageObj_GetType, raw.FPDF_PAGEOBJ_PATH
    bounds = ctypes.c_float(), ctypes.c_float(), ctypes.c_float(), ctypes.c_float()
    for index in range(raw.FPDFPage_CountObjects(page)):
        item = get(page, index)
        if kind_of(item) != path:
            continue
        _add_rules(item, bounds, horizontal, vertical)
        if len(horizontal) + len(vertical) > 4 * MOST_RULES:
            return [], []
    return horizontal, vertical


def _add_rules(
    item: raw.FPDF_PAGEOBJECT,
    bounds: tuple[ctypes.c_float, ctypes.c_float, ctypes.c_float, ctypes.c_float],
    horizontal: list[Rule],
    vertical: list[Rule],
) -> None:
    """Add the rules of a path; `bounds` is room for pdfium's answer, made once a page."""
    if not raw.FPDFPageObj_GetBounds(item, *bounds):
        return
    x0, y0, x1, y1 = (bound.value for bound in bounds)
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


def _segments(item: raw.FPDF_PAGEOBJECT) -> list[tuple[float, float, float, float]]:
    """The straight pieces of a path in the page's coordinates."""
    matrix = raw.FS_MATRIX()
    count = raw.FPDFPath_CountSegments(item)
    if not 0 < count <= _MOST_SEGMENTS or not raw.FPDFPageObj_GetMatrix(item, matrix):
        return []
    found: list[tuple[float, float, float, float]] = []
    x, y = ctypes.c_float(), ctypes.c_float()
    a, b, c, d, e, f = matrix.a, matrix.b, matrix.c, matrix.d, matrix.e, matrix.f
    get, point_of, kind_of = raw.FPDFPath_GetPathSegment, raw.FPDFPathSegment_GetPoint, raw.FPDFPathSegment_GetType
    closes = raw.FPDFPathSegment_GetClose
    begun = at = (0.0, 0.0)
    for index in range(count):
        segment = get(item, index)
        kind = kind_of(segment)
        point_of(segment, x, y)
        point = (a * x.value + c * y.value + e, b * x.value + d * y.value + f)
        if kind == raw.FPDF_SEGMENT_MOVETO:
            begun = point
        elif kind == raw.FPDF_SEGMENT_LINETO:
            found.append((*at, *point))
        at = point
        if closes(segment):
            found.append((*at, *begun))
            at = begun
    return found


def _pieces(text: raw.FPDF_TEXTPAGE, places: list[tuple[int, str]], grid: Grid) -> list[Piece]:
    """The words of some lines with their boxes; a word that stands in two columns letter by letter."""
    box, box_of = raw.FS_RECTF(), raw.FPDFText_GetLooseCharBox
    pieces: list[Piece] = []

    def add(words: str, first: int, last: int) -> None:
        box_of(text, first, box)
        x0, y0, x1, y1 = box.left, box.bottom, box.right, box.top
        if last > first:
            box_of(text, last, box)
            left, bottom, right, top = box.left, box.bottom, box.right, box.top
            x0, y0 = left if left < x0 else x0, bottom if bottom < y0 else y0
            x1, y1 = right if right > x1 else x1, top if top > y1 else y1
        pieces.append(Piece(words, x0, y0, x1, y1))

    for start, line in places:
        for match in _WORD.finditer(line):
            word, first, last = match[0], start + match.start(), start + match.end() - 1
            add(f" {word}", first, last)
            if last > first and grid.cuts(pieces[-1].x0, pieces[-1].x1):
                pieces.pop()
                for number, letter in enumerate(word):
                    add(letter if number else f" {letter}", first + number, first + number)
    return pieces
