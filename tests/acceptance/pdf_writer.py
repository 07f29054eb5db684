"""A small PDF with real text, made with pypdfium2, for tests that must not depend on files from elsewhere."""

from __future__ import annotations

import ctypes
import io

import pypdfium2 as pdfium
import pypdfium2.raw as raw


def make_pdf(*pages: list[str]) -> bytes:
    """One A4 page for each list of lines, Helvetica 11 points."""
    document = pdfium.PdfDocument.new()
    font = raw.FPDFText_LoadStandardFont(document.raw, b"Helvetica")
    for lines in pages:
        page = document.new_page(595, 842)
        for number, line in enumerate(lines):
            piece = raw.FPDFPageObj_CreateTextObj(document.raw, font, 11)
            encoded = ctypes.create_string_buffer((line + "\0").encode("utf-16-le"))
            raw.FPDFText_SetText(piece, ctypes.cast(encoded, ctypes.POINTER(ctypes.c_ushort)))
            raw.FPDFPageObj_Transform(piece, 1, 0, 0, 1, 60, 780 - 16 * number)
            raw.FPDFPage_InsertObject(page.raw, piece)
        raw.FPDFPage_GenerateContent(page.raw)
        page.close()
    buffer = io.BytesIO()
    document.save(buffer)
    document.close()
    return buffer.getvalue()
