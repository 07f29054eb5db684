"""A parsed document as bytes and back: how it travels from the child process that read it.

JSON and raw bytes, never pickle or marshal: the child has touched hostile input, so what it sends is checked, not run.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from functions.ingest.parsing.document import Attachment, Block, Box, Page, ParsedDocument

_HEAD = struct.Struct(">Q")


def encode(document: ParsedDocument) -> bytes:
    """One byte string: length of the JSON, the JSON, then the bytes of the attachments."""
    body = {
        **{name: getattr(document, name) for name in ("text", "media_type", "title", "language", "warnings")},
        "metadata": dict(document.metadata),
        "blocks": [_row(block) for block in document.blocks],
        "pages": [_row(page) for page in document.pages],
        "children": [(child.name, child.media_type, len(child.data)) for child in document.children],
    }
    packed = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return b"".join([_HEAD.pack(len(packed)), packed, *(child.data for child in document.children)])


def decode(data: bytes | memoryview) -> ParsedDocument:
    """The document of `encode`; ValueError, KeyError or TypeError for anything else."""
    view = memoryview(data)
    if len(view) < _HEAD.size:
        raise ValueError("the reader's answer is cut short")
    (length,) = _HEAD.unpack_from(view)
    body = json.loads(bytes(view[_HEAD.size : _HEAD.size + length]))
    text = _string(body["text"])
    rest = view[_HEAD.size + length :]
    return ParsedDocument(
        text=text,
        media_type=_string(body["media_type"]),
        title=_optional(body["title"]),
        language=_optional(body["language"]),
        blocks=tuple(_block(row, len(text)) for row in body["blocks"]),
        pages=tuple(Page(*row) for row in body["pages"]),
        children=tuple(_children(body["children"], rest)),
        warnings=tuple(map(_string, body["warnings"])),
        metadata={_string(key): _string(value) for key, value in body["metadata"].items()},
    )


_BLOCK_FIELDS = [item.name for item in fields(Block)]
_PAGE_FIELDS = [item.name for item in fields(Page)]


def _row(value: Block | Page) -> list[Any]:
    return [getattr(value, name) for name in (_BLOCK_FIELDS if isinstance(value, Block) else _PAGE_FIELDS)]


def _block(row: list[Any], length: int) -> Block:
    kind, start, end, level, page, slide, sheet, cells, boxes = row
    if kind not in ("heading", "paragraph", "list", "table", "code") or not 0 <= start < end <= length:
        raise ValueError("the reader's answer has a block outside the text")
    return Block(kind, start, end, level, page, slide, sheet, cells, tuple(map(_box, boxes)))


def _box(row: list[Any]) -> Box:
    start, end, page, x0, y0, x1, y1 = row
    return start, end, page, x0, y0, x1, y1


def _children(rows: list[Any], data: memoryview) -> Iterator[Attachment]:
    at = 0
    for name, media_type, size in rows:
        if not 0 <= size <= len(data) - at:
            raise ValueError("the reader's answer is cut short")
        yield Attachment(_string(name), _string(media_type), bytes(data[at : at + size]))
        at += size


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("the reader's answer has a value of the wrong type")
    return value


def _optional(value: object) -> str | None:
    return None if value is None else _string(value)
