"""pdfium's C functions as plain calls: addresses are integers, room for answers is an address too.

pypdfium2 declares every handle and every place for an answer as a pointer type of its own; converting them costs as
much as the call itself, a hundred times a page. Signatures are those of pypdfium2's bindings with every pointer taken
as an address, so that a wrong count of arguments still raises. A null pointer comes back as None.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, NewType

from pypdfium2 import raw

Document = NewType("Document", int)
"""Address of an open document (FPDF_DOCUMENT); Page, TextPage and PageObject alike."""
Page = NewType("Page", int)
TextPage = NewType("TextPage", int)
PageObject = NewType("PageObject", int)


def _plain(function: Any, *, brief: bool = True) -> Callable[..., Any]:
    """`function` with pointers as addresses; a `brief` one keeps the interpreter's lock, which costs more to give back.

    What reads or parses a file is not brief: other threads run meanwhile.
    """
    kinds = [_address(kind) for kind in (function.restype, *function.argtypes)]
    made = (ctypes.PYFUNCTYPE if brief else ctypes.CFUNCTYPE)(*kinds)
    return made(ctypes.cast(function, ctypes.c_void_p).value or 0)


def _address(kind: Any) -> Any:
    return ctypes.c_void_p if hasattr(kind, "contents") else kind  # only pointer types have "contents"


load_document = _plain(raw.FPDF_LoadMemDocument64, brief=False)
close_document = _plain(raw.FPDF_CloseDocument, brief=False)
last_error = _plain(raw.FPDF_GetLastError)
count_pages = _plain(raw.FPDF_GetPageCount, brief=False)
meta_text = _plain(raw.FPDF_GetMetaText)
page_label = _plain(raw.FPDF_GetPageLabel)
first_bookmark = _plain(raw.FPDFBookmark_GetFirstChild)
next_bookmark = _plain(raw.FPDFBookmark_GetNextSibling)
bookmark_title = _plain(raw.FPDFBookmark_GetTitle)
bookmark_destination = _plain(raw.FPDFBookmark_GetDest)
destination_page = _plain(raw.FPDFDest_GetDestPageIndex)

load_page = _plain(raw.FPDF_LoadPage, brief=False)
close_page = _plain(raw.FPDF_ClosePage, brief=False)
page_width = _plain(raw.FPDF_GetPageWidthF)
page_height = _plain(raw.FPDF_GetPageHeightF)

load_text = _plain(raw.FPDFText_LoadPage, brief=False)
close_text = _plain(raw.FPDFText_ClosePage, brief=False)
count_characters = _plain(raw.FPDFText_CountChars)
get_text = _plain(raw.FPDFText_GetText)
character_of_text = _plain(raw.FPDFText_GetCharIndexFromTextIndex)
loose_box = _plain(raw.FPDFText_GetLooseCharBox)
"""(text page, character, address of an FS_RECTF: left, top, right, bottom as floats)."""

count_objects = _plain(raw.FPDFPage_CountObjects)
get_object = _plain(raw.FPDFPage_GetObject)
object_kind = _plain(raw.FPDFPageObj_GetType)
object_bounds = _plain(raw.FPDFPageObj_GetBounds)
"""(object, addresses of left, bottom, right, top)."""
object_matrix = _plain(raw.FPDFPageObj_GetMatrix)
count_segments = _plain(raw.FPDFPath_CountSegments)
get_segment = _plain(raw.FPDFPath_GetPathSegment)
segment_point = _plain(raw.FPDFPathSegment_GetPoint)
segment_kind = _plain(raw.FPDFPathSegment_GetType)
segment_closes = _plain(raw.FPDFPathSegment_GetClose)


def boxes(page: TextPage, firsts: Sequence[int], lasts: Sequence[int]) -> list[tuple[float, float, float, float]]:
    """x0, y0, x1, y1 in points of what reaches from each of `firsts` to the one of `lasts` beside it: characters of a
    page, as pdfium counts them, which stand in one line.
    """
    room = array("f", bytes(32 * len(firsts)))  # two FS_RECTF each, read back all at once
    at, _ = room.buffer_info()
    for first, last in zip(firsts, lasts, strict=True):
        loose_box(page, first, at)
        loose_box(page, last, at + 16)
        at += 32
    numbers = iter(room.tolist())
    return [  # compared in place: calls to min() and max() would cost a tenth of the time
        (
            x0 if x0 < left else left,
            y0 if y0 < bottom else bottom,
            x1 if x1 > right else right,
            y1 if y1 > top else top,
        )
        for x0, y1, x1, y0, left, top, right, bottom in zip(*repeat(numbers, 8), strict=True)
    ]
