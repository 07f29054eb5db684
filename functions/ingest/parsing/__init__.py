"""Bytes in, text with positions out: one module a format, no I/O, no environment."""

from __future__ import annotations

from dataclasses import replace

from functions.ingest.parsing.document import Attachment, Block, Box, Page, ParsedDocument
from functions.ingest.parsing.language import language_of
from functions.ingest.parsing.ocr import Recogniser
from functions.ingest.parsing.reasons import failure
from functions.ingest.parsing.sniffing import CSV, DOCX, EML, HTML, MARKDOWN, PDF, PPTX, XLSX, Sniffed, sniff

__all__ = ["Attachment", "Block", "Box", "Page", "ParsedDocument", "parse"]


def parse(
    data: bytes, *, name: str = "", media_type: str | None = None, recogniser: Recogniser | None = None
) -> ParsedDocument:
    """The text of `data` with its structure and positions; the type is found by content.

    `name` and `media_type` only decide between kinds of text; scanned pages are read by the `recogniser`. Raises
    `PermanentError` with a code of `parsing.reasons`; whatever a hostile file may do to time and memory is for
    `parsing.sandbox`.
    """
    sniffed = sniff(data, name, media_type)
    try:
        parsed = _parse_as(sniffed, data, recogniser)
    except RecursionError as error:
        raise failure("too-deep", "parts inside each other") from error
    if not parsed.text and not parsed.children:
        raise failure("empty-document")
    if not sniffed.decoded:
        parsed = replace(parsed, warnings=(*parsed.warnings, "undecodable-text"))
    language = language_of(parsed.text, parsed.language)
    return parsed if language == parsed.language else replace(parsed, language=language)


def _parse_as(sniffed: Sniffed, data: bytes, recogniser: Recogniser | None) -> ParsedDocument:
    """Imports are late: a worker that only ever sees Markdown never loads pdfium or the office libraries."""
    match sniffed.media_type:
        case kind if kind == PDF:
            from functions.ingest.parsing.pdf import parse_pdf

            return parse_pdf(data, recogniser)
        case kind if kind == DOCX:
            from functions.ingest.parsing.docx import parse_docx

            return parse_docx(data)
        case kind if kind == PPTX:
            from functions.ingest.parsing.pptx import parse_pptx

            return parse_pptx(data)
        case kind if kind == XLSX:
            from functions.ingest.parsing.xlsx import parse_xlsx

            return parse_xlsx(data)
        case kind if kind == HTML:
            from functions.ingest.parsing.html import parse_html

            return parse_html(sniffed.text)
        case kind if kind == MARKDOWN:
            from functions.ingest.parsing.markdown import parse_markdown

            return parse_markdown(sniffed.text)
        case kind if kind == CSV:
            from functions.ingest.parsing.csv import parse_csv

            return parse_csv(sniffed.text)
        case kind if kind == EML:
            from functions.ingest.parsing.eml import parse_eml

            return parse_eml(data)
    from functions.ingest.parsing.text import parse_text

    return parse_text(sniffed.text)
