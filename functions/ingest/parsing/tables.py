"""Tables on a page that are drawn with rules: from lines on paper to rows and columns, without any pdf library.

Found are grids (rules that cross) and the bookish kind with horizontal rules only, whose columns are the white strips
that no letter enters. Tables without any rule stay text: guessing them would tear ordinary columns apart.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

TOUCH = 2.5
"""Points: rules that come this close meet."""
SHORTEST = 8.0
"""Points: anything shorter is a tick, a dot or part of a picture."""
MOST_RULES = 2_000
"""A page with more is a drawing."""
MOST_CELLS = 20_000
_GAP = 0.8
"""Widths of a digit that a white strip must have to part two columns; words are 0.5 apart."""
_OVERLAP = 0.9


class Rule(NamedTuple):
    """A straight line: from `start` to `end` at `at`; a horizontal one at a height, a vertical one at a distance."""

    at: float
    start: float
    end: float


class Piece(NamedTuple):
    """A word of the page, or a part of one that a rule cuts, and its box; a word begins with a space."""

    text: str
    x0: float
    y0: float
    x1: float
    y1: float


class Grid(NamedTuple):
    """Where a table lies: column edges from left to right, row edges from top to bottom, the rules between columns.

    Without `columns` the table has horizontal rules only, and its rows and columns are where its letters are.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    columns: tuple[float, ...]
    rows: tuple[float, ...]
    uprights: tuple[Rule, ...]

    def cuts(self, x0: float, x1: float) -> bool:
        """Whether a column's edge lies between two places, by more than a letter may stand over it."""
        return bisect_right(self.columns, x0 + TOUCH) < bisect_right(self.columns, x1 - TOUCH)

    def holds(self, x: float, y: float) -> bool:
        """Whether a point lies in the table."""
        return self.x0 <= x <= self.x1 and self.y0 <= y <= self.y1


class Row(NamedTuple):
    """The cells of a row from left to right and the box around them."""

    cells: list[str]
    x0: float
    y0: float
    x1: float
    y1: float


def find(horizontal: Iterable[Rule], vertical: Iterable[Rule]) -> list[Grid]:
    """The tables that the rules of a page draw, from top to bottom; none of them overlaps another."""
    across, upright = _joined(horizontal), _joined(vertical)
    if not across or len(across) + len(upright) > MOST_RULES:
        return []
    grids = _crossed(across, upright)
    free = [rule for rule in across if not any(grid.holds((rule.start + rule.end) / 2, rule.at) for grid in grids)]
    for grid in _stacked(free):
        if not any(_meet(grid, other) for other in grids):
            grids.append(grid)
    return sorted(grids, key=lambda grid: -grid.y1)


def _joined(rules: Iterable[Rule]) -> list[Rule]:
    """One rule out of pieces that follow each other, or lie upon each other, at the same place."""
    joined: list[Rule] = []
    for at, start, end in sorted(rules):
        # Ordered by place: those at the same one are the last.
        number = len(joined) - 1
        while number >= 0 and at - joined[number].at <= TOUCH:
            last = joined[number]
            if start <= last.end + TOUCH and last.start <= end + TOUCH:
                joined[number] = Rule(last.at, min(last.start, start), max(last.end, end))
                break
            number -= 1
        else:
            joined.append(Rule(at, start, end))
    return [rule for rule in joined if rule.end - rule.start >= SHORTEST]


def _crossed(across: Sequence[Rule], upright: Sequence[Rule]) -> list[Grid]:
    """Grids: sets of rules that touch each other, with at least two columns and two rows (one of them a heading)."""
    grids = []
    free, left = list(across), list(upright)
    while left:
        fresh = [left.pop()]
        columns, rows = list[Rule](), list[Rule]()
        while fresh:
            columns += fresh
            met, free = _parted(free, fresh)
            rows += met
            fresh, left = _parted(left, met)
        ys = _places(rule.at for rule in rows)
        if len(ys) < 3:
            continue
        # The outer edge may be open: a table without a frame.
        xs = _places([rule.at for rule in columns] + [edge for rule in rows for edge in (rule.start, rule.end)])
        if len(xs) >= 3 and (len(xs) - 1) * (len(ys) - 1) <= MOST_CELLS:
            grids.append(Grid(xs[0], ys[0], xs[-1], ys[-1], xs, tuple(reversed(ys)), tuple(columns)))
    return [grid for grid in grids if not any(_within(grid, other) for other in grids if other is not grid)]


def _parted(rules: Sequence[Rule], others: Sequence[Rule]) -> tuple[list[Rule], list[Rule]]:
    """The rules that touch one of the others, which cross their direction, and those that do not."""
    if not others:
        return [], list(rules)
    touching, apart = list[Rule](), list[Rule]()
    for rule in rules:
        at, low, high = rule.at, rule.start - TOUCH, rule.end + TOUCH
        for place, start, end in others:
            if low <= place <= high and start - TOUCH <= at <= end + TOUCH:
                touching.append(rule)
                break
        else:
            apart.append(rule)
    return touching, apart


def _places(places: Iterable[float]) -> tuple[float, ...]:
    """The distinct ones of the places of rules, ascending."""
    found: list[float] = []
    for at in sorted(places):
        if not found or at - found[-1] > TOUCH:
            found.append(at)
    return tuple(found)


def _stacked(across: Sequence[Rule]) -> list[Grid]:
    """Three or more horizontal rules of the same extent, the first of them above a heading: top, middle, bottom."""
    grids = []
    left = sorted(across, key=lambda rule: -rule.at)
    while left:
        first, *left = left
        same, other = [first.at], list[Rule]()
        for rule in left:
            if _alike(first, rule):
                same.append(rule.at)
            else:
                other.append(rule)
        left, ys = other, _places(same)
        if len(ys) >= 3:
            grids.append(Grid(first.start, ys[0], first.end, ys[-1], (), tuple(reversed(ys)), ()))
    return grids


def _alike(a: Rule, b: Rule) -> bool:
    return abs(a.start - b.start) <= 2 * TOUCH and abs(a.end - b.end) <= 2 * TOUCH


def _within(inner: Grid, outer: Grid) -> bool:
    return (
        outer.holds(inner.x0, inner.y0)
        and outer.holds(inner.x1, inner.y1)
        and (inner.x1 - inner.x0) * (inner.y1 - inner.y0) < _OVERLAP * (outer.x1 - outer.x0) * (outer.y1 - outer.y0)
    )


def _meet(a: Grid, b: Grid) -> bool:
    return a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1


def read(grid: Grid, pieces: Sequence[Piece]) -> list[Row]:
    """The rows of a table from top to bottom, or [] when what lies there has no two columns and rows.

    `pieces` are those inside, in the order of the page.
    """
    rows = _cells(grid, pieces) if grid.columns else _aligned(pieces)
    filled = [row for row in rows if any(row.cells)]
    used = {number for row in filled for number, cell in enumerate(row.cells) if cell}
    return filled if len(filled) >= 2 and len(used) >= 2 else []


def _cells(grid: Grid, pieces: Sequence[Piece]) -> list[Row]:
    """Each piece belongs to the cell its middle lies in; where no rule parts two cells, they are one."""
    width, height = len(grid.columns) - 1, len(grid.rows) - 1
    first = [_first_columns(grid, (grid.rows[row] + grid.rows[row + 1]) / 2) for row in range(height)]
    downwards = [-y for y in grid.rows]
    words = [[""] * width for _ in range(height)]
    for piece in pieces:
        column = bisect_right(grid.columns, (piece.x0 + piece.x1) / 2) - 1
        row = bisect_right(downwards, -(piece.y0 + piece.y1) / 2) - 1
        if 0 <= row < height and 0 <= column < width:
            words[row][first[row][column]] += piece.text
    return [
        Row([cell.strip() for cell in cells], grid.x0, grid.rows[row + 1], grid.x1, grid.rows[row])
        for row, cells in enumerate(words)
    ]


def _first_columns(grid: Grid, middle: float) -> list[int]:
    """For each column the first one it is joined with in the row at this height."""
    crossing = sorted(at for at, start, end in grid.uprights if start <= middle <= end)
    first: list[int] = []
    for number, edge in enumerate(grid.columns[:-1]):
        nearest = bisect_left(crossing, edge - TOUCH)
        parted = number == 0 or (nearest < len(crossing) and crossing[nearest] <= edge + TOUCH)
        first.append(number if parted else first[-1])
    return first


def _aligned(pieces: Sequence[Piece]) -> list[Row]:
    """Rows are printed lines, columns what white strips part that no word of any row enters."""
    widths = sorted((piece.x1 - piece.x0) / max(1, len(piece.text.strip())) for piece in pieces)
    edges = _strips(pieces, widths[len(widths) // 2] * _GAP) if widths else []
    if not edges:
        return []
    bands = _bands(pieces)
    words = [[""] * (len(edges) + 1) for _ in bands]
    boxes = [(float("inf"), float("inf"), float("-inf"), float("-inf"))] * len(bands)
    for piece in pieces:
        middle = (piece.y0 + piece.y1) / 2
        row = next(number for number, (low, high) in enumerate(bands) if low <= middle <= high)
        words[row][bisect_right(edges, (piece.x0 + piece.x1) / 2)] += piece.text
        x0, y0, x1, y1 = boxes[row]
        boxes[row] = (min(x0, piece.x0), min(y0, piece.y0), max(x1, piece.x1), max(y1, piece.y1))
    rows = [Row([cell.strip() for cell in cells], *box) for cells, box in zip(words, boxes, strict=True)]
    return _unwrapped(rows)


def _strips(pieces: Sequence[Piece], least: float) -> list[float]:
    """The middles of the white strips at least `least` wide."""
    edges, reach = list[float](), float("-inf")
    for piece in sorted(pieces, key=lambda one: one.x0):
        if reach > float("-inf") and piece.x0 - reach >= least:
            edges.append((piece.x0 + reach) / 2)
        reach = max(reach, piece.x1)
    return edges


def _bands(pieces: Sequence[Piece]) -> list[tuple[float, float]]:
    """Bottom and top of the printed lines, from the top."""
    bands: list[tuple[float, float]] = []
    for piece in sorted(pieces, key=lambda one: -(one.y0 + one.y1)):
        middle = (piece.y0 + piece.y1) / 2
        if bands and middle >= bands[-1][0]:
            bands[-1] = (min(bands[-1][0], piece.y0), max(bands[-1][1], piece.y1))
        else:
            bands.append((piece.y0, piece.y1))
    return bands


def _unwrapped(rows: Sequence[Row]) -> list[Row]:
    """A line whose first cell is empty goes on with the row above: its cells were too narrow."""
    joined: list[Row] = []
    for row in rows:
        if joined and not row.cells[0] and joined[-1].cells[0]:
            above = joined[-1]
            cells = [" ".join(filter(None, pair)) for pair in zip(above.cells, row.cells, strict=True)]
            joined[-1] = Row(
                cells, min(above.x0, row.x0), min(above.y0, row.y0), max(above.x1, row.x1), max(above.y1, row.y1)
            )
        else:
            joined.append(row)
    return joined
