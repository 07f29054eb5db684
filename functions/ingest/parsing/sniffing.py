"""What a file is, by its content; name and declared type only decide between kinds of text."""

from __future__ import annotations

import csv
import io
import re
import zipfile
import zlib
from typing import NamedTuple

from functions.ingest.parsing.archive import members
from functions.ingest.parsing.decoding import decode, looks_binary
from functions.ingest.parsing.reasons import failure

PDF = "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
PPTX = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
HTML, MARKDOWN, TEXT, CSV, EML = "text/html", "text/markdown", "text/plain", "text/csv", "message/rfc822"

# Signatures at the start of a file: https://en.wikipedia.org/wiki/List_of_file_signatures
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"{\\rtf", "RTF"),
    (b"\x89PNG", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"GIF8", "GIF image"),
    (b"II*\x00", "TIFF image"),
    (b"MM\x00*", "TIFF image"),
    (b"BM", "BMP image"),
    (b"RIFF", "RIFF media"),
    (b"\x7fELF", "executable"),
    (b"MZ", "executable"),
    (b"\xca\xfe\xba\xbe", "executable"),
    (b"\xcf\xfa\xed\xfe", "executable"),
    (b"\x1f\x8b", "gzip archive"),
    (b"BZh", "bzip2 archive"),
    (b"\xfd7zXZ\x00", "xz archive"),
    (b"\x28\xb5\x2f\xfd", "zstd archive"),
    (b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (b"Rar!\x1a\x07", "RAR archive"),
    (b"%!PS", "PostScript"),
    (b"SQLite format 3\x00", "SQLite database"),
    (b"ID3", "audio"),
    (b"OggS", "audio"),
    (b"\x1aE\xdf\xa3", "video"),
    (b"\x00\x00\x01\x00", "icon"),
    (b"\x00asm", "WebAssembly"),
)
_VISIBLE = re.compile(rb"[^\x00 \t\r\n\x0b\x0c]")
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_EXTENSIONS = {
    **dict.fromkeys(("html", "htm", "xhtml"), HTML),
    **dict.fromkeys(("md", "markdown", "mdown", "mkd"), MARKDOWN),
    **dict.fromkeys(("csv", "tsv", "tab"), CSV),
    **dict.fromkeys(("txt", "text", "log", "rst", "adoc", "json", "yaml", "yml", "ini", "toml", "sql"), TEXT),
    **dict.fromkeys(("eml", "mime"), EML),
}
_DECLARED = {
    "application/xhtml+xml": HTML,
    "text/x-markdown": MARKDOWN,
    "text/tab-separated-values": CSV,
    "application/csv": CSV,
    **{kind: kind for kind in (HTML, MARKDOWN, TEXT, CSV, EML)},
}
_HTML_START = re.compile(r"<(?:!doctype\s+html|html|head|body)\b", re.I)
_PROLOGUE = re.compile(r"\s+|<\?xml[^>]*>|<!--")
_HTML_TAG = re.compile(
    r"</?(?:html|head|body|div|p|span|table|tr|td|th|h[1-6]|ul|ol|li|br|a|b|i|em|strong|title|meta|link)\b[^<>]*>", re.I
)
_XML = re.compile(r"\s*<\?xml\b|\s*<(?:svg|rss|feed)\b", re.I)
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,60}:(?:[ \t]|\r?\n[ \t]|\r?\n|$)")
_MAIL_HEADERS = frozenset(
    ("from", "to", "cc", "bcc", "subject", "date", "message-id", "mime-version", "received", "return-path", "reply-to")
) | frozenset(("content-type", "delivered-to", "in-reply-to", "references", "sender", "x-mailer", "dkim-signature"))
_MARKDOWN = re.compile(
    r"^(?:#{1,6} \S|[-*+] \S|```|~~~|\|[^\n]*\| *$|> \S|(?:={3,}|-{3,}) *$)"
    r"|\[[^\[\]\n]{1,200}\]\([^()\s]{1,500}\)|\*\*\w[^*\n]{0,200}\*\*",
    re.MULTILINE,
)


class Sniffed(NamedTuple):
    """What the bytes are; for text also what they say, and whether every byte could be decoded."""

    media_type: str
    text: str = ""
    decoded: bool = True


def sniff(data: bytes, name: str = "", media_type: str | None = None) -> Sniffed:
    """The type of `data`; `PermanentError` ("unsupported-type", "encrypted", "macros", …) when we do not read it."""
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Sniffed(_office_type(data))
    if data.startswith(_OLE):
        # An encrypted DOCX, PPTX or XLSX is an OLE container with this stream ([MS-OFFCRYPTO] 2.3.4.4).
        if "EncryptedPackage".encode("utf-16-le") in data:
            raise failure("encrypted")
        raise failure("unsupported-type", "legacy Office or Outlook file")
    # Acrobat and pdfium accept the header anywhere in the first KiB (PDF 1.7 reference, implementation note 13).
    if b"%PDF-" in data[:1024]:
        return Sniffed(PDF)
    if not _VISIBLE.search(data):
        raise failure("empty-document")
    for magic, kind in _MAGIC:
        if data.startswith(magic) and (not magic.isalnum() or looks_binary(data)):
            raise failure("unsupported-type", kind)
    if data[4:8] == b"ftyp":
        raise failure("unsupported-type", "video or image")
    if looks_binary(data):
        raise failure("unsupported-type", "binary data")
    return _text_type(data, name, media_type)


def _office_type(data: bytes) -> str:
    """Which of the zip-based office formats, by its members and content types."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = members(archive)
            if any(entry.flag_bits & 1 for entry in archive.infolist()):
                raise failure("encrypted")
            if "mimetype" in names or "META-INF/manifest.xml" in names:
                raise failure("unsupported-type", "OpenDocument, EPUB or Java archive")
            if "[Content_Types].xml" not in names:
                raise failure("unsupported-type", "zip archive")
            types = archive.read("[Content_Types].xml").lower()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, zlib.error) as error:
        raise failure("corrupt", "an office file") from error
    if b"macroenabled" in types or any(entry.lower().endswith("vbaproject.bin") for entry in names):
        raise failure("macros")
    for marker, kind in (
        (b"wordprocessingml", DOCX),
        (b"presentationml", PPTX),
        (b"spreadsheetml", XLSX),
    ):
        if marker + b".document.main" in types or marker + b".template.main" in types:
            return kind
        if marker + b".presentation.main" in types or marker + b".slideshow.main" in types:
            return kind
        if marker + b".sheet.main" in types:
            return kind
    for folder, kind in (("word/", DOCX), ("ppt/", PPTX), ("xl/", XLSX)):
        if any(entry.startswith(folder) and entry.endswith(".xml") for entry in names):
            return kind
    raise failure("unsupported-type", "zip archive")


def _text_type(data: bytes, name: str, media_type: str | None) -> Sniffed:
    text, decoded = decode(data, _declared_charset(data, media_type))
    kind = _declared(name, media_type)
    head = text[:65_536]
    begin = _prologue_end(text)
    if _HTML_START.match(text, begin):
        return Sniffed(HTML, text, decoded)
    if _is_mail(head):
        return Sniffed(EML)
    if _XML.match(head):
        raise failure("unsupported-type", "XML")
    tags = len(_HTML_TAG.findall(text, begin, begin + 65_536))
    if tags and (kind == HTML or (kind is None and text[begin : begin + 1] == "<" and tags >= 3)):
        return Sniffed(HTML, text, decoded)
    if kind in (CSV, None) and _is_table(head, 1 if kind == CSV else 3):
        return Sniffed(CSV, text, decoded)
    if kind == MARKDOWN or (kind in (None, HTML) and len(_MARKDOWN.findall(head)) >= 2):
        return Sniffed(MARKDOWN, text, decoded)
    return Sniffed(TEXT, text, decoded)


def _prologue_end(text: str) -> int:
    """Where the first thing stands that is neither white space, comment nor XML declaration."""
    at = 0
    while found := _PROLOGUE.match(text, at):
        at = found.end()
        if found.group() == "<!--":
            at = text.find("-->", at) + 3
            if at < 3:
                return len(text)
    return at


def _declared(name: str, media_type: str | None) -> str | None:
    """What name and declared type say; the name is the more honest of the two."""
    by_name = _EXTENSIONS.get(name.rpartition(".")[2].lower()) if "." in name else None
    return by_name or _DECLARED.get((media_type or "").partition(";")[0].strip().lower())


def _declared_charset(data: bytes, media_type: str | None) -> str | None:
    """A charset given in the media type or in the first KiB of a page (WHATWG HTML, 13.2.3.2)."""
    for source in ((media_type or "").encode("ascii", "ignore"), data[:4096]):
        found = re.search(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]{2,40})""", source, re.I)
        if found:
            return found.group(1).decode("ascii")
    return None


def _is_mail(head: str) -> bool:
    """Whether the text begins with header lines of which two are those of a mail (RFC 5322, 3.6)."""
    seen: set[str] = set()
    for number, line in enumerate(head.lstrip().splitlines()[:200]):
        if not line.strip():
            break
        if line[0] in " \t" or (number == 0 and line.startswith("From ")):
            continue
        if not _HEADER.match(line):
            return False
        seen.add(line.partition(":")[0].lower())
    return len(seen & _MAIL_HEADERS) >= 2 and bool(seen & {"from", "to", "received", "message-id", "mime-version"})


def _is_table(head: str, least_rows: int) -> bool:
    """Whether the first rows split into the same two or more columns; prose with commas does not."""
    delimiter = delimiter_of(head)
    if delimiter is None:
        return False
    lines = [line for line in head.splitlines()[:60] if line.strip()]
    try:
        rows = [row for row in csv.reader(lines[:50], delimiter=delimiter) if row]
    except csv.Error:
        return False
    if len(rows) < least_rows:
        return False
    width = len(rows[0])
    regular = sum(len(row) == width for row in rows)
    if least_rows == 1:
        return width >= 2
    cells = [cell for row in rows for cell in row]
    return width >= 2 and regular >= len(rows) * 0.95 and sum(map(len, cells)) / len(cells) <= 40


def delimiter_of(head: str) -> str | None:
    """The delimiter that splits most of the first lines into the same number of cells, None when none does."""
    lines = [line for line in head.splitlines()[:50] if line.strip()]
    best: tuple[float, int, str] | None = None
    for delimiter in (",", ";", "\t", "|"):
        try:
            widths = [len(row) for row in csv.reader(lines, delimiter=delimiter)]
        except csv.Error:
            continue
        common = max(set(widths), key=widths.count, default=1)
        if common >= 2:
            score = (widths.count(common) / len(widths), common, delimiter)
            best = max(best, score) if best else score
    return best[2] if best else None
