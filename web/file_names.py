"""Names of uploaded files. They come from elsewhere and end in the database, in messages and on pages."""

from __future__ import annotations

import re
import unicodedata

LIMIT = 255
"""Characters; what common file systems allow."""

EXTENSION_LIMIT = 16


def clean_file_name(name: str) -> str:
    """The name without path, control and format characters, lone surrogates and NUL; at most LIMIT characters.

    Direction marks go as well: they make `exe.fdp` look like a PDF. The extension survives the cut. Empty when
    nothing is left. Pure.
    """
    name = re.split(r"[/\\]", name)[-1]
    # Categories C*: control, format, surrogate, private use, unassigned.
    name = "".join(" " if c.isspace() else c for c in name if c.isspace() or unicodedata.category(c)[0] != "C")
    name = re.sub(r" +", " ", unicodedata.normalize("NFC", name)).strip(" ")
    if not name.strip("."):
        return ""
    if len(name) <= LIMIT:
        return name
    stem, dot, extension = name.rpartition(".")
    if dot and stem and len(extension) <= EXTENSION_LIMIT:
        return stem[: LIMIT - len(extension) - 1] + dot + extension
    return name[:LIMIT]
