"""PPTX by python-pptx: slide after slide with title, text, tables, diagrams and notes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pptx
from lxml import etree
from pptx.enum.shapes import PP_PLACEHOLDER

from functions.ingest.parsing.assembly import Assembly, one_line, table_text
from functions.ingest.parsing.document import Page, ParsedDocument
from functions.ingest.parsing.ooxml import DAMAGE, core_properties, damage_is_corrupt, opened
from functions.ingest.parsing.reasons import failure
from functions.ingest.parsing.sniffing import PPTX

MAX_SLIDES = 5_000
_MAX_GROUPS = 20
_EMU_PER_POINT = 12_700
_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_DIAGRAM = "{http://schemas.openxmlformats.org/drawingml/2006/diagram}relIds"
_R_DATA = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}dm"
_FURNITURE = (PP_PLACEHOLDER.DATE, PP_PLACEHOLDER.FOOTER, PP_PLACEHOLDER.SLIDE_NUMBER, PP_PLACEHOLDER.HEADER)


def parse_pptx(data: bytes) -> ParsedDocument:
    """The document; `pages` are its slides. A slide that cannot be read is left out with a warning."""
    presentation = opened(pptx.Presentation, data, "PPTX")
    assembly = Assembly()
    metadata = core_properties(presentation)
    pages = []
    with damage_is_corrupt("PPTX"):
        slides = presentation.slides
        if len(slides) > MAX_SLIDES:
            raise failure("too-many-pages", f"{MAX_SLIDES:,}")
        width = (presentation.slide_width or 0) / _EMU_PER_POINT
        height = (presentation.slide_height or 0) / _EMU_PER_POINT
        for number in range(1, len(slides) + 1):
            start = assembly.next_start
            try:
                _slide(slides[number - 1], number, assembly)
            except DAMAGE:
                assembly.warn("pages-unreadable")
            end = assembly.position
            pages.append(Page(number, min(start, end), end, width, height))
    return assembly.finish(PPTX, title=metadata.get("title"), pages=pages, metadata=metadata)


def _slide(slide: Any, number: int, assembly: Assembly) -> None:
    title = slide.shapes.title
    if title is not None and title.has_text_frame:
        assembly.add("heading", one_line(title.text_frame.text.replace("\v", " ")), level=1, slide=number)
    for shape in _shapes(slide.shapes, 0):
        if title is None or shape.shape_id != title.shape_id:
            _shape(shape, number, assembly)
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        assembly.add("paragraph", slide.notes_slide.notes_text_frame.text.replace("\v", "\n"), slide=number)


def _shapes(shapes: Iterable[Any], depth: int) -> Iterator[Any]:
    """All shapes, those of groups included."""
    for shape in shapes:
        inner = getattr(shape, "shapes", None)
        if inner is not None and depth < _MAX_GROUPS:
            yield from _shapes(inner, depth + 1)
        else:
            yield shape


def _shape(shape: Any, number: int, assembly: Assembly) -> None:
    if shape.is_placeholder and shape.placeholder_format.type in _FURNITURE:
        return
    if shape.has_text_frame:
        _text(shape, number, assembly)
    elif getattr(shape, "has_table", False):
        rows = [[cell.text for cell in row.cells] for row in shape.table.rows]
        assembly.add("table", table_text(row for row in rows if any(map(str.strip, row))), slide=number)
    elif getattr(shape, "has_chart", False):
        _chart(shape.chart, number, assembly)
    else:
        _diagram(shape, number, assembly)


def _text(shape: Any, number: int, assembly: Assembly) -> None:
    """Several paragraphs in one frame are what people see as a list."""
    lines = [
        (paragraph.level or 0, one_line(paragraph.text.replace("\v", " "))) for paragraph in shape.text_frame.paragraphs
    ]
    lines = [(level, text) for level, text in lines if text]
    if len(lines) == 1:
        assembly.add("paragraph", lines[0][1], slide=number)
    else:
        assembly.add("list", "\n".join(f"{'  ' * level}- {text}" for level, text in lines), slide=number)


def _chart(chart: Any, number: int, assembly: Assembly) -> None:
    """A chart as the table it was made from, below its title."""
    if chart.has_title and chart.chart_title.has_text_frame:
        assembly.add("paragraph", chart.chart_title.text_frame.text, slide=number)
    for plot in chart.plots:
        series = list(plot.series)
        rows = [["", *(one.name for one in series)]]
        values = [list(one.values) for one in series]
        for index, category in enumerate(plot.categories):
            rows.append([str(category), *(_figure(column, index) for column in values)])
        assembly.add("table", table_text(rows), slide=number)


def _figure(column: list[Any], index: int) -> str:
    value = column[index] if index < len(column) else None
    return "" if value is None else f"{value:.15g}"


def _diagram(shape: Any, number: int, assembly: Assembly) -> None:
    """The texts of a SmartArt diagram, which live in a part of their own."""
    for reference in shape.element.iter(_DIAGRAM):
        part = shape.part.related_part(reference.get(_R_DATA))
        root = etree.fromstring(part.blob, etree.XMLParser(resolve_entities=False, no_network=True))
        texts = (one_line("".join(node.text or "" for node in block.iter(f"{_A}t"))) for block in root.iter(f"{_A}p"))
        assembly.add("list", "\n".join(f"- {text}" for text in texts if text), slide=number)
