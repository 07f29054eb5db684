"""Places in a text, and what stands before them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

Place = tuple[int, int]
"""Start and end of something found."""

NEAR = 24
"""Characters before a number in which a word tells what it is."""


_INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
# What word processors, PDF and HTML put between the groups of a number, and digits of another width. No tab: what it
# parts are two numbers of a table.
_ALIKE = (
    {ord(space): " " for space in "\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f"}
    | {ord(hyphen): "-" for hyphen in "\u2010\u2011\u2012\u2212\ufe63\uff0d"}
    | {0xFF10 + digit: str(digit) for digit in range(10)}
    | {ord("\uff20"): "@", ord("\uff0e"): ".", ord("\uff0b"): "+"}
)
_FOLDED = re.compile(f"[{_INVISIBLE}{''.join(re.escape(chr(code)) for code in _ALIKE)}]")


def fold(text: str) -> tuple[str, list[int] | None]:
    """The text with one kind of space, hyphen and digit and nothing invisible, as recognisers read it.

    With it, for each of its characters, the offset it came from; None when all stand where they stood.
    """
    if not _FOLDED.search(text):
        return text, None
    folded = text.translate(_ALIKE)
    offsets = [offset for offset, character in enumerate(folded) if character not in _INVISIBLE]
    if len(offsets) == len(folded):
        return folded, None
    return "".join(folded[offset] for offset in offsets), offsets


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
