"""How fast documents become text, against the libraries below: `python -m benchmarks.parsing`.

Every pair is measured in turns in one run and the fastest turn of each counts, so that a busy machine disturbs both
alike. Times are processor time; the sandbox, which waits for another process, is wall time.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pypdfium2 as pdfium

from functions.ingest.parsing import parse
from functions.ingest.parsing.sandbox import close_children, parse_in_child
from shared.errors import PermanentError
from tests.unit.parsing_material import make_pdf

SHARED = Path(os.environ.get("NOESIS_SHARED") or Path(__file__).parents[1].parent / "shared")
TURNS = 7


def raw_text(data: bytes) -> tuple[int, int]:
    """Pages and characters as pypdfium2 gives them without looking: what `parse` is measured against."""
    document = pdfium.PdfDocument(data)
    length = 0
    for index in range(len(document)):
        page = document[index]
        textpage = page.get_textpage()
        length += len(textpage.get_text_range())
        textpage.close()
        page.close()
    pages = len(document)
    document.close()
    return pages, length


def fastest(*candidates: Callable[[], object]) -> list[float]:
    """The fastest of `TURNS` alternating turns of each, in seconds of processor time."""
    best = [float("inf")] * len(candidates)
    for _ in range(TURNS):
        for index, candidate in enumerate(candidates):
            begun = time.process_time()
            candidate()
            best[index] = min(best[index], time.process_time() - begun)
    return best


def printed_book(pages: int = 100) -> bytes:
    """Dense pages with headings and an outline, like a manual."""
    line = "Ganz gewöhnlicher Text, wie er in einem Handbuch steht, Zeile um Zeile, ohne Bilder"
    body = [(72.0, 760.0 - 14 * row, 10.0, f"{line} {row}.") for row in range(50)]
    outline = [(page, f"{page + 1} Kapitel") for page in range(0, pages, 5)]
    return make_pdf([[(72, 790, 18, f"{page + 1} Kapitel"), *body] for page in range(pages)], outline=outline)


def pdf(name: str, files: list[bytes]) -> None:
    """Pages per second beside the bare library, and how much of the text arrives."""
    pages = sum(raw_text(data)[0] for data in files)
    bare, ours = fastest(lambda: [raw_text(data) for data in files], lambda: [parse(data) for data in files])
    characters = sum(raw_text(data)[1] for data in files)
    kept = sum(len(parse(data).text) for data in files)
    print(
        f"{name:<28} {pages:>5} pages  raw {pages / bare:7.0f}/s  ours {pages / ours:7.0f}/s  "
        f"ratio {bare / ours:4.2f}  text {kept / characters:.3f}"
    )


def with_text(files: list[bytes]) -> list[bytes]:
    """Those that become text: the others end before there is anything to compare."""
    kept = []
    for data in files:
        try:
            parse(data)
        except PermanentError:
            continue
        kept.append(data)
    return kept


def formats(folder: Path) -> None:
    """Megabytes per second of the text formats."""
    laws = [path.read_bytes() for path in sorted((folder / "laws").glob("*.md"))[:100]]
    size = sum(map(len, laws))
    (seconds,) = fastest(lambda: [parse(data, name="law.md") for data in laws])
    print(f"{'Markdown (100 laws)':<28} {size / 1e6 / seconds:6.1f} MB/s")
    page = b"<html><body>" + b"".join(b"<h2>T</h2><p>" + law[:2000].replace(b"<", b"") + b"</p>" for law in laws)
    (seconds,) = fastest(lambda: parse(page))
    print(f"{'HTML':<28} {len(page) / 1e6 / seconds:6.1f} MB/s")
    text = b"\n\n".join(laws)
    (seconds,) = fastest(lambda: parse(text, name="a.txt"))
    print(f"{'plain text':<28} {len(text) / 1e6 / seconds:6.1f} MB/s")


def sandbox(book: bytes) -> None:
    """What the child process costs: once at its start, then for each document."""
    note = b"# A heading\n\nand a paragraph"
    close_children()
    begun = time.perf_counter()
    parse_in_child(note)
    first = time.perf_counter() - begun
    for name, data in (("a note", note), ("the book", book)):
        inside, outside = [], []
        for _ in range(10):
            begun = time.perf_counter()
            parse(data)
            middle = time.perf_counter()
            parse_in_child(data)
            inside.append(middle - begun)
            outside.append(time.perf_counter() - middle)
        here, there = statistics.median(inside), statistics.median(outside)
        print(f"sandbox, {name:<19} {here * 1e3:6.1f} ms here  {there * 1e3:6.1f} ms in a child")
    print(f"sandbox, first document      {first * 1e3:6.1f} ms")
    close_children()


def main() -> int:
    book = printed_book()
    pdf("PDF: a printed book", [book])
    folder = SHARED / "data"
    if folder.is_dir():
        files = [path.read_bytes() for path in sorted((folder / "files" / "pdf").glob("*.pdf"))]
        pdf("PDF: pdf.js test files", with_text(files))
        formats(folder)
    else:
        print("skipped: ../shared/data is absent")
    sandbox(book)
    return 0


if __name__ == "__main__":
    sys.exit(main())
