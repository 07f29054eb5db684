"""Putting a document together: cleans text, joins blocks and keeps the offsets exact."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from functions.ingest.parsing.document import Attachment, Block, BlockKind, Box, Page, ParsedDocument
from functions.ingest.parsing.reasons import failure

MAX_TEXT = 30_000_000
"""Characters a document may hold: about 10,000 printed pages; plain text of the size limit (25 MB) fits."""
MAX_BLOCKS = 400_000

_NEWLINES = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# Controls, lone surrogates and non-characters cannot be stored or shown; soft hyphens, zero width spaces and byte order
# marks are invisible but break words apart for the full text search.
_DROPPED = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u2060\ufeff\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
_PROGRAM = re.compile(r"Microsoft (?:Word|PowerPoint|Excel) - ")
_NO_TITLE = re.compile(
    r"(?:untitled|unbenannt|ohne titel|(?:word[ -]|powerpoint[ -])?(?:document|dokument|presentation|präsentation))"
    r"[ -]?\d*(?:\.\w{1,5})?",
    re.IGNORECASE,
)
_NO_SHEET = re.compile(r"(?:sheet|tabelle|feuil|hoja|foglio|blad|arkusz)\s?\d*", re.IGNORECASE)
"""What programs call a sheet that nobody named: every workbook would have the same title."""


def clean(text: str) -> str:
    """`text` in NFC with LF newlines, without controls, lone surrogates, invisible characters and no-break spaces."""
    # Everything below concerns what is unprintable, and nearly every line has nothing of it.
    if text.isprintable() and unicodedata.is_normalized("NFC", text):
        return text
    text = _DROPPED.sub("", _NEWLINES.sub("\n", text.replace("\xa0", " ")))
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def one_line(text: str) -> str:
    """`text` with every run of white space as one blank: what a browser shows of it."""
    return " ".join(text.split())


def table_text(rows: Iterable[Sequence[str]]) -> str:
    """A table as text: a line a row, cells joined by " | ", cells themselves on one line; trailing blanks cut."""
    return "\n".join(" | ".join(one_line(cell) for cell in row).rstrip(" |") for row in rows)


def _chosen(title: str) -> str:
    """A title somebody chose: less what programs put before it, "" for what they write when nobody did."""
    if not title:
        return ""
    title = _PROGRAM.sub("", title)
    return "" if _NO_TITLE.fullmatch(title) else title


class Assembly:
    """Collects blocks in reading order; `finish` makes the document. One per document, not shared."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._blocks: list[Block] = []
        self._length = 0
        self.warnings: list[str] = []

    @property
    def position(self) -> int:
        """Where the text ends by now."""
        return self._length

    @property
    def next_start(self) -> int:
        """Where the next block will start."""
        return self._length + 2 if self._parts else 0

    def warn(self, code: str) -> None:
        """Note that something was left out (once a code)."""
        if code not in self.warnings:
            self.warnings.append(code)

    def add(
        self,
        kind: BlockKind,
        text: str,
        *,
        level: int = 0,
        page: int | None = None,
        slide: int | None = None,
        sheet: str | None = None,
        cells: str | None = None,
    ) -> None:
        """Append a block; text that is only white space is dropped."""
        text = clean(text)
        text = text.strip("\n").rstrip() if kind == "code" else text.strip()
        if kind == "heading":
            text = one_line(text)
        if text:
            start = self._place(text)
            self._blocks.append(Block(kind, start, self._length, level, page, slide, sheet, cells))

    def add_located(self, kind: BlockKind, text: str, boxes: Iterable[Box], *, level: int, page: int) -> None:
        """Append a block of clean, stripped text that stands on a page."""
        start = self._place(text)
        self._blocks.append(Block(kind, start, self._length, level, page, None, None, None, tuple(boxes)))

    def _place(self, text: str) -> int:
        start = self.next_start
        if start + len(text) > MAX_TEXT:
            raise failure("too-large", f"more than {MAX_TEXT:,} characters")
        if len(self._blocks) >= MAX_BLOCKS:
            raise failure("too-large", f"more than {MAX_BLOCKS:,} paragraphs")
        if start:
            self._parts.append("\n\n")
        self._parts.append(text)
        self._length = start + len(text)
        return start

    def _first_heading(self, text: str) -> str:
        """The first heading that somebody chose; "" without any."""
        for block in self._blocks:
            if block.kind == "heading":
                heading = text[block.start : block.end]
                if block.sheet is None or not _NO_SHEET.fullmatch(heading):
                    return heading
        return ""

    def finish(
        self,
        media_type: str,
        *,
        title: str | None = None,
        language: str | None = None,
        pages: Iterable[Page] = (),
        children: Iterable[Attachment] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> ParsedDocument:
        """The document; without a title the first heading becomes it."""
        text = "".join(self._parts)
        title = _chosen(one_line(clean(title or ""))) or self._first_heading(text)
        return ParsedDocument(
            text=text,
            media_type=media_type,
            title=title[:500].strip() or None,
            language=language,
            blocks=tuple(self._blocks),
            pages=tuple(pages),
            children=tuple(children),
            warnings=tuple(self.warnings),
            metadata={
                clean(key).strip().lower()[:100]: one_line(clean(value))[:1000]
                for key, value in (metadata or {}).items()
                if value and value.strip()
            },
        )
