"""Documents that the parsing tests make themselves: ordinary ones, and what attackers and accidents make of them."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from email.message import EmailMessage

import docx
import openpyxl
import pptx

Page = Iterable[tuple[float, float, float, str]]


def make_pdf(pages: Iterable[Page], *, outline: Iterable[tuple[int, str]] = (), extra: str = "") -> bytes:
    """A PDF in Helvetica; a page is lines of (x, y, size, text), `outline` entries are (page from 0, title)."""
    contents = [
        "".join(f"BT /F1 {size} Tf {x} {y} Td ({_escaped(text)}) Tj ET\n" for x, y, size, text in page).encode("cp1252")
        for page in pages
    ]
    kids = " ".join(f"{10 + 2 * index} 0 R" for index in range(len(contents)))
    objects: dict[int, bytes] = {
        2: f"<</Type/Pages/Count {len(contents)}/Kids[{kids}]>>".encode(),
        3: b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
    }
    for index, content in enumerate(contents):
        number = 10 + 2 * index
        objects[number] = (
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<</Font<</F1 3 0 R>>>>"
            f"/Contents {number + 1} 0 R>>"
        ).encode()
        objects[number + 1] = stream(content)
    titles = list(outline)
    first = 10 + 2 * len(contents)
    for index, (page, title) in enumerate(titles):
        following = f"/Next {first + index + 1} 0 R" if index + 1 < len(titles) else ""
        entry = f"<</Title({_escaped(title)})/Parent 4 0 R/Dest[{10 + 2 * page} 0 R/Fit]{following}>>"
        objects[first + index] = entry.encode("cp1252")
    outlines = f"/Outlines 4 0 R{extra}" if titles else extra
    if titles:
        objects[4] = (
            f"<</Type/Outlines/Count {len(titles)}/First {first} 0 R/Last {first + len(titles) - 1} 0 R>>".encode()
        )
    objects[1] = f"<</Type/Catalog/Pages 2 0 R{outlines}>>".encode()
    return pdf_of(objects)


def pdf_of(objects: Mapping[int, bytes], trailer: str = "") -> bytes:
    """A PDF file of numbered objects; 1 is its catalogue."""
    file = io.BytesIO()
    file.write(b"%PDF-1.7\n")
    places = {}
    for number in sorted(objects):
        places[number] = file.tell()
        file.write(b"%d 0 obj\n%s\nendobj\n" % (number, objects[number]))
    start = file.tell()
    size = max(objects) + 1
    file.write(b"xref\n0 %d\n0000000000 65535 f \n" % size)
    for number in range(1, size):
        file.write(b"%010d 00000 n \n" % places[number] if number in places else b"0000000000 65535 f \n")
    file.write(b"trailer\n<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF" % (size, trailer.encode(), start))
    return file.getvalue()


def stream(content: bytes, head: str = "") -> bytes:
    return b"<</Length %d%s>>\nstream\n%s\nendstream" % (len(content), head.encode(), content)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def make_docx(build: Callable[[docx.document.Document], object]) -> bytes:
    document = docx.Document()
    build(document)
    return _saved(document.save)


def make_pptx(build: Callable[[pptx.presentation.Presentation], None]) -> bytes:
    presentation = pptx.Presentation()
    build(presentation)
    return _saved(presentation.save)


def make_xlsx(sheets: Mapping[str, Iterable[Iterable[object]]]) -> bytes:
    workbook = openpyxl.Workbook()
    workbook.remove(workbook.active)
    for name, rows in sheets.items():
        sheet = workbook.create_sheet(name)
        for row in rows:
            sheet.append(list(row))
    return _saved(workbook.save)


def _saved(save: Callable[[io.BytesIO], None]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def simple_docx(text: str = "A paragraph of ordinary words.") -> bytes:
    return make_docx(lambda document: document.add_paragraph(text))


def simple_pptx() -> bytes:
    def build(presentation: pptx.presentation.Presentation) -> None:
        slide = presentation.slides.add_slide(presentation.slide_layouts[1])
        slide.shapes.title.text = "First slide"
        slide.placeholders[1].text = "One point\nAnother point"
        slide.notes_slide.notes_text_frame.text = "What the speaker says"

    return make_pptx(build)


def simple_xlsx() -> bytes:
    return make_xlsx({"Figures": [["Item", "Price"], ["Screw", 1.5], ["Nut", 2]]})


def with_member(package: bytes, name: str, content: bytes | Callable[[bytes], bytes]) -> bytes:
    """The package with one member replaced, changed or added."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(package)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            if entry.filename != name:
                new.writestr(entry.filename, old.read(entry))
        before = old.read(name) if name in old.namelist() else b""
        new.writestr(name, content(before) if callable(content) else content)
    return file.getvalue()


def make_eml(text: str, *, attachments: Iterable[tuple[str, str, bytes]] = (), page: str = "") -> bytes:
    message = EmailMessage()
    message["From"] = "Ada Lovelace <ada@example.org>"
    message["To"] = "charles@example.org"
    message["Subject"] = "Über die Maschine"
    message["Date"] = "Mon, 02 Nov 2026 10:00:00 +0100"
    if text:
        message.set_content(text)
    if page:
        (message.add_alternative if text else message.set_content)(page, subtype="html")
    for name, kind, data in attachments:
        main, _, sub = kind.partition("/")
        message.add_attachment(data, maintype=main, subtype=sub, filename=name)
    return message.as_bytes()


def ole_file(stream_name: str) -> bytes:
    """The beginning of an OLE compound file that names one stream: what encrypted office files look like."""
    return b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(1016) + stream_name.encode("utf-16-le") + bytes(512)


_W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def laughing() -> str:
    """A document type whose entity l9 stands for a billion times "ha"."""
    entities = "".join(f'<!ENTITY l{level} "{f"&l{level - 1};" * 10}">' for level in range(1, 10))
    return f'<!DOCTYPE d [<!ENTITY l0 "ha">{entities}]>'


def word_document(inner: str, prologue: str = "") -> bytes:
    return f'<?xml version="1.0"?>{prologue}<w:document {_W}><w:body>{inner}</w:body></w:document>'.encode()


def word_with(inner: str, prologue: str = "") -> bytes:
    return with_member(simple_docx(), "word/document.xml", word_document(inner, prologue))


def lying_zip() -> bytes:
    """A member that claims to be ten bytes and unpacks to a megabyte."""
    package = bytearray(with_member(simple_docx(), "word/document.xml", word_document("<w:p/>") + b" " * 1_000_000))
    size = struct.pack("<I", len(word_document("<w:p/>")) + 1_000_000)
    while (at := package.find(size)) >= 0:
        package[at : at + 4] = struct.pack("<I", 10)
    return bytes(package)


def many_members() -> bytes:
    file = io.BytesIO(simple_docx())
    with zipfile.ZipFile(file, "a") as package:
        for number in range(10_001):
            package.writestr(f"word/media/{number}.bin", b"")
    return file.getvalue()


def sheet_with(rows: str, dimension: str = "A1") -> bytes:
    sheet = (
        '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">'
        f'<dimension ref="{dimension}"/><sheetData>{rows}</sheetData></worksheet>'
    )
    return with_member(simple_xlsx(), "xl/worksheets/sheet1.xml", sheet.encode())


def nested_mail(depth: int) -> bytes:
    opening = b"".join(
        b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (level, level) for level in range(depth)
    )
    return b"From: a@example.org\r\nTo: b@example.org\r\nMIME-Version: 1.0\r\n" + opening + b"\r\nthe end"


def flat_mail(parts: int) -> bytes:
    head = b"From: a@example.org\r\nTo: b@example.org\r\nMIME-Version: 1.0\r\n"
    head += b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n'
    return head + b"--b\r\n\r\nsome text\r\n" * parts + b"--b--\r\n"


def flate_pdf(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(b" " * 1_000_000) for _ in range(megabytes)) + packer.flush()
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<<>>/Contents 4 0 R>>"
    return pdf_of(
        {
            1: b"<</Type/Catalog/Pages 2 0 R>>",
            2: b"<</Type/Pages/Count 1/Kids[3 0 R]>>",
            3: page,
            4: stream(packed, "/Filter/FlateDecode"),
        }
    )


def encrypted_pdf() -> bytes:
    encrypt = b"<</Filter/Standard/V 1/R 2/P -4/O<" + b"41" * 32 + b">/U<" + b"42" * 32 + b">>>"
    objects = {1: b"<</Type/Catalog/Pages 2 0 R>>", 2: b"<</Type/Pages/Count 0/Kids[]>>", 3: encrypt}
    return pdf_of(objects, "/Encrypt 3 0 R/ID[<00><00>]")


def page_loop() -> bytes:
    return pdf_of(
        {
            1: b"<</Type/Catalog/Pages 2 0 R>>",
            2: b"<</Type/Pages/Count 5/Kids[3 0 R]/Parent 3 0 R>>",
            3: b"<</Type/Pages/Count 5/Kids[2 0 R 3 0 R]/Parent 2 0 R>>",
        }
    )


def form_loop() -> bytes:
    """A form that draws itself."""
    resources = b"/Resources<</XObject<</X 4 0 R>>>>"
    return pdf_of(
        {
            1: b"<</Type/Catalog/Pages 2 0 R>>",
            2: b"<</Type/Pages/Count 1/Kids[3 0 R]>>",
            3: b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 5 0 R" + resources + b">>",
            4: stream(b"/X Do /X Do", "/Type/XObject/Subtype/Form/BBox[0 0 9 9]" + resources.decode()),
            5: stream(b"/X Do"),
        }
    )


def outline_loop() -> bytes:
    data = make_pdf([[(72, 700, 12, "text")]], outline=[(0, "a"), (0, "b")])
    return data.replace(b"/Next 13 0 R", b"/Next 12 0 R")


def without_member(package: bytes, name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(package)) as old, zipfile.ZipFile(file, "w") as new:
        for entry in old.infolist():
            if entry.filename != name:
                new.writestr(entry.filename, old.read(entry))
    return file.getvalue()
