"""Markdown (CommonMark and tables) by markdown-it-py: its text without markup; front matter becomes metadata."""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from functions.ingest.parsing.assembly import Assembly, clean, one_line, table_text
from functions.ingest.parsing.document import BlockKind, ParsedDocument
from functions.ingest.parsing.html import add_html
from functions.ingest.parsing.sniffing import MARKDOWN
from functions.ingest.parsing.text import add_text

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.S)
_MAX_FRONT_MATTER = 65_536
_MAX_NESTING = 60
"""Two a list level."""
# PHP Markdown Extra's definition lists, as one line: "Term" + ": meaning".
_DEFINITION = re.compile(r"\n:\s+")


def parse_markdown(text: str) -> ParsedDocument:
    """The document; its title comes from the front matter or the first heading."""
    text = clean(text)
    metadata: dict[str, str] = {}
    if found := _FRONT_MATTER.match(text[:_MAX_FRONT_MATTER]):
        metadata = _front_matter(found.group(1))
        text = text[found.end() :]
    assembly = Assembly()
    parser = MarkdownIt("commonmark", {"maxNesting": _MAX_NESTING}).enable(["table", "strikethrough"])
    tokens = parser.parse(text)
    if max((token.level for token in tokens), default=0) >= _MAX_NESTING - 2:
        assembly.warn("markup-damaged")  # markdown-it drops what is nested deeper: better all of it as plain text
        add_text(text, assembly)
    else:
        _Writer(assembly).write(tokens)
    return assembly.finish(MARKDOWN, title=metadata.get("title"), metadata=metadata)


def _front_matter(source: str) -> dict[str, str]:
    """The scalar values of the YAML header, or of its "key: value" lines when it is not YAML."""
    try:
        # BaseLoader makes strings of all scalars and knows no tags; aliases are refused because they can multiply.
        loaded = None if re.search(r"[:\-\[{,]\s*[&*]\w", source) else yaml.load(source, Loader=yaml.BaseLoader)  # noqa: S506
    except (yaml.YAMLError, RecursionError):
        loaded = None
    if isinstance(loaded, dict):
        return {str(key).lower(): _scalar(value) for key, value in loaded.items()}
    pairs = (line.partition(":") for line in source.splitlines() if line[:1].isalpha())
    return {key.strip().lower(): value.strip().strip("\"'") for key, _, value in pairs}


def _scalar(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(item for item in value if isinstance(item, str))
    return value if isinstance(value, str) else ""


class _Writer:
    """Walks the flat token list; a list with all that is nested in it becomes one block."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._lines: list[str] = []
        self._counters: list[int | None] = []
        self._marker = ""

    def write(self, tokens: Sequence[Token]) -> None:
        rows: list[list[str]] = []
        level = 0
        for token in tokens:
            match token.type:
                case "heading_open":
                    level = int(token.tag[1:])
                case "heading_close":
                    level = 0
                case "inline" if rows:
                    rows[-1].append(_inline(token))
                case "inline":
                    self._add("heading" if level else "paragraph", _inline(token), level)
                case "fence" | "code_block":
                    self._add("code", token.content)
                case "html_block":
                    self._html(token.content)
                case "tr_open":
                    rows.append([])
                case "table_close":
                    self._add("table", table_text(rows))
                    rows = []
                case kind:
                    self._list(kind, token)

    def _list(self, kind: str, token: Token) -> None:
        """Keep track of the lists and the items in them."""
        match kind:
            case "bullet_list_open":
                self._counters.append(None)
            case "ordered_list_open":
                self._counters.append(int(token.attrs.get("start", 1)))
            case "bullet_list_close" | "ordered_list_close":
                self._end_list()
            case "list_item_open":
                number = self._counters[-1]
                self._marker = "- " if number is None else f"{number}. "
                self._counters[-1] = None if number is None else number + 1

    def _add(self, kind: BlockKind, text: str, level: int = 0) -> None:
        """Append a block, or its lines to the list it stands in."""
        if not self._counters:
            self._assembly.add(kind, text, level=level)
            return
        indent = "  " * (len(self._counters) - 1)
        for line in text.split("\n"):
            if line.strip():
                self._lines.append(f"{indent}{self._marker or '  '}{line.rstrip()}")
                self._marker = ""

    def _html(self, markup: str) -> None:
        if not self._counters:
            add_html(markup, self._assembly)
            return
        inner = Assembly()
        add_html(markup, inner)
        self._add("paragraph", inner.finish(MARKDOWN).text)

    def _end_list(self) -> None:
        self._counters.pop()
        if not self._counters:
            self._assembly.add("list", "\n".join(self._lines))
            self._lines = []


def _inline(token: Token) -> str:
    """The text of a run of inline markup: link texts, image descriptions, code; no addresses, no tags."""
    parts: list[str] = []
    for child in token.children or ():
        match child.type:
            case "text" | "code_inline":
                parts.append(child.content)
            case "softbreak" | "hardbreak":
                parts.append("\n")
            case "image":
                parts.append(_inline(child))
            case _:
                pass
    return "\n".join(one_line(line) for line in _joined("".join(parts), token))


def _joined(text: str, token: Token) -> list[str]:
    """Soft breaks are blanks, hard ones stay."""
    hard = any(child.type == "hardbreak" for child in token.children or ())
    text = _DEFINITION.sub(": ", text)
    return text.split("\n") if hard else [text]
