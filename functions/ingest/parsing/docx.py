"""DOCX by python-docx: body, tables, text boxes and notes in document order; no headers, footers, deletions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import docx
from lxml import etree

from functions.ingest.parsing.assembly import Assembly, one_line, table_text
from functions.ingest.parsing.document import ParsedDocument
from functions.ingest.parsing.numbering import Numbering, W
from functions.ingest.parsing.ooxml import DAMAGE, core_properties, damage_is_corrupt, opened
from functions.ingest.parsing.sniffing import DOCX

_MC_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_M_TEXT = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"
_BREAKS = {f"{W}br": "\n", f"{W}cr": "\n", f"{W}tab": "\t", f"{W}noBreakHyphen": "-"}
# Read by themselves, or never shown.
_APART = frozenset([f"{W}txbxContent", f"{W}del", f"{W}moveFrom", f"{W}rPr", f"{W}pPr", _MC_FALLBACK])
_NOTES = ("footnotes", "endnotes")
_MAX_DEPTH = 40
_MAX_BASES = 20
"""Styles that are based on each other; a loop of them must end."""


class _Style(NamedTuple):
    """What a paragraph style says about structure."""

    level: int
    number_id: str | None
    number_level: int


def parse_docx(data: bytes) -> ParsedDocument:
    """The document; automatic numbers are written out as Word would print them."""
    document = opened(docx.Document, data, "DOCX")
    assembly = Assembly()
    metadata = core_properties(document)
    with damage_is_corrupt("DOCX"):
        writer = _Writer(assembly, document)
        writer.blocks(document.element.body, 0)
        for note in _notes(document, assembly):
            writer.blocks(note, 0)
        writer.end_list()
    return assembly.finish(DOCX, title=metadata.get("title"), metadata=metadata)


class _Writer:
    def __init__(self, assembly: Assembly, document: Any) -> None:
        self._assembly = assembly
        self._styles = _styles(document.styles.element)
        self._numbering = Numbering(_numbering_root(document))
        self._items: list[str] = []

    def blocks(self, parent: etree._Element, depth: int) -> None:
        """Append paragraphs and tables below `parent`, through content controls and the like."""
        for child in parent:
            if child.tag == f"{W}p":
                self._paragraph(child, depth)
            elif child.tag == f"{W}tbl":
                self._table(child, depth)
            elif child.tag in _APART or not isinstance(child.tag, str):
                continue
            elif depth < _MAX_DEPTH:
                self.blocks(child, depth + 1)

    def end_list(self) -> None:
        """Close the list that is being collected."""
        if self._items:
            self._assembly.add("list", "\n".join(self._items))
            self._items = []

    def _paragraph(self, element: etree._Element, depth: int) -> None:
        text = "".join(_pieces(element)).strip()
        style = self._style(element)
        if text:
            label = self._numbering.label(style.number_id, style.number_level) if style.number_id else ""
            if style.level:
                self.end_list()
                self._assembly.add("heading", f"{label.removeprefix('- ')}{text}", level=style.level)
            elif style.number_id:
                self._items.append(f"{'  ' * min(style.number_level, 8)}{label}{one_line(text)}")
            else:
                self.end_list()
                self._assembly.add("paragraph", text)
        if depth < _MAX_DEPTH:
            for box in _text_boxes(element):
                self.end_list()
                self.blocks(box, depth + 1)

    def _style(self, paragraph: etree._Element) -> _Style:
        """Level and numbering: the paragraph's own where it has them, its style's otherwise."""
        properties = paragraph.find(f"{W}pPr")
        if properties is None:
            return self._styles.get("", _Style(0, None, 0))
        style = self._styles.get(_value(properties, "pStyle") or "", _Style(0, None, 0))
        level = _outline_level(properties)
        number_id, number_level = _number_of(properties)
        if number_id == "0":  # numbering switched off
            style = style._replace(number_id=None)
        elif number_id:
            style = style._replace(number_id=number_id, number_level=number_level)
        return style if level is None else style._replace(level=level)

    def _table(self, table: etree._Element, depth: int) -> None:
        self.end_list()
        rows = [list(_children(row, f"{W}tc")) for row in _children(table, f"{W}tr")]
        if len(rows) == 1 and len(rows[0]) == 1 and depth < _MAX_DEPTH:
            self.blocks(rows[0][0], depth + 1)  # a frame around text, no table
            self.end_list()
            return
        texts = [[_cell(cell) for cell in row] for row in rows]
        self._assembly.add("table", table_text(row for row in texts if any(row)))


def _children(parent: etree._Element, tag: str) -> Iterator[etree._Element]:
    """Rows or cells, also inside content controls and revision marks."""
    for child in parent:
        if child.tag == tag:
            yield child
        elif child.tag in (f"{W}sdt", f"{W}sdtContent", f"{W}customXml", f"{W}ins"):
            yield from _children(child, tag)


def _cell(cell: etree._Element) -> str:
    return " ".join(filter(None, (one_line("".join(_pieces(paragraph))) for paragraph in cell.iter(f"{W}p"))))


def _pieces(paragraph: etree._Element) -> Iterator[str]:
    """The visible text of a paragraph, without that of its text boxes; iterative, for any depth."""
    walk = etree.iterwalk(paragraph, events=("start",))
    for _, node in walk:
        if node.tag in (f"{W}t", _M_TEXT):
            yield node.text or ""
        elif node.tag in _BREAKS:
            yield _BREAKS[node.tag]
        elif node.tag in _APART:
            walk.skip_subtree()


def _text_boxes(paragraph: etree._Element) -> Iterator[etree._Element]:
    """Text boxes anchored in a paragraph, once each (the compatibility fallback repeats them)."""
    walk = etree.iterwalk(paragraph, events=("start",))
    for _, node in walk:
        if node.tag == f"{W}txbxContent":
            yield node
            walk.skip_subtree()
        elif node.tag in (_MC_FALLBACK, f"{W}del", f"{W}moveFrom"):
            walk.skip_subtree()


def _styles(root: etree._Element) -> dict[str, _Style]:
    """By style id; "" is the default paragraph style. A style takes from its base what it does not say itself."""
    elements = {style.get(f"{W}styleId", ""): style for style in root.iter(f"{W}style")}
    found = {}
    for name, element in elements.items():
        found[name] = _resolved(element, elements)
        if element.get(f"{W}type") == "paragraph" and element.get(f"{W}default") in ("1", "true"):
            found[""] = found[name]
    return found


def _resolved(element: etree._Element, elements: dict[str, etree._Element]) -> _Style:
    level: int | None = None
    number_id: str | None = None
    number_level = 0
    base: etree._Element | None = element
    for _ in range(_MAX_BASES):
        if base is None:
            break
        properties = base.find(f"{W}pPr")
        name = (_value(base, "name") or "").lower()
        if level is None and name in ("title", "titel"):
            level = 1
        if level is None and name.startswith("heading ") and name[8:].isdecimal():
            level = min(int(name[8:]), 6)
        if properties is not None:
            level = _outline_level(properties) if level is None else level
            if number_id is None:
                number_id, number_level = _number_of(properties)
        base = elements.get(_value(base, "basedOn") or "")
    return _Style(level or 0, None if number_id == "0" else number_id, number_level)


def _outline_level(properties: etree._Element) -> int | None:
    """Heading level from the outline level (0 to 8 are headings, 9 is body text); None when not given."""
    value = _value(properties, "outlineLvl")
    if value is None or not value.isdecimal():
        return None
    return min(int(value) + 1, 6) if int(value) < 9 else 0


def _number_of(properties: etree._Element) -> tuple[str | None, int]:
    numbering = properties.find(f"{W}numPr")
    if numbering is None:
        return None, 0
    level = _value(numbering, "ilvl") or "0"
    return _value(numbering, "numId"), int(level) if level.isdecimal() else 0


def _value(parent: etree._Element, name: str) -> str | None:
    child = parent.find(f"{W}{name}")
    return None if child is None else child.get(f"{W}val")


def _numbering_root(document: Any) -> etree._Element | None:
    for relation in document.part.rels.values():
        if relation.reltype.endswith("/numbering") and not relation.is_external:
            return relation.target_part.element
    return None


def _notes(document: Any, assembly: Assembly) -> Iterator[etree._Element]:
    """Footnotes and endnotes; the separators among them have a type."""
    for relation in document.part.rels.values():
        if relation.is_external or not relation.reltype.endswith(tuple(f"/{name}" for name in _NOTES)):
            continue
        try:
            root = etree.fromstring(relation.target_part.blob, etree.XMLParser(resolve_entities=False, no_network=True))
        except DAMAGE:
            assembly.warn("parts-unreadable")
            continue
        for note in root:
            if note.tag in (f"{W}footnote", f"{W}endnote") and note.get(f"{W}type", "normal") == "normal":
                yield note
