"""What attackers and accidents make of documents: name, how it is made, and the reason code it must end with."""

from __future__ import annotations

import os
from collections.abc import Callable

from tests.unit.parsing_material import (
    encrypted_pdf,
    flat_mail,
    flate_pdf,
    form_loop,
    laughing,
    lying_zip,
    many_members,
    nested_mail,
    ole_file,
    outline_loop,
    page_loop,
    pdf_of,
    sheet_with,
    simple_docx,
    simple_pptx,
    with_member,
    without_member,
    word_document,
    word_with,
)

READ = ""
"""The file is odd but readable: it must become text."""
ANY = "*"
"""Text or any reason of ours: which one is up to the library."""
_EMPTY_ZIP = b"PK\x05\x06" + bytes(18)
_DEEP_TABLE = "<w:tbl><w:tr><w:tc>", "</w:tc></w:tr></w:tbl>"
_TEXT = "<w:p><w:r><w:t>deep</w:t></w:r></w:p>"
_STYLE_LOOP = (
    '<w:style w:type="paragraph" w:default="1" w:styleId="a"><w:basedOn w:val="b"/></w:style>'
    '<w:style w:styleId="b"><w:basedOn w:val="a"/></w:style>'
)
_ALIASES = b"---\na: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + level, 98 + level, b",".join([b"*%c" % (97 + level)] * 9)) for level in range(9)
)
_MAIL = b"From: a@example.org\r\nTo: b@example.org\r\nMIME-Version: 1.0\r\n"


def _grouped(depth: int) -> bytes:
    groups = b"<p:grpSp>" * depth + b"</p:grpSp>" * depth
    return with_member(
        simple_pptx(), "ppt/slides/slide1.xml", lambda old: old.replace(b"</p:spTree>", groups + b"</p:spTree>")
    )


def _wide_rows() -> bytes:
    cells = '<c r="A{0}"><v>1</v></c><c r="XFD{0}"><v>2</v></c>'
    return sheet_with("".join(f'<row r="{row}">{cells.format(row)}</row>' for row in range(1, 40)))


ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a part that unpacks a thousandfold": (lambda: word_with(" " * 30_000_000), "archive-bomb"),
    "more than 10,000 members": (many_members, "archive-bomb"),
    "a member that lies about its size": (lying_zip, "corrupt"),
    "a zip in a zip": (lambda: with_member(_EMPTY_ZIP, "a.zip", simple_docx()), "unsupported-type"),
    "an empty zip": (lambda: _EMPTY_ZIP, "unsupported-type"),
    "billion laughs": (lambda: word_with("<w:p><w:r><w:t>&l9;</w:t></w:r></w:p>", laughing()), "unsafe-xml"),
    "quadratic blow-up": (
        lambda: word_with("&a;" * 20_000, f'<!DOCTYPE d [<!ENTITY a "{"x" * 20_000}">]>'),
        "unsafe-xml",
    ),
    "an external entity": (
        lambda: word_with("&x;", '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>'),
        "unsafe-xml",
    ),
    "entities behind a megabyte of comment": (
        lambda: word_with("<w:p/>", f"<!--{'x' * 1_048_570}--><!DOCTYPE d>"),
        "unsafe-xml",
    ),
    "entities in UTF-16": (
        lambda: with_member(
            simple_docx(), "word/document.xml", word_document("<w:p/>", "<!DOCTYPE d>").decode().encode("utf-16")
        ),
        "unsafe-xml",
    ),
    "entities in a part with another name": (
        lambda: with_member(simple_docx(), "word/theme/theme.dat", b" <!DOCTYPE d><d/>"),
        "unsafe-xml",
    ),
}
WORD: dict[str, tuple[Callable[[], bytes], str]] = {
    "20 tables inside each other": (lambda: word_with(_DEEP_TABLE[0] * 20 + _TEXT + _DEEP_TABLE[1] * 20), READ),
    "100 tables inside each other": (
        lambda: word_with(_DEEP_TABLE[0] * 100 + _TEXT + _DEEP_TABLE[1] * 100),
        "too-deep",
    ),
    "5,000 content controls inside each other": (
        lambda: word_with("<w:sdt><w:sdtContent>" * 5_000 + "</w:sdtContent></w:sdt>" * 5_000),
        "too-deep",
    ),
    "styles based on each other": (
        lambda: with_member(
            simple_docx(),
            "word/styles.xml",
            word_document(_STYLE_LOOP)
            .replace(b"w:document", b"w:styles")
            .replace(b"<w:body>", b"")
            .replace(b"</w:body>", b""),
        ),
        READ,
    ),
    "macros": (lambda: with_member(simple_docx(), "word/vbaProject.bin", b"\xd0\xcf\x11\xe0"), "macros"),
    "a password": (lambda: ole_file("EncryptedPackage"), "encrypted"),
    "the old format": (lambda: ole_file("WordDocument"), "unsupported-type"),
    "no main part": (lambda: without_member(simple_docx(), "word/document.xml"), "corrupt"),
    "a main part of noise": (lambda: with_member(simple_docx(), "word/document.xml", os.urandom(2_000)), "corrupt"),
    "groups of groups on a slide": (lambda: _grouped(200), READ),
    "a sheet with one cell, the very last": (
        lambda: sheet_with('<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>', "A1:XFD1048576"),
        "empty-document",
    ),
    "a sheet of rows 16,384 cells wide": (_wide_rows, READ),
    "a row number that is none": (lambda: sheet_with('<row r="x"><c r="??"><v>1</v></c></row>'), "corrupt"),
}
PDFS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a password": (encrypted_pdf, "encrypted"),
    "pages that contain each other": (page_loop, "corrupt"),
    "a form that draws itself": (form_loop, ANY),
    "an outline that runs in circles": (outline_loop, READ),
    "a million pages, it says": (
        lambda: pdf_of({1: b"<</Type/Catalog/Pages 2 0 R>>", 2: b"<</Type/Pages/Count 1000000/Kids[]>>"}),
        "too-many-pages",
    ),
    "200 MB of blanks in a small stream": (lambda: flate_pdf(200), ANY),
    "only its head": (lambda: b"%PDF-1.7\n", "corrupt"),
    "noise behind the head": (lambda: b"%PDF-1.7\n" + os.urandom(10_000), "corrupt"),
}
MARKUP: dict[str, tuple[Callable[[], bytes], str]] = {
    "100,000 elements inside each other.html": (lambda: b"<html><body>" + b"<div>" * 100_000 + b"text", "too-deep"),
    "200 elements inside each other.html": (lambda: b"<html><body>" + b"<div>" * 200 + b"text", READ),
    "200 lists inside each other.html": (lambda: b"<html><body>" + b"<ul><li>item " * 200, "too-deep"),
    "50,000 comments first.html": (lambda: b"<!-- -->" * 50_000 + b"<p>text", READ),
    "50,000 cells.html": (lambda: b"<html><table>" + (b"<tr>" + b"<td>x" * 100) * 500, READ),
    "an attribute of five megabytes.html": (lambda: b'<html><p class="' + b"a" * 5_000_000 + b'">text', READ),
    "10,000 quotations inside each other.md": (lambda: b"# Title\n\n" + b">" * 10_000 + b" text\n", READ),
    "5,000 opening brackets.md": (lambda: b"# Title\n\n" + b"[" * 5_000, READ),
    "emphasis without end.md": (lambda: b"# Title\n\n" + b"*a **b " * 10_000, READ),
    "1,000 lists inside each other.md": (
        lambda: b"# Title\n\n" + b"".join(b"  " * level + b"- item\n" for level in range(1_000)),
        READ,
    ),
    "front matter that multiplies.md": (lambda: _ALIASES + b"---\n# Title\n\ntext", READ),
}
TEXTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a quote that is never closed.csv": (lambda: b'a,b\n1,2\n3,4\n"' + b"x,\n" * 200_000, READ),
    "100,000 columns.csv": (lambda: b"\n".join([b"1,2," * 50_000] * 4), READ),
    "one line of five megabytes.txt": (lambda: b"word " * 1_000_000, READ),
    "a word of two megabytes.txt": (lambda: b"x" * 2_000_000, READ),
    "10,000 accents on one letter.txt": (("a" + "\u0316\u0301" * 5_000).encode, READ),
    "half surrogates.txt": (
        lambda: b"\xff\xfe" + "text ".encode("utf-16-le") + b"\x00\xd8" * 50 + "more".encode("utf-16-le"),
        READ,
    ),
    "1,000 parts inside each other.eml": (lambda: nested_mail(1_000), "too-deep"),
    "5,000 parts.eml": (lambda: flat_mail(5_000), "too-large"),
    "heads that are none.eml": (
        lambda: (
            b"From: =?utf-8?b?////?= <@@>\r\nTo: ;;;,,,\r\nSubject: =?x-unknown?q?=ff?=\r\nDate: never\r\n"
            b'Content-Type: text/plain; charset="no such"\r\n\r\nbody \xff text'
        ),
        READ,
    ),
    "a sealed envelope.eml": (
        lambda: _MAIL + b"Content-Type: application/pkcs7-mime; smime-type=enveloped-data\r\n\r\nAAAA",
        "encrypted",
    ),
    "nothing.txt": (lambda: b"", "empty-document"),
    "only blanks.txt": (lambda: b" \r\n\t " * 1_000, "empty-document"),
    "only zeros.txt": (lambda: bytes(100_000), "empty-document"),
    "a picture.txt": (lambda: b"\x89PNG\r\n\x1a\n" + os.urandom(1_000), "unsupported-type"),
    "a program.txt": (lambda: b"\x7fELF" + bytes(1_000), "unsupported-type"),
    "a gzip archive.txt": (lambda: b"\x1f\x8b\x08" + bytes(100), "unsupported-type"),
    "rich text.txt": (lambda: rb"{\rtf1\ansi text}", "unsupported-type"),
    "noise.txt": (lambda: os.urandom(100_000), "unsupported-type"),
}
BOMBS = {
    **{f"{name}.docx": bomb for name, bomb in (ZIPS | WORD).items()},
    **{f"{name}.pdf": bomb for name, bomb in PDFS.items()},
    **MARKUP,
    **TEXTS,
}
