"""Why a document cannot become text: every code that parsing raises, what it means, what the sender can do.

The codes are part of the wire contract (`document-failed`), so they are never renamed. Messages never carry content.
"""

from __future__ import annotations

from typing import NamedTuple

from shared.errors import PermanentError


class Reason(NamedTuple):
    """One sentence that says what is wrong, one that says what the sender can do."""

    message: str
    next_action: str


REASONS: dict[str, Reason] = {
    "unsupported-type": Reason(
        "This kind of file ({kind}) is not supported.",
        "Submit it as PDF, DOCX, PPTX, XLSX, HTML, Markdown, plain text, CSV or EML.",
    ),
    "empty-document": Reason("The document holds no text at all.", "Check the file and submit one with content."),
    "no-text": Reason(
        "The document has pages but no text layer; it is probably scanned or drawn.",
        "Run text recognition (OCR) over it and submit the result.",
    ),
    "encrypted": Reason("The document is protected by a password.", "Remove the protection and submit it again."),
    "corrupt": Reason(
        "The file is damaged and cannot be read as {kind}.",
        "Open it in the program it was made with, save it anew and submit that.",
    ),
    "macros": Reason("The document contains macros.", "Save it without macros (DOCX, PPTX, XLSX) and submit it again."),
    "too-large": Reason("The document is too large: {kind}.", "Split it into smaller documents and submit those."),
    "too-many-pages": Reason("The document has more pages than the limit ({kind}).", "Split it and submit the parts."),
    "too-deep": Reason(
        "The document is nested more deeply than the limit ({kind}).", "Simplify it and submit it again."
    ),
    "archive-bomb": Reason(
        "The file unpacks to far more than a document may hold ({kind}).",
        "Remove what blows it up (embedded media, empty styled rows) and submit it again.",
    ),
    "unsafe-xml": Reason(
        "The file declares XML entities, which documents do not need and attacks do.",
        "Save it anew with an office program and submit that.",
    ),
    "parse-timeout": Reason(
        "Reading the document took longer than the limit ({kind}).", "Split or simplify it and submit it again."
    ),
    "parse-memory": Reason(
        "Reading the document took more memory than the limit ({kind}).", "Split or simplify it and submit it again."
    ),
    "parse-crash": Reason(
        "The reader stopped unexpectedly while working on this document.",
        "Save it anew with the program it was made with; if that does not help, report it to support.",
    ),
}

WARNINGS: dict[str, str] = {
    "pages-unreadable": "Some pages could not be read and were left out.",
    "pages-without-text": "Some pages have no text layer (scanned?) and were left out.",
    "pages-recognised": "Some pages were scanned; their text was recognised and may hold mistakes.",
    "hidden-sheets": "Hidden sheets were left out.",
    "cells-cut": "Rows or columns beyond the limit of a sheet were left out.",
    "undecodable-text": "Some characters could not be decoded and were replaced.",
    "parts-unreadable": "Some parts of the file could not be read and were left out.",
    "attachments-cut": "Attachments beyond the limit were left out.",
    "markup-damaged": "The markup is damaged; what could be read was kept.",
}


def failure(code: str, kind: str = "") -> PermanentError:
    """The error for `code`; `kind` fills the gap in its message (a file type or a limit, never content)."""
    reason = REASONS[code]
    return PermanentError(code, reason.message.format(kind=kind), reason.next_action)
