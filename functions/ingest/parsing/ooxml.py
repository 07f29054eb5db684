"""What DOCX, PPTX and XLSX share: opening the package safely, and which errors mean that it is damaged."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lxml import etree

from functions.ingest.parsing.archive import open_package
from functions.ingest.parsing.reasons import failure

# What python-docx, python-pptx and openpyxl raise on damaged files: they expect well-formed packages and index, convert
# and dereference without looking.
DAMAGE = (
    etree.XMLSyntaxError,
    zipfile.BadZipFile,
    zlib.error,
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    EOFError,
    OverflowError,
    OSError,
)


def opened(open_file: Callable[[Any], Any], data: bytes, kind: str) -> Any:
    """The package as the library's own object; "corrupt", "archive-bomb", "unsafe-xml"."""
    package = open_package(data, kind)
    with damage_is_corrupt(kind):
        return open_file(package)


@contextmanager
def damage_is_corrupt(kind: str) -> Iterator[None]:
    """Whatever the office libraries stumble over inside becomes "corrupt"; memory and time limits pass through."""
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, etree.XMLSyntaxError) and "depth" in str(error):
            raise failure("too-deep", "256 elements inside each other") from error
        raise failure("corrupt", kind) from error
    except Exception as error:
        # Their own exceptions have no common base; anything else is a mistake of ours and must be seen.
        if type(error).__module__.partition(".")[0] not in ("docx", "pptx", "openpyxl"):
            raise
        raise failure("corrupt", kind) from error


def core_properties(document: Any) -> dict[str, str]:
    """Title, author, subject, keywords and dates as the file gives them; damaged ones are left out."""
    found: dict[str, str] = {}
    try:
        properties = document.core_properties
    except DAMAGE:
        return found
    for name in ("title", "author", "subject", "keywords", "language", "created", "modified"):
        try:
            value = getattr(properties, name)
        except DAMAGE:
            continue
        if value:
            found[name] = value.isoformat() if hasattr(value, "isoformat") else str(value)
    return found
