"""Scanned pages: what tesseract reads becomes lines with places; without it, or without time, the reason is clear."""

from __future__ import annotations

import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pypdfium2 as pdfium
import pytest

from functions.ingest.parsing import ocr, parse
from functions.ingest.parsing.ocr import Recogniser, installed
from functions.ingest.parsing.sandbox import close_children, parse_in_child
from shared.errors import PermanentError
from tests.unit.parsing_material import make_pdf, pdf_of, stream
from tests.unit.test_parsing_sandbox import running

Program = Callable[[str], Path]
HEAD = "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext"
SCAN = [
    (72.0, 700.0, 24.0, "Die Bremsen werden"),
    (72.0, 660.0, 24.0, "im Mai geprüft"),
    (72.0, 500.0, 24.0, "Nordhafen"),
]


def scanned(pages: int = 1) -> bytes:
    """A PDF whose pages are pictures of text."""
    document = pdfium.PdfDocument(make_pdf([SCAN]))
    bitmap = document[0].render(scale=150 / 72, grayscale=True)
    width, height, stride = bitmap.width, bitmap.height, bitmap.stride
    rows = bytes(bitmap.buffer)
    pixels = b"".join(rows[n * stride : n * stride + width] for n in range(height))
    kids = " ".join(f"{10 + 2 * n} 0 R" for n in range(pages))
    objects = {
        1: b"<</Type/Catalog/Pages 2 0 R>>",
        2: f"<</Type/Pages/Count {pages}/Kids[{kids}]>>".encode(),
        3: stream(
            pixels,
            f"/Type/XObject/Subtype/Image/Width {width}/Height {height}/ColorSpace/DeviceGray/BitsPerComponent 8",
        ),
    }
    for n in range(pages):
        objects[10 + 2 * n] = (
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<</XObject<</I 3 0 R>>>>/Contents %d 0 R>>"
            % (11 + 2 * n)
        )
        objects[11 + 2 * n] = stream(b"595 0 0 842 0 0 cm /I Do")
    return pdf_of(objects)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """A stand-in that speaks tesseract's TSV: what it answers is the code a test writes into it."""

    def write(code: str) -> Path:
        path = tmp_path / "tesseract"
        path.write_text(f"#!{sys.executable}\nimport sys, time\npicture = sys.stdin.buffer.read()\n{code}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return write


def rows(*words: tuple[int, int, int, int, int, int, float, str]) -> str:
    """Code that prints words: (block, line, left, top, width, height, confidence, text)."""
    lines = [HEAD, "1\t1\t0\t0\t0\t0\t0\t0\t2480\t3508\t-1\t"]
    lines += [f"5\t1\t{b}\t1\t{n}\t1\t{x}\t{y}\t{w}\t{h}\t{c}\t{t}" for b, n, x, y, w, h, c, t in words]
    return f"print({chr(10).join(lines)!r})"


def test_recognised_words_become_lines_with_their_places(program: Program) -> None:
    """Words of a line are joined, boxes turn from pixels into points, doubtful words are left out."""
    path = program(
        rows(
            (1, 1, 300, 500, 200, 50, 96.0, "Die"),
            (1, 1, 520, 500, 300, 50, 91.0, "Bremsen"),
            (1, 1, 900, 500, 300, 50, 12.0, "§§§"),
            (2, 1, 300, 900, 400, 50, 90.0, "Nordhafen"),
        )
    )
    document = parse(scanned(), recogniser=Recogniser(str(path), "deu+eng"))
    assert document.text == "Die Bremsen\n\nNordhafen"
    assert document.warnings == ("pages-recognised",)
    (box,) = document.blocks[0].boxes
    assert box[:3] == (0, 11, 1)
    assert [round(value) for value in box[3:]] == [72, 710, 197, 722]
    assert document.pages[0].number == 1


def test_the_program_gets_the_picture_and_the_languages(program: Program, tmp_path: Path) -> None:
    """A grey picture at 300 dpi on standard input, and nothing of our environment."""
    path = program(
        f"import os\nopen({str(tmp_path / 'seen')!r}, 'w').write(repr((sys.argv[1:], picture[:20], len(picture), "
        "sorted(os.environ))))\n" + rows((1, 1, 1, 1, 9, 9, 99.0, "x"))
    )
    parse(scanned(), recogniser=Recogniser(str(path), "deu+eng"))
    arguments, head, length, names = eval((tmp_path / "seen").read_text())
    assert arguments == ["stdin", "stdout", "-l", "deu+eng", "--dpi", "300", "tsv"]
    assert head.startswith(b"P5 2480 3509 255\n")
    assert length == len(b"P5 2480 3509 255\n") + 2480 * 3509
    assert set(names) <= {"OMP_THREAD_LIMIT", "LC_ALL", "PATH", "LC_CTYPE"}


@pytest.mark.parametrize(
    "code",
    ["sys.exit(1)", "print('no table at all')", "sys.stdout.buffer.write(b'\\xff' * 100)", "time.sleep(30)",
     f"print({HEAD!r}); print('5\\t1\\t1\\t1\\t1\\t1\\tx\\ty\\tz\\t0\\tNaN\\tword')"],
    ids=["fails", "nonsense", "no text", "hangs", "no numbers"],
)  # fmt: skip
def test_a_program_that_fails_leaves_the_clear_reason(program: Program, code: str) -> None:
    """Whatever it does, the document ends as one without text, in time."""
    recogniser = Recogniser(str(program(code)), "deu", time.monotonic() + 3)
    begun = time.monotonic()
    with pytest.raises(PermanentError) as refused:
        parse(scanned(), recogniser=recogniser)
    assert refused.value.reason == "no-text"
    assert time.monotonic() - begun < 10


def test_without_recognition_a_scan_says_so() -> None:
    """Off, or not installed: the reason names the next action."""
    with pytest.raises(PermanentError) as refused:
        parse(scanned())
    assert refused.value.reason == "no-text"
    assert "OCR" in refused.value.next_action


def test_what_there_was_no_time_for_is_noted(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages after the deadline are left out with a warning; the others stay."""
    pages = tmp_path / "pages"
    pages.touch()
    path = program(f"open({str(pages)!r}, 'a').write('x')\n" + rows((1, 1, 300, 500, 200, 50, 96.0, "Seite")))
    # A page takes twelve seconds on this clock.
    monkeypatch.setattr(ocr, "time", SimpleNamespace(monotonic=lambda: 12.0 * pages.stat().st_size))
    document = parse(scanned(4), recogniser=Recogniser(str(path), "deu", 35.0))
    assert set(document.warnings) == {"pages-recognised", "pages-without-text"}
    assert document.text.count("Seite") == 3


def test_pages_with_a_text_layer_are_not_recognised(program: Program) -> None:
    """The text of the file itself is better than any recognition of it."""
    path = program(rows((1, 1, 1, 1, 9, 9, 99.0, "falsch")))
    document = parse(make_pdf([SCAN]), recogniser=Recogniser(str(path), "deu"))
    assert "falsch" not in document.text
    assert document.warnings == ()


def test_a_hanging_recognition_ends_with_its_child(program: Program, tmp_path: Path) -> None:
    """In the sandbox too; afterwards no process of it is left."""
    pid = tmp_path / "pid"
    pid.touch()
    path = program(f"import os\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")
    for seconds in (4, 12, 40):  # in which also a busy machine has come as far as the recognition
        with pytest.raises(PermanentError) as refused:
            parse_in_child(scanned(), seconds=seconds, recogniser=Recogniser(str(path), "deu"))
        assert refused.value.reason in ("no-text", "parse-timeout")
        if pid.read_text():
            break
    close_children()
    until = time.monotonic() + 5
    while running(int(pid.read_text())):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_tesseract_reads_a_real_scan() -> None:
    """The real program, where it is installed: German words with their places, through the sandbox."""
    recogniser = installed("deu+eng")
    if recogniser is None:
        pytest.skip("tesseract is not installed")
    document = parse_in_child(scanned(), recogniser=recogniser)
    close_children()
    assert "Die Bremsen werden" in document.text
    assert "Nordhafen" in document.text
    box = next(b for b in document.blocks if "Nordhafen" in document.text[b.start : b.end]).boxes[0]
    assert 65 < box[3] < 80
    assert 490 < box[4] < 505


def test_only_languages_that_are_there_are_asked_for(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A language whose data is missing would fail every page; without any there is no recogniser."""
    path = tmp_path / "tesseract"
    path.write_text("#!/bin/sh\necho 'List of available languages (2):'\necho eng\necho osd\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    installed.cache_clear()
    try:
        found = installed("deu+eng")
        assert found is not None
        assert found.languages == "eng"
        assert installed("deu") is None
    finally:
        installed.cache_clear()
