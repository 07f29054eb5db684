"""Plain text: paragraphs between empty lines, with their line breaks kept; lists where every line is an item."""

from __future__ import annotations

import re

from functions.ingest.parsing.assembly import Assembly, clean
from functions.ingest.parsing.document import ParsedDocument
from functions.ingest.parsing.sniffing import TEXT

_EMPTY_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_ITEM = re.compile(r"\s*(?:[-*+•–]|\(?\d{1,3}[.)]|\(?[a-z]\))\s+\S")


def parse_text(text: str) -> ParsedDocument:
    """The document; plain text has no headings and no title of its own."""
    assembly = Assembly()
    add_text(text, assembly)
    return assembly.finish(TEXT)


def add_text(text: str, assembly: Assembly) -> None:
    """Append the paragraphs and lists of a plain text (also: the body of a mail)."""
    for part in _EMPTY_LINES.split(clean(text)):
        first, _, rest = part.strip("\n").partition("\n")
        is_list = bool(_ITEM.match(first)) and (not rest or any(map(_ITEM.match, rest.split("\n"))))
        assembly.add("list" if is_list else "paragraph", part)
