"""Text recognition for scanned pages, by tesseract where it is installed: an optional extra, never required.

A program of its own: its memory and processor time fall under the limits of the child process that starts it, and what
it says is checked like any stranger's word.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from functions.ingest.parsing.assembly import clean

if TYPE_CHECKING:
    import pypdfium2 as pdfium

    from functions.ingest.parsing.layout import Line

DPI = 300
"""What tesseract is trained for ("Improving the quality of the output", tesseract's documentation)."""
_MOST_PIXELS = 24_000_000
"""An A3 page at 300 dpi has 17 million; a larger page is read more coarsely."""
_LEAST_CONFIDENCE = 30.0
"""Percent. Below it are specks and ornaments that were taken for letters."""
PAGE_SECONDS = 60.0
"""Longest time for one page: a dense one takes some seconds."""
_MOST_OUTPUT = 20_000_000
_COLUMNS = 12


@dataclass(frozen=True, slots=True)
class Recogniser:
    """The program, its languages ("deu+eng"), and until when (time.monotonic) it may work."""

    program: str
    languages: str
    until: float = float("inf")


@lru_cache(maxsize=8)
def installed(wanted: str) -> Recogniser | None:
    """The tesseract of this machine with those of the wanted languages ("deu+eng") it has; None without any."""
    program = shutil.which("tesseract")
    if program is None:
        return None
    try:
        listed = subprocess.run([program, "--list-langs"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    there = set(listed.stdout.split("\n")[1:])
    languages = [language for language in wanted.split("+") if language in there]
    return Recogniser(program, "+".join(languages)) if languages else None


def recognise(page: pdfium.PdfPage, recogniser: Recogniser) -> list[Line] | None:
    """The printed lines of a page in reading order; None when there was no time for it or the program failed."""
    left = recogniser.until - time.monotonic()
    if left <= 1:
        return None
    width, height = page.get_size()
    scale = min(DPI / 72, (_MOST_PIXELS / max(1.0, width * height)) ** 0.5)
    command = [recogniser.program, "stdin", "stdout", "-l", recogniser.languages, "--dpi", str(DPI), "tsv"]
    environment = {"OMP_THREAD_LIMIT": "1", "LC_ALL": "C.UTF-8", "PATH": os.defpath}
    try:
        done = subprocess.run(
            command,
            input=_picture(page, scale),
            capture_output=True,
            timeout=min(left, PAGE_SECONDS),
            check=True,
            env=environment,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return _lines(done.stdout[:_MOST_OUTPUT].decode("utf-8", "replace"), height, scale)


def _picture(page: pdfium.PdfPage, scale: float) -> bytes:
    """The page as a grey picture in PGM, the plainest format there is."""
    bitmap = page.render(scale=scale, grayscale=True)
    try:
        rows = memoryview(bitmap.buffer).cast("B")
        width, height, stride = bitmap.width, bitmap.height, bitmap.stride
        pixels = b"".join(bytes(rows[row * stride : row * stride + width]) for row in range(height))
    finally:
        bitmap.close()
    return b"P5 %d %d 255\n%s" % (width, height, pixels)


def _lines(table: str, height: float, scale: float) -> list[Line]:
    """Lines of tesseract's TSV: a row a word, with block, paragraph and line numbers and a box in pixels."""
    found: list[Line] = []
    words: list[tuple[str, float, float, float, float]] = []
    place: Sequence[str] = ()
    for row in table.split("\n")[1:]:
        fields = row.split("\t")
        word = _word(fields, height, scale)
        if word is None:
            continue
        if words and fields[1:5] != place:
            found.append(_joined(words))
            words = []
        place = fields[1:5]
        words.append(word)
    return [*found, _joined(words)] if words else found


def _word(fields: list[str], height: float, scale: float) -> tuple[str, float, float, float, float] | None:
    """Text and box (points, origin at the lower left) of a row that is a credible word."""
    if len(fields) != _COLUMNS or fields[0] != "5":
        return None
    try:
        left, top, width, tall = (int(field) / scale for field in fields[6:10])
        confidence = float(fields[10])
    except ValueError:
        return None
    text = clean(fields[11]).strip()
    if not text or confidence < _LEAST_CONFIDENCE:
        return None
    return text, left, height - top - tall, left + width, height - top


def _joined(words: Sequence[tuple[str, float, float, float, float]]) -> Line:
    return (
        " ".join(word[0] for word in words),
        min(word[1] for word in words),
        min(word[2] for word in words),
        max(word[3] for word in words),
        max(word[4] for word in words),
        False,
    )
