"""What commands print: tables, lines, JSON. Names and titles come from others: they are shown and do not act."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters (but for tabulator and line feed) and those that reorder what is read (Unicode UAX #9)."""

_UNCUT = 10_000
"""Columns of what is no terminal: a program that reads a line wants it whole."""

json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


def printable(told: str) -> str:
    """A text whose control characters are shown by their numbers; in JSON it means the same as before."""
    return _ACTING.sub(lambda found: f"\\u{ord(found[0]):04x}", told.replace("\r\n", "\n"))


class Screen(Console):
    """A console on which foreign text cannot move the cursor or set colours; into a pipe nothing is wrapped or cut."""

    def render_str(self, text: str, **how: Any) -> Text:
        """Every text on its way to the terminal, cells of tables too."""
        return super().render_str(printable(text), **how)


def screen(*, stderr: bool = False) -> Screen:
    """Where a command prints. Text from others still goes through `rich.markup.escape`."""
    made = Screen(stderr=stderr, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = _UNCUT
    return made


def table_of(*headers: str, whole: Collection[str] = ()) -> Table:
    """A plain table; the columns named `whole` are what other commands take, and are never broken into two lines."""
    made = Table(box=None)
    for header in headers:
        made.add_column(header, overflow="fold", no_wrap=header in whole)
    return made


def print_json(found: Any) -> None:
    """Anything of ours as JSON; ids, times and amounts as text."""
    click.echo(printable(json.dumps(found, indent=2, default=str, ensure_ascii=False)))
