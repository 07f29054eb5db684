"""PDF by pdfium: the text layer page by page, with a box for every printed line."""

from __future__ import annotations

import ctypes
import gc
import threading
import unicodedata
from array import array
from collections.abc import Callable, Iterator
from itertools import accumulate, islice, repeat

import pypdfium2
from pypdfium2 import raw

from functions.ingest.parsing import pdfium
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
_DEEPEST_OUTLINE = 8
# pdfium ends lines with CR LF; where it finds a word divided there, U+FFFE stands for hyphen, CR and LF.
_BREAK, _HYPHEN = "\r\n", "\ufffe"
_CLEANED = bytes((*range(9), *range(11, 32), *range(127, 161), 173))
"""What `clean` drops or replaces, of the letters of Latin-1."""
_NO_TITLES = Titles()
_ROOM = 2_048
"""Bytes, in UTF-16, that are enough for nearly every title or name: longer ones are asked for again."""
_Room = ctypes.c_char * _ROOM
_FEWEST_LINES = 2
"""Fewer printed lines are no table."""
_PDFIUM = threading.Lock()
"""pdfium is not safe to use from two threads, not even with two documents (fpdfview.h)."""


def parse_pdf(data: bytes, recogniser: Recogniser | None = None) -> ParsedDocument:
    """The document; "encrypted", "corrupt", "too-many-pages", or "no-text" when there is none to be had.

    With a recogniser, pages that are only pictures are read by it.
    """
    with _PDFIUM:
        # No search for garbage in cycles meanwhile: a page makes hundreds of tuples and no cycle, and every search
        # walks all that is still needed (a twentieth of the time).
        collecting = gc.isenabled()
        gc.disable()
        try:
            return _opened(data, recogniser)
        finally:
            if collecting:
                gc.enable()


def _opened(data: bytes, recogniser: Recogniser | None) -> ParsedDocument:
    document = _open(data)
    try:
        return _parse(document, recogniser)
    finally:
        pdfium.close_document(document)


def _open(data: bytes) -> pdfium.Document:
    """An open document, which reads from `data` until it is closed."""
    document: pdfium.Document | None = pdfium.load_document(data, len(data), None)
    if document is None:
        if pdfium.last_error() in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
            raise failure("encrypted")
        raise failure("corrupt", "PDF")
    count = pdfium.count_pages(document)
    if not 0 < count <= MAX_PAGES:
        pdfium.close_document(document)
        raise failure("too-many-pages", f"{MAX_PAGES:,}") if count > 0 else failure("corrupt", "PDF")
    return document


def _parse(document: pdfium.Document, recogniser: Recogniser | None) -> ParsedDocument:
    assembly = Assembly()
    read = _sheets(document, assembly, recogniser)
    outline = _outline(document)
    sizes = {} if outline else heading_sizes(lines for _, _, _, sheet in read for lines, _ in sheet)
    labelled = pdfium.page_label(document, 0, None, 0) > 2
    pages = []
    for number, width, height, sheet in read:
        start = assembly.next_start
        titles = Titles(outline[number]) if number in outline else _NO_TITLES
        for lines, table in sheet:
            for kind, level, text, boxes in paragraphs(lines, number, titles, sizes):
                assembly.add_located(kind, text, boxes, level=level, page=number)
            if table:
                assembly.add_located("table", *_printed_table(table, number), level=0, page=number)
        end = assembly.position
        label = _label(document, number) if labelled else None
        pages.append(Page(number, min(start, end), end, width, height, label))
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
    document: pdfium.Document, assembly: Assembly, recogniser: Recogniser | None
) -> list[tuple[int, float, float, Sheet]]:
    """Number, width and height of every readable page, its lines and tables; what is missing from them is noted."""
    sheets = []
    for index in range(pdfium.count_pages(document)):
        page: pdfium.Page | None = pdfium.load_page(document, index)
        if page is None:
            assembly.warn("pages-unreadable")
            continue
        try:
            sheet = _read(page)
            width, height = pdfium.page_width(page), pdfium.page_height(page)
            scanned = not sheet and _has_image(page)
        finally:
            pdfium.close_page(page)
        if scanned:
            sheet = _scanned(document, index, assembly, recogniser)
        sheets.append((index + 1, round(width, 1), round(height, 1), sheet))
    if not sheets:
        raise failure("corrupt", "PDF")
    return sheets


def _scanned(document: pdfium.Document, index: int, assembly: Assembly, recogniser: Recogniser | None) -> Sheet:
    """What text recognition makes of a page without text."""
    lines: list[Line] | None = None
    if recogniser is not None:
        page = pypdfium2.PdfPage(raw.FPDF_LoadPage(ctypes.cast(document, raw.FPDF_DOCUMENT), index), None, None)
        try:
            lines = recognise(page, recogniser)
        finally:
            page.close()
    assembly.warn("pages-without-text" if lines is None else "pages-recognised")
    return [(lines, [])] if lines else []


def _read(page: pdfium.Page) -> Sheet:
    """The lines and tables of a page; [] for one without text."""
    text: pdfium.TextPage | None = pdfium.load_text(page)
    if text is None:
        return []
    try:
        places: list[tuple[int, str]] | None = [] if draws(page) else None
        lines = _lines(text, places)
        if places and len(lines) >= _FEWEST_LINES:
            return sheet_of(page, text, lines, places)
        return [(lines, [])] if lines else []
    finally:
        pdfium.close_text(text)


def _lines(page: pdfium.TextPage, places: list[tuple[int, str]] | None) -> list[Line]:
    """The printed lines of a page in the order of its content; into `places` go first letter and letters of each.

    A line's box goes from its first letter to its last: two calls; asking for every letter would halve the speed.
    """
    text, exact = _text(page)
    untidy = not _tidy(text)
    contents: list[tuple[str, bool]] = []
    firsts: list[int] = []
    lasts: list[int] = []
    for start, line, hyphen in _printed(text):
        content = (clean(line) if untidy else line).strip()
        if content:
            contents.append((content, hyphen))
            firsts.append(start)
            lasts.append(start + len(line) - 1)
            if places is not None and exact:  # otherwise letters cannot be found, and a table stays text
                places.append((start, line))
    if not exact:
        firsts, lasts = _characters(page, firsts), _characters(page, lasts)
    boxes = pdfium.boxes(page, firsts, lasts)
    return [(content, *box, hyphen) for (content, hyphen), box in zip(contents, boxes, strict=True)]


def _characters(page: pdfium.TextPage, places: list[int]) -> list[int]:
    """Which of pdfium's characters stand at places of the text."""
    return [max(0, pdfium.character_of_text(page, place)) for place in places]


def _tidy(text: str) -> bool:
    """Whether `clean` would leave every line of a page as it is; in doubt False."""
    text = text.replace(_BREAK, "")
    try:
        narrow = text.encode("latin-1")
    except UnicodeEncodeError:
        return text.isprintable() and unicodedata.is_normalized("NFC", text)
    # A third of the price of asking for every letter; what Latin-1 holds is always in NFC.
    return len(narrow.translate(None, _CLEANED)) == len(narrow)


def _printed(text: str) -> list[tuple[int, str, bool]]:
    """Start and text of the printed lines, and whether pdfium found that a word goes on in the next one."""
    lines = text.split(_BREAK)
    if _HYPHEN not in text:
        return list(zip(accumulate([len(line) + 2 for line in lines], initial=0), lines, repeat(False), strict=False))
    printed = []
    at = 0
    for line in lines:
        *divided, end = line.split(_HYPHEN) if _HYPHEN in line else (line,)
        for part in divided:
            printed.append((at, part, True))
            at += len(part) + 1
        printed.append((at, end, False))
        at += len(end) + 2
    return printed


def _text(page: pdfium.TextPage) -> tuple[str, bool]:
    """The text of a page, and whether its positions are those of pdfium's characters (nearly always)."""
    count = pdfium.count_characters(page)
    if count <= 0:
        return "", True
    room = array("H", bytes(4 * count + 4))
    written = pdfium.get_text(page, 0, count, room.buffer_info()[0])
    text = str(memoryview(room)[: max(0, written - 1)], "utf-16-le", "surrogatepass")
    return text, len(text) == count


def _has_image(page: pdfium.Page) -> bool:
    count = min(pdfium.count_objects(page), 200)
    pictures = (raw.FPDF_PAGEOBJ_IMAGE, raw.FPDF_PAGEOBJ_FORM)
    return any(pdfium.object_kind(pdfium.get_object(page, index)) in pictures for index in range(count))


def _label(document: pdfium.Document, number: int) -> str | None:
    """The printed page number where it differs from the count ("iv", "A-3")."""
    label = clean(_wide(pdfium.page_label, document, number - 1)).strip()[:40]
    return label if label and label != str(number) else None


def _wide(ask: Callable[..., int], *about: object) -> str:
    """A string that pdfium writes in UTF-16; "" where it has none."""
    room: ctypes.Array[ctypes.c_char] = _Room()
    size = ask(*about, room, _ROOM)
    if size > _ROOM:
        room = ctypes.create_string_buffer(size)
        ask(*about, room, size)
    return room.raw[: size - 2].decode("utf-16-le", "replace") if size > 2 else ""


def _outline(document: pdfium.Document) -> dict[int, list[tuple[int, str]]]:
    """Level and title of the outline's entries by the page they point to."""
    entries: dict[int, list[tuple[int, str]]] = {}
    for bookmark, level in islice(_bookmarks(document, None, 1, set()), _MAX_OUTLINE):
        target = pdfium.bookmark_destination(document, bookmark)
        index = pdfium.destination_page(document, target) if target is not None else -1
        if index >= 0:
            entries.setdefault(index + 1, []).append((level, _wide(pdfium.bookmark_title, bookmark)))
    return entries


def _bookmarks(document: pdfium.Document, parent: int | None, level: int, seen: set[int]) -> Iterator[tuple[int, int]]:
    """Address and level of the outline's entries from top to bottom; one that leads back to another ends its row."""
    bookmark: int | None = pdfium.first_bookmark(document, parent)
    while bookmark is not None and bookmark not in seen:
        seen.add(bookmark)
        yield bookmark, level
        if level < _DEEPEST_OUTLINE:
            yield from _bookmarks(document, bookmark, level + 1, seen)
        bookmark = pdfium.next_bookmark(document, bookmark)


def _metadata(document: pdfium.Document) -> dict[str, str]:
    """What the information dictionary says; the programs that made the file are of no use to readers."""
    keys = (b"Title", b"Author", b"Subject", b"Keywords", b"CreationDate")
    return {key.decode().lower(): _wide(pdfium.meta_text, document, key) for key in keys}
