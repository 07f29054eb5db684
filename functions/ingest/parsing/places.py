"""Where a part of a document stands in its source, as values ready for JSON."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

from functions.ingest.parsing.document import Block, Box, ParsedDocument

_LONGEST_HEADER = 500
_CELLS = re.compile(r"([A-Z]+)(\d+):([A-Z]+)(\d+)")


class Places:
    """Answers for one document, part after part; remembers where the rows of its last table begin."""

    def __init__(self, parsed: ParsedDocument) -> None:
        self._text = parsed.text
        self._labels = {page.number: page.label for page in parsed.pages if page.label}
        self._rows: tuple[int, list[int]] = (-1, [])

    def of(self, blocks: Sequence[Block], start: int, end: int) -> dict[str, Any]:
        """The place of `text[start:end]`, which touches `blocks`; only keys that apply are there.

        `pages`, `slides`: numbers from 1. `labels`: printed page numbers where they differ. `sheets`: `{sheet, cells}`,
        one for each table touched (`sheet` is null for CSV). `boxes`: `[page, x0, y0, x1, y1]` in points, one for each
        block, origin at the page's lower left corner. `header`: the first row of a table begun in an earlier part.
        """
        position: dict[str, Any] = {}
        pages = sorted({block.page for block in blocks if block.page is not None})
        if pages:
            position["pages"] = pages
            if any(page in self._labels for page in pages):
                position["labels"] = [self._labels.get(page, str(page)) for page in pages]
        slides = sorted({block.slide for block in blocks if block.slide is not None})
        if slides:
            position["slides"] = slides
        sheets = [{"sheet": block.sheet, "cells": self._cells(block, start, end)} for block in blocks if block.cells]
        if sheets:
            position["sheets"] = sheets
        boxes = [box for block in blocks if block.boxes for box in _around(block, start, end)]
        if boxes:
            position["boxes"] = boxes
        header = self._header(blocks[0], start) if blocks else ""
        if header:
            position["header"] = header
        return position

    def _header(self, block: Block, start: int) -> str:
        if block.kind != "table" or start <= block.start:
            return ""
        end = self._text.find("\n", block.start, min(start + 1, block.start + 100 * _LONGEST_HEADER))
        return self._text[block.start : min(end, block.start + _LONGEST_HEADER)] if end >= 0 else ""

    def _cells(self, block: Block, start: int, end: int) -> str:
        """The range of the rows that `text[start:end]` touches: a row is a line."""
        found = _CELLS.fullmatch(block.cells or "")
        if not found:
            return block.cells or ""
        if self._rows[0] != block.start:
            breaks = re.compile("\n").finditer(self._text, block.start, block.end)
            self._rows = (block.start, [line.end() for line in breaks])
        starts = self._rows[1]
        top = int(found.group(2))
        first = top + bisect_right(starts, max(start, block.start))
        last = top + bisect_left(starts, min(end, block.end))
        return f"{found.group(1)}{first}:{found.group(3)}{last}"


def _around(block: Block, start: int, end: int) -> list[list[float]]:
    """One rectangle for each page, around the lines of the block that `text[start:end]` touches."""
    around: dict[int, list[float]] = {}
    boxes: Sequence[Box] = block.boxes
    if start > block.start:
        boxes = boxes[bisect_right(boxes, start - block.start, key=lambda box: box[1]) :]
    if end < block.end:
        boxes = boxes[: bisect_left(boxes, end - block.start, key=lambda box: box[0])]
    for _, _, page, x0, y0, x1, y1 in boxes:
        box = around.setdefault(page, [x0, y0, x1, y1])
        box[:] = (min(box[0], x0), min(box[1], y0), max(box[2], x1), max(box[3], y1))
    return [[page, *(round(edge, 1) for edge in box)] for page, box in around.items()]
