"""CSV: one table, its dialect found from the first lines."""

from __future__ import annotations

import csv
import io
import sys

from functions.ingest.parsing.assembly import Assembly, clean
from functions.ingest.parsing.document import ParsedDocument
from functions.ingest.parsing.grid import add_grid
from functions.ingest.parsing.reasons import failure
from functions.ingest.parsing.sniffing import CSV, delimiter_of

MAX_COLUMNS = 16_384
"""As many as a spreadsheet has (Excel's limit)."""


def parse_csv(text: str) -> ParsedDocument:
    """The document: a table for each run of rows between empty ones; "corrupt" when quotes are never closed."""
    text = clean(text)
    assembly = Assembly()
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default, 128 KiB a cell, would refuse long texts
    rows: list[list[str]] = []
    first = number = 1
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text[:65_536]) or ","):
            if len(row) > MAX_COLUMNS:
                assembly.warn("cells-cut")
            cells = [cell.strip() for cell in row[:MAX_COLUMNS]]
            if any(cells):
                rows.append(cells)
            else:
                add_grid(rows, first, assembly)
                rows, first = [], number + 1
            number += 1
    except csv.Error as error:
        raise failure("corrupt", "CSV") from error
    add_grid(rows, first, assembly)
    return assembly.finish(CSV)
