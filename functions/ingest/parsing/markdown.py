"""Markdown (CommonMark and tables) by markdown-it-py: its text without markup; front matter becomes metadata."""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from functions.ingest.parsing.assembly import Assembly, clean, one_line, table_text
from functions.ingest.parsing.document import ParsedDocument
from functions.ingest.parsing.sniffing import MARKDOWN

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.S)
_MAX_FRONT_MATTER = 65_536
# PHP Markdown Extra's definition lists, as one line: "Term" + ": meaning".
_DEFINITION = re.compile(r"\n:\s+")
_TAG = re.compile(r"<!--.*?-->|</?[a-zA-Z][^<>]*>", re.S)


def parse_markdown(text: str) -> ParsedDocument:
    """The document; its title comes from the front matter or the first heading."""
    text = clean(text)
    metadata: dict[str, str] = {}
    if found := _FRONT_MATTER.match(text[:_MAX_FRONT_MATTER]):
        metadata = _front_matter(found.group(1))
        text = text[found.end() :]
    assembly = Assembly()
    # The preset's nesting limit (20) stays: deeper markup is read as text, not lost.
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    _Writer(assembly).write(parser.parse(text))
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
                    self._paragraph(_inline(token), level)
                case "fence" | "code_block":
                    self._code(token.content)
                case "html_block":
                    self._paragraph(one_line(_TAG.sub(" ", token.content)), 0)
                case "tr_open":
                    rows.append([])
                case "table_close":
                    self._table(rows)
                    rows = []
                case "bullet_list_open" | "ordered_list_open":
                    start = int(token.attrs.get("start") or 1) if token.type == "ordered_list_open" else None
                    self._counters.append(start)
                case "bullet_list_close" | "ordered_list_close":
                    self._end_list()
                case "list_item_open":
                    self._begin_item()
                case _:
                    pass

    def _paragraph(self, text: str, level: int) -> None:
        if self._counters:
            self._item(text)
        elif level:
            self._assembly.add("heading", text, level=level)
        else:
            self._assembly.add("paragraph", text)

    def _code(self, text: str) -> None:
        if self._counters:
            self._item(text)
        else:
            self._assembly.add("code", text)

    def _table(self, rows: list[list[str]]) -> None:
        text = table_text(rows)
        if self._counters:
            self._item(text)
        else:
            self._assembly.add("table", text)

    def _begin_item(self) -> None:
        number = self._counters[-1]
        self._marker = "- " if number is None else f"{number}. "
        if number is not None:
            self._counters[-1] = number + 1

    def _item(self, text: str) -> None:
        indent = "  " * (len(self._counters) - 1)
        for line in text.split("\n"):
            if line.strip():
                self._lines.append(f"{indent}{self._marker or '  '}{line.rstrip()}")
                self._marker = ""

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
