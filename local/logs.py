"""Log files of the platform: one a service, appended to by the process itself, kept small by the runner."""

from __future__ import annotations

import shutil
from pathlib import Path

LIMIT = 10 * 1024 * 1024  # bytes; with the one older file beside it, at most twice this a service


def rotate(folder: Path, limit: int = LIMIT) -> None:
    """Move what is over the limit to `<name>.log.1`. The processes hold their files open in append mode, so the file
    is copied and cut, not renamed: what they write meanwhile goes on at its new end."""
    for path in folder.glob("*.log"):
        if path.stat().st_size > limit:
            shutil.copyfile(path, path.with_suffix(".log.1"))
            path.with_suffix(".log.1").chmod(0o600)
            with path.open("r+b") as file:
                file.truncate(0)


def last_words(path: Path, since: int = 0, lines: int = 3) -> str:
    """The last lines a process wrote after byte `since`, on one line: for an error message."""
    try:
        with path.open("rb") as file:
            file.seek(max(since, path.stat().st_size - 4096))
            said = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        said = []
    # Without the lines of a traceback that only point (^^^^).
    telling = [line.strip()[:300] for line in said if line.strip(" ^~")]
    return " | ".join(telling[-lines:]) or "it said nothing"
