"""PDF by pdfium: the text layer page by page, with a box for every printed line."""

from __future__ import annotations

import ctypes
import re
import threading
import unicodedata
from collections.abc import Iterator
from itertools import islice

import pypdfium2 as pdfium
from pypdfium2 import raw

from functions.ingest.parsing.assembly import Assembly, clean, table_text
from functions.ingest.parsing.document import Box, Page, ParsedDocument
from functions.ingest.parsing.layout import Line, Titles, heading_sizes, paragraphs
from functions.ingest.parsing.ocr import Recogniser, recognise
from functions.ingest.parsing.reasons import failure
from functions.ingest.parsing.ruling import Sheet, draws, sheet_of
from functions.ingest.parsing.sniffing import PDF
from functions.ingest.parsing.tables import Row

MAX_PAGES = 5_000
_MAX_OUTLINE = 10_000
# pdfium ends lines with CR LF; where it finds a word divided there, U+FFFE stands for hyphen, CR and LF.
_HYPHEN = "\ufffe"
_TO_CLEAN = re.compile(
    "[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\xa0\xad\u200b\u2028\u2029\u2060\ufeff\ud800-\udfff\ufdd0-\ufdef\uffff]"
)
_NO_TITLES = Titles()
_METADATA_ROOM = 2_048
"""Bytes, in UTF-16: longer values are asked for again."""
_FEWEST_LINES = 2
"""Fewer printed lines are no table."""
_PDFIUM = threading.Lock()
"""pdfium is not safe to use from two threads, not even with two documents (fpdfview.h)."""


def parse_pdf(data: bytes, recogniser: Recogniser | None = None) -> ParsedDocument:
    """The document; "encrypted", "corrupt", "too-many-pages", or "no-text" when there is none to be had.

    With a recogniser, pages that are only pictures are read by it.
    """
    with _PDFIUM:
        document = _open(data)
        try:
            return _parse(document, recogniser)
        finally:
            document.close()


def _open(data: bytes) -> pdfium.PdfDocument:
    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        if error.err_code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
            raise failure("encrypted") from error
        raise failure("corrupt", "PDF") from error
    if not 0 < len(document) <= MAX_PAGES:
        count = len(document)
        document.close()
        raise failure("too-many-pages", f"{MAX_PAGES:,}") if count > 0 else failure("corrupt", "PDF")
    return document


def _parse(document: pdfium.PdfDocument, recogniser: Recogniser | None) -> ParsedDocument:
    assembly = Assembly()
    sheets = _sheets(document, assembly, recogniser)
    outline = _outline(document)
    sizes = {} if outline else heading_sizes(lines for _, sheet in sheets for lines, _ in sheet)
    pages = []
    for page, sheet in sheets:
        start = assembly.next_start
        titles = Titles(outline[page.number]) if page.number in outline else _NO_TITLES
        for lines, table in sheet:
            for kind, level, text, boxes in paragraphs(lines, page.number, titles, sizes):
                assembly.add_located(kind, text, boxes, level=level, page=page.number)
            if table:
                assembly.add_located("table", *_printed_table(table, page.number), level=0, page=page.number)
        end = assembly.position
        pages.append(Page(page.number, min(start, end), end, page.width, page.height, page.label))
    if not assembly.position:
        raise failure("no-text")
    metadata = _metadata(document)
    return assembly.finish(PDF, title=metadata.get("title"), pages=pages, metadata=metadata)


def _printed_table(rows: list[Row], page: int) -> tuple[str, list[Box]]:
    """A table as text, and a box for each of its rows."""
    lines = [clean(table_text([row.cells])) for row in rows]
    boxes: list[Box] = []
    at = 0
    for line, row in zip(lines, rows, strict=True):
        boxes.append((at, at + len(line), page, row.x0, row.y0, row.x1, row.y1))
        at += len(line) + 1
    return "\n".join(lines), boxes


def _sheets(
    document: pdfium.PdfDocument, assembly: Assembly, recogniser: Recogniser | None
) -> list[tuple[Page, Sheet]]:
    """Every readable page with its lines and tables; what cannot be read, or was only scanned, is noted.

    Pages are opened by the bare functions of pdfium: the comfort of pypdfium2's objects costs a tenth of the time.
    """
    sheets = []
    labelled = bool(document.get_page_label(0))
    for index in range(len(document)):
        page = raw.FPDF_LoadPage(document.raw, index)
        if not page:
            assembly.warn("pages-unreadable")
            continue
        try:
            sheet = _read(page)
            width, height = raw.FPDF_GetPageWidthF(page), raw.FPDF_GetPageHeightF(page)
            scanned = not sheet and _has_image(page)
        finally:
            raw.FPDF_ClosePage(page)
        if scanned:
            sheet = _scanned(document, index, assembly, recogniser)
        label = _label(document, index) if labelled else None
        sheets.append((Page(index + 1, 0, 0, round(width, 1), round(height, 1), label), sheet))
    if not sheets:
        raise failure("corrupt", "PDF")
    return sheets


def _scanned(document: pdfium.PdfDocument, index: int, assembly: Assembly, recogniser: Recogniser | None) -> Sheet:
    """What text recognition makes of a page without text."""
    lines: list[Line] | None = None
    if recogniser is not None:
        page = document[index]
        try:
            lines = recognise(page, recogniser)
        finally:
            page.close()
    assembly.warn("pages-without-text" if lines is None else "pages-recognised")
    return [(lines, [])] if lines else []


def _read(page: raw.FPDF_PAGE) -> Sheet:
    """The lines and tables of a page; [] for one without text."""
    handle = raw.FPDFText_LoadPage(page)
    if not handle:
        return []
    try:
        places: list[tuple[int, str]] | None = [] if draws(page) else None
        lines = _lines(handle, places)
        if places and len(lines) >= _FEWEST_LINES:
            return sheet_of(page, handle, lines, places)
        return [(lines, [])] if lines else []
    finally:
        raw.FPDFText_ClosePage(handle)


def _lines(handle: raw.FPDF_TEXTPAGE, places: list[tuple[int, str]] | None) -> list[Line]:
    """The printed lines of a page in the order of its content; into `places` go first letter and letters of each.

    A line's box goes from its first letter to its last: two calls; asking for every letter would halve the speed.
    """
    text, exact = _text(handle)
    untidy = bool(_TO_CLEAN.search(text)) or not unicodedata.is_normalized("NFC", text)
    box, box_of = raw.FS_RECTF(), raw.FPDFText_GetLooseCharBox
    lines: list[Line] = []
    for start, printed, hyphen in _printed(text):
        content = (clean(printed) if untidy else printed).strip()
        if not content:
            continue
        first, last = start, start + len(printed) - 1
        if not exact:
            first, last = (max(0, raw.FPDFText_GetCharIndexFromTextIndex(handle, at)) for at in (first, last))
        if places is not None and exact:  # otherwise letters cannot be found, and a table stays text
            places.append((first, printed))
        box_of(handle, first, box)
        x0, y0, x1, y1 = box.left, box.bottom, box.right, box.top
        box_of(handle, last, box)
        left, bottom, right, top = box.left, box.bottom, box.right, box.top
        lines.append(  # compared in place: calls to min() and max() would cost a tenth of the time
            (
                content,
                x0 if x0 < left else left,
                y0 if y0 < bottom else bottom,
                x1 if x1 > right else right,
                y1 if y1 > top else top,
                hyphen,
            )
        )
    return lines


def _printed(text: str) -> Iterator[tuple[int, str, bool]]:
    """Start and text of the printed lines, and whether pdfium found that a word goes on in the next one."""
    at = 0
    for line in text.split("\r\n"):
        *divided, end = line.split(_HYPHEN) if _HYPHEN in line else (line,)
        for part in divided:
            yield at, part, True
            at += len(part) + 1
        yield at, end, False
        at += len(end) + 2


def _text(handle: raw.FPDF_TEXTPAGE) -> tuple[str, bool]:
    """The text of a page, and whether its positions are those of pdfium's characters (nearly always)."""
    count = raw.FPDFText_CountChars(handle)
    if count <= 0:
        return "", True
    buffer = (ctypes.c_ushort * (2 * count + 2))()
    written = raw.FPDFText_GetText(handle, 0, count, buffer)
    text = bytes(memoryview(buffer)[: max(0, written - 1)]).decode("utf-16-le", "surrogatepass")
    return text, len(text) == count


def _has_image(page: raw.FPDF_PAGE) -> bool:
    count = min(raw.FPDFPage_CountObjects(page), 200)
    pictures = (raw.FPDF_PAGEOBJ_IMAGE, raw.FPDF_PAGEOBJ_FORM)
    return any(raw.FPDFPageObj_GetType(raw.FPDFPage_GetObject(page, index)) in pictures for index in range(count))


def _label(document: pdfium.PdfDocument, index: int) -> str | None:
    """The printed page number where it differs from the count ("iv", "A-3")."""
    label = clean(document.get_page_label(index)).strip()[:40]
    return label if label and label != str(index + 1) else None


def _outline(document: pdfium.PdfDocument) -> dict[int, list[tuple[int, str]]]:
    """Level and title of the outline's entries by the page they point to."""
    entries: dict[int, list[tuple[int, str]]] = {}
    for bookmark in islice(document.get_toc(max_depth=8), _MAX_OUTLINE):
        target = bookmark.get_dest()
        index = target.get_index() if target else None
        if index is not None:
            entries.setdefault(index + 1, []).append((bookmark.level + 1, bookmark.get_title()))
    return entries


def _metadata(document: pdfium.PdfDocument) -> dict[str, str]:
    """What the information dictionary says; the programs that made the file are of no use to readers."""
    # Asked for directly: pypdfium2 asks for every value twice, and that is a tenth of reading a page.
    room = ctypes.create_string_buffer(_METADATA_ROOM)
    found: dict[str, str] = {}
    for key in ("Title", "Author", "Subject", "Keywords", "CreationDate"):
        size = raw.FPDF_GetMetaText(document.raw, key.encode(), room, _METADATA_ROOM)
        fits = size <= _METADATA_ROOM
        value = room.raw[: size - 2].decode("utf-16-le", "replace") if size > 2 and fits else ""
        found[key.lower()] = value if fits else document.get_metadata_value(key)
    return found
