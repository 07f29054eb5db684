"""Rows of cells as tables: what spreadsheets and CSV files share."""

from __future__ import annotations

from collections.abc import Sequence

from functions.ingest.parsing.assembly import Assembly, table_text


def add_grid(rows: list[list[str]], first: int, assembly: Assembly, *, sheet: str | None = None) -> None:
    """Append a run of rows that begins at row `first`, without columns that are empty at its left and right."""
    if not rows:
        return
    left = min(map(_leading, rows))
    right = max(len(row) - _leading(row[::-1]) for row in rows)
    cells = f"{_column(left + 1)}{first}:{_column(right)}{first + len(rows) - 1}"
    assembly.add("table", table_text(row[left:right] for row in rows), sheet=sheet, cells=cells)


def _leading(row: Sequence[str]) -> int:
    """How many cells at the beginning are empty."""
    return next((index for index, cell in enumerate(row) if cell), len(row))


def _column(number: int) -> str:
    """The letters of a column counted from 1: A, B, …, Z, AA."""
    letters = ""
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(65 + rest) + letters
    return letters
