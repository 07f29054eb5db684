"""XLSX by openpyxl: the values of every visible sheet, a table for each run of rows, with its cell range."""

from __future__ import annotations

import datetime as dt
import io
import warnings
import zipfile
from typing import Any

import openpyxl

from functions.ingest.parsing.assembly import Assembly
from functions.ingest.parsing.document import ParsedDocument
from functions.ingest.parsing.grid import add_grid
from functions.ingest.parsing.ooxml import DAMAGE, damage_is_corrupt, opened
from functions.ingest.parsing.sniffing import XLSX
from shared.errors import PermanentError

MAX_ROWS = 200_000
"""Rows of a sheet that are read; what is larger is a database, not a document."""
MAX_EMPTY = 20_000
"""Empty rows in a row after which a sheet counts as ended: formatting reaches to row 1,048,576 in many files."""


def parse_xlsx(data: bytes) -> ParsedDocument:
    """The document; formulas appear as the value that was last computed, hidden sheets are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about features openpyxl drops; nothing of it is text
        assembly = Assembly()
        try:
            workbook = opened(_load, data, "XLSX")
        except PermanentError as error:
            if not isinstance(error.__cause__, TypeError | ValueError | KeyError | IndexError):
                raise
            # openpyxl is stricter about styles than the programs that write them; the values are readable without.
            workbook = opened(_load, _without_styles(data), "XLSX")
            assembly.warn("parts-unreadable")
        with damage_is_corrupt("XLSX"):
            sheets = workbook.worksheets
            for sheet in sheets:
                if sheet.sheet_state != "visible":
                    assembly.warn("hidden-sheets")
                    continue
                try:
                    _sheet(sheet, assembly)
                except DAMAGE:
                    if len(sheets) == 1:
                        raise
                    assembly.warn("parts-unreadable")
        properties = workbook.properties
        workbook.close()
    metadata = {
        name: str(getattr(properties, attribute) or "")
        for name, attribute in (
            ("title", "title"),
            ("author", "creator"),
            ("subject", "subject"),
            ("keywords", "keywords"),
        )
    }
    return assembly.finish(XLSX, title=metadata["title"], metadata=metadata)


def _load(package: Any) -> Any:
    return openpyxl.load_workbook(package, read_only=True, data_only=True, keep_links=False)


def _without_styles(data: bytes) -> bytes:
    """The same package less its style sheet; dates then appear as the numbers they are stored as."""
    bare = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(bare, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            if entry.filename.lower() != "xl/styles.xml" and not entry.filename.startswith("xl/media/"):
                target.writestr(entry.filename, source.read(entry))
    return bare.getvalue()


def _sheet(sheet: Any, assembly: Assembly) -> None:
    """The tables of a sheet below its name."""
    sheet.reset_dimensions()  # the declared size is what a bomb lies about
    named = False
    rows: list[list[str]] = []
    first = empty = 0
    for number, cells in enumerate(sheet.iter_rows(), 1):
        row = [_shown(cell) for cell in cells]
        if any(row):
            if not named:
                assembly.add("heading", sheet.title, level=1, sheet=sheet.title)
                named = True
            first, empty = (first if rows else number), 0
            rows.append(row)
        else:
            add_grid(rows, first, assembly, sheet=sheet.title)
            rows, empty = [], empty + 1
        if number >= MAX_ROWS or empty >= MAX_EMPTY:
            if number >= MAX_ROWS:
                assembly.warn("cells-cut")
            break
    add_grid(rows, first, assembly, sheet=sheet.title)


def _shown(cell: Any) -> str:
    """A value about as the sheet shows it: dates in ISO form, percentages, no floating point noise."""
    value = cell.value
    match value:
        case None:
            return ""
        case bool():
            return "TRUE" if value else "FALSE"
        case int() | float():
            if _is_percentage(cell):
                return f"{value * 100:.10g}%"
            return str(value) if isinstance(value, int) else f"{value:.15g}"
        case dt.datetime():
            return value.date().isoformat() if value.time() == dt.time() else value.isoformat(" ", "seconds")
        case dt.date() | dt.time() | dt.timedelta():
            return str(value)
    return str(value).strip()


def _is_percentage(cell: Any) -> bool:
    try:
        return "%" in (cell.number_format or "")
    except IndexError:  # a style that is not there
        return False
