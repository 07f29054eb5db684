"""What parsing hands back: one text, and where each piece of it stood in the source.

Everything here is a plain value. Offsets are code points into `ParsedDocument.text`, half open; pages and slides count
from 1; boxes are PDF points (1/72 inch) in the page's own coordinates, origin at its lower left corner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

BlockKind = Literal["heading", "paragraph", "list", "table", "code"]


Box: TypeAlias = tuple[int, int, int, float, float, float, float]
"""(start, end, page, x0, y0, x1, y1): the rectangle on a page that shows one printed line of a block, `start` and `end`
counted from the block's start. A bare tuple: a large PDF has a hundred thousand of them."""


@dataclass(frozen=True, slots=True)
class Block:
    """A heading, paragraph, list, table or listing: `text[start:end]`, in reading order, never overlapping.

    A list has one line an item, a table one line a row (cells joined by " | "). `cells` is the range of a spreadsheet
    or CSV ("A2:D9"); such a table has exactly one line a row of that range, so that a part of it can be located.
    """

    kind: BlockKind
    start: int
    end: int
    level: int = 0
    """1 (highest) to 6 for headings, otherwise 0."""
    page: int | None = None
    slide: int | None = None
    sheet: str | None = None
    cells: str | None = None
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """A page or slide: which part of the text it holds, its size in points and its printed label if it has one."""

    number: int
    start: int
    end: int
    width: float = 0.0
    height: float = 0.0
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that travelled inside the document (e-mail): not parsed here, it is a document of its own."""

    name: str
    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """A document as text: NFC, newlines as LF, without NUL, lone surrogates and other control characters.

    Every character that is not white space belongs to exactly one block. `language` is an ISO 639-1 code or None when
    the text is too short to tell. `warnings` are codes of what was left out (`reasons.WARNINGS`), never content.
    """

    text: str
    media_type: str
    title: str | None = None
    language: str | None = None
    blocks: tuple[Block, ...] = ()
    pages: tuple[Page, ...] = ()
    children: tuple[Attachment, ...] = ()
    warnings: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What the source says about itself (author, date, front matter …), names in lower case, as text."""
