"""Where a part of a document stands in its source, as values ready for JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from functions.ingest.parsing.document import Block, ParsedDocument

_LONGEST_HEADER = 500
_CELLS = re.compile(r"([A-Z]+)(\d+):([A-Z]+)(\d+)")


def position_of(parsed: ParsedDocument, blocks: Sequence[Block], start: int, end: int) -> dict[str, Any]:
    """The place of `parsed.text[start:end]`, which touches `blocks`; only keys that apply are there.

    `pages`, `slides`: numbers from 1. `labels`: printed page numbers where they differ. `sheets`: `{sheet, cells}`, one
    for each table touched (`sheet` is null for CSV). `boxes`: `[page, x0, y0, x1, y1]` in points, one for each block
    and page, origin at the page's lower left corner. `header`: the first row of a table that began in an earlier chunk.
    """
    position: dict[str, Any] = {}
    pages = sorted({block.page for block in blocks if block.page is not None})
    if pages:
        position["pages"] = pages
        labels = [parsed.pages[page - 1].label for page in pages if page <= len(parsed.pages)]
        if any(labels):
            position["labels"] = labels
    slides = sorted({block.slide for block in blocks if block.slide is not None})
    if slides:
        position["slides"] = slides
    sheets = [
        {"sheet": block.sheet, "cells": _cells(parsed.text, block, start, end)} for block in blocks if block.cells
    ]
    if sheets:
        position["sheets"] = sheets
    boxes = [box for block in blocks if block.boxes for box in _boxes(block, start - block.start, end - block.start)]
    if boxes:
        position["boxes"] = boxes
    first = blocks[0] if blocks else None
    if first and first.kind == "table" and start > first.start:
        header = parsed.text[first.start : first.end].partition("\n")[0]
        if first.start + len(header) <= start:
            position["header"] = header[:_LONGEST_HEADER]
    return position


def _cells(text: str, block: Block, start: int, end: int) -> str:
    """The range of a table's rows between `start` and `end`: a row is a line."""
    found = _CELLS.fullmatch(block.cells or "")
    if not found:
        return block.cells or ""
    left, top, right, bottom = found.group(1), int(found.group(2)), found.group(3), int(found.group(4))
    first = top + text.count("\n", block.start, max(start, block.start))
    last = top + text.count("\n", block.start, min(end, block.end))
    if last > first and text[min(end, block.end) - 1] == "\n":
        last -= 1
    return f"{left}{first}:{right}{min(last, bottom)}"


def _boxes(block: Block, start: int, end: int) -> list[list[float]]:
    """One rectangle for each page, around the lines of the block between `start` and `end` (relative to the block)."""
    around: dict[int, list[float]] = {}
    for first, last, page, x0, y0, x1, y1 in block.boxes:
        if first >= end or last <= start:
            continue
        box = around.setdefault(page, [x0, y0, x1, y1])
        box[:] = (min(box[0], x0), min(box[1], y0), max(box[2], x1), max(box[3], y1))
    return [[page, *(round(edge, 1) for edge in box)] for page, box in around.items()]
