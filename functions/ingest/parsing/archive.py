"""Guards for zip-based formats and the XML in them: counted before anything is unpacked, unpacked against the count."""

from __future__ import annotations

import io
import re
import zipfile
import zlib

from functions.ingest.parsing.reasons import failure

MAX_ENTRIES = 10_000
MAX_UNPACKED = 500_000_000
"""Bytes: REQUIREMENTS section 4."""
MAX_RATIO = 200
"""Deflate reaches at most 1032:1; XML of real office files stays under 60:1 (measured on Apache POI's test files)."""
_RATIO_FROM = 10_000_000
"""Unpacked bytes of a member from which its ratio counts: a small sheet of zeros harms nobody."""

# A document type declaration is where entities come from; office formats never have one (ECMA-376 part 2, 8.1.4).
_DOCTYPE = re.compile(rb"<!(?:DOCTYPE|ENTITY)", re.I)
_BEFORE_XML = b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n"


def members(archive: zipfile.ZipFile) -> set[str]:
    """The member names, after the directory's own figures were found harmless; "archive-bomb" otherwise."""
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise failure("archive-bomb", f"more than {MAX_ENTRIES:,} entries")
    if sum(entry.file_size for entry in entries) > MAX_UNPACKED:
        raise failure("archive-bomb", f"more than {MAX_UNPACKED // 1_000_000} MB unpacked")
    for entry in entries:
        if entry.file_size > _RATIO_FROM and entry.file_size > MAX_RATIO * max(entry.compress_size, 1):
            raise failure("archive-bomb", f"packed more than {MAX_RATIO}:1")
    return {entry.filename for entry in entries}


def open_package(data: bytes, kind: str) -> io.BytesIO:
    """`data` as a package that is safe to hand to an office library.

    Every XML part, whatever its name, is unpacked once against its declared size (zipfile fails where the directory
    lies) and looked through for document type declarations. Raises "archive-bomb", "unsafe-xml", "corrupt".
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members(archive)
            for entry in archive.infolist():
                _check_part(archive, entry)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError, ValueError, RuntimeError) as error:
        raise failure("corrupt", kind) from error
    return io.BytesIO(data)


def _check_part(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Read the whole part, for its size and checksum, and look for a document type declaration in any encoding."""
    tail = b""
    with archive.open(entry) as part:
        while block := part.read(1_048_576):
            if not tail and not block.lstrip(_BEFORE_XML).startswith(b"<"):
                return  # a picture, a font, an embedded file: no library of ours reads it
            window = tail + block
            if b"\x00" in window[:64]:  # UTF-16 or UTF-32
                window = window.replace(b"\x00", b"")
            if _DOCTYPE.search(window):
                raise failure("unsafe-xml")
            tail = block[-64:]
