"""Places in a text, and what stands before them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

Place = tuple[int, int]
"""Start and end of something found."""

NEAR = 24
"""Characters before a number in which a word tells what it is."""


def places(pattern: re.Pattern[str], text: str, group: int = 0) -> list[Place]:
    """Where a pattern (or one group of it) matches."""
    return [match.span(group) for match in pattern.finditer(text)]


def places_where(pattern: re.Pattern[str], text: str, holds: Callable[[re.Match[str]], bool]) -> list[Place]:
    """Where a pattern matches and its candidate holds."""
    return [match.span() for match in pattern.finditer(text) if holds(match)]


def before(match: re.Match[str]) -> str:
    """What stands right before a match, on its line."""
    start = match.start()
    return match.string[max(0, start - NEAR) : start].rpartition("\n")[2]


def digits_of(value: str) -> str:
    """Its ASCII digits alone."""
    return "".join(c for c in value if "0" <= c <= "9")


def without(text: str, found: Iterable[Place]) -> str:
    """The text in the same length with NUL in these places (sorted, apart): no word, no digit, no space."""
    parts, position = [], 0
    for start, end in found:
        parts += [text[position:start], "\x00" * (end - start)]
        position = end
    return "".join([*parts, text[position:]])


def one_after_another(text: str, *recognisers: tuple[re.Pattern[str], Callable[[re.Match[str]], bool]]) -> list[Place]:
    """What several patterns find, the earlier ones first, without overlaps."""
    found: list[Place] = []
    for pattern, holds in recognisers:
        more = places_where(pattern, text, holds)
        text = without(text, more) if more else text
        found += more
    return sorted(found)
