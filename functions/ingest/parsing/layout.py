"""From printed lines to paragraphs, lists and headings: the geometry of a page, without any pdf library."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from functions.ingest.parsing.document import BlockKind, Box

Line: TypeAlias = tuple[str, float, float, float, float, bool]
"""A printed line: its text (cleaned, not empty), x0, y0, x1, y1 in points (y grows upwards), and whether its last word
goes on below. A bare tuple, because there are a hundred on a page and naming them costs more than reading them."""


class Paragraph(NamedTuple):
    """A block to be."""

    kind: BlockKind
    level: int
    text: str
    boxes: list[Box]


_BULLET = re.compile(r"(?:[•‣▪◦●○■□➢✓–—*·-]|\(?\d{1,3}[.)]|\(?[a-zA-Z]\)|[a-z][.])\s+\S")
_ENDS = (".", "!", "?", ":", ";", '."', "“", "”", ".)")
# "Haupt- und Nebensatz", "pre- and post-war": such a hyphen belongs to the word.
_COORDINATION = re.compile(r"(?:und|oder|bzw|sowie|and|or|et|ou|y|o|e)\b")
_DIVIDED = "-"
"""Stands for the gap after a line whose last word goes on below."""
_SAME_SIZE = 0.15
_HEADING_RATIO = 1.15
_LONGEST_HEADING = 200
_NOT_WORD = re.compile(r"[\W\d_]+")


class Titles:
    """The entries of a table of contents for one page: which of its lines are headings, and of which level."""

    def __init__(self, entries: Iterable[tuple[int, str]] = ()) -> None:
        """`entries`: level from 1, title."""
        self._levels: dict[str, int] = {}
        self._endings: set[str] = set()
        for level, title in entries:
            if key := _key(title):
                self._levels.setdefault(key, min(level, 6))
                self._endings.add(title.strip()[-2:].casefold())

    def __bool__(self) -> bool:
        return bool(self._levels)

    def level(self, text: str) -> int:
        """The level of a heading, 0 for any other line; numbering and punctuation do not count."""
        if text[-2:].casefold() not in self._endings or len(text) > _LONGEST_HEADING:
            return 0
        return self._levels.get(_key(text), 0)

    def among(self, lines: list[Line]) -> set[int]:
        """Which of the lines are headings, counted from 0."""
        if not self._levels:
            return set()
        # The last two letters settle it for nearly every line, at a tenth of the price.
        endings = self._endings
        alike = [number for number, line in enumerate(lines) if line[0][-2:].casefold() in endings]
        return {number for number in alike if self.level(lines[number][0])}


def _key(title: str) -> str:
    return _NOT_WORD.sub("", title).casefold()


def heading_sizes(pages: Iterable[Iterable[Line]]) -> dict[int, int]:
    """Level by letter height (half points) for what stands out against the body, which is what most letters are in."""
    letters: dict[int, int] = {}
    for lines in pages:
        for text, _, y0, _, y1, _ in lines:
            size = round((y1 - y0) * 2)
            letters[size] = letters.get(size, 0) + len(text)
    if not letters:
        return {}
    body = max(letters, key=letters.__getitem__)
    total = sum(letters.values())
    # A size that fills a tenth of the document is no heading but another kind of body.
    large = sorted(
        (size for size in letters if size >= body * _HEADING_RATIO and letters[size] < total / 10), reverse=True
    )
    levels: dict[int, int] = {}
    level, last = 0, 0.0
    for size in large:
        if not level or size < last * 0.93:
            level, last = level + 1, size
        levels[size] = min(level, 6)
    return levels


def paragraphs(lines: list[Line], page: int, titles: Titles, sizes: dict[int, int]) -> Iterator[Paragraph]:
    """The blocks of one page in the order of its lines; `titles` from the outline, `sizes` from `heading_sizes`."""
    pending: list[Paragraph] = []
    for group in _groups(lines, titles):
        made = _paragraph(group, page, titles, sizes)
        if pending and made.kind == "list" and pending[-1].kind == "list":
            pending[-1] = _appended(pending[-1], made)
        else:
            yield from pending
            pending = [made]
    yield from pending


def _groups(lines: list[Line], titles: Titles) -> Iterator[list[Line]]:
    """Lines that belong together: one paragraph, one list item or one heading each."""
    if not lines:
        return
    pitch = _pitch(lines)
    left, right = min([line[1] for line in lines]), max([line[3] for line in lines])
    full = right - (right - left) * 0.25
    headings = titles.among(lines)
    before = lines[0]
    group: list[Line] = []
    apart = True
    for number, line in enumerate(lines):
        title = number in headings
        if before[5] or (not (apart or title) and _goes_on(before, line, pitch, full)):
            group.append(line)
        else:
            if group:
                yield group
            group = [line]
        apart, before = title, line
    yield group


def _pitch(lines: list[Line]) -> float:
    """The usual distance of baselines in letter heights: the lower quartile, so that gaps do not count."""
    steps = []
    _, _, above, _, _, _ = lines[0]
    for _, _, y0, _, y1, _ in lines[1:]:
        height = y1 - y0
        if height > 0 and above - y0 > height * 0.5:
            steps.append((above - y0) / height)
        above = y0
    steps.sort()
    return min(max(steps[len(steps) // 4], 1.0), 2.4) if steps else 1.2


def _goes_on(before: Line, line: Line, pitch: float, full: float) -> bool:
    """Whether `line` continues the paragraph of `before`."""
    text, x0, y0, _, y1, _ = line
    above, left, base, right, top, _ = before
    height, drop = y1 - y0, base - y0
    larger = top - base if top - base > height else height
    if abs(height - (top - base)) > _SAME_SIZE * larger:
        return False
    if abs(drop) <= height * 0.5:
        return x0 >= left  # the same row, torn apart by a gap
    if drop < 0:
        return not above.endswith(_ENDS) and text[0].islower()  # the next column
    # Two letters after the first are no bullet, and are told faster than by the pattern.
    if drop > height * pitch * 1.3 or (not text[1:3].isalpha() and _BULLET.match(text)):
        return False
    return not ((x0 > left + height * 0.8 or right < full) and above.endswith(_ENDS))


def _paragraph(group: list[Line], page: int, titles: Titles, sizes: dict[int, int]) -> Paragraph:
    """Join the lines of a group, mending words that were divided at a line's end."""
    if len(group) == 1:
        text, x0, y0, x1, y1, _ = group[0]
        return _named(group, text, [(0, len(text), page, x0, y0, x1, y1)], titles, sizes)
    parts: list[str] = []
    boxes: list[Box] = []
    size, gap = 0, ""
    edge = max([line[3] for line in group])
    for content, x0, y0, x1, y1, divided in group:
        if gap == _DIVIDED:
            gap = _joint(parts[-1], content)
        parts.append(gap)
        start = size + len(gap)
        # A line that leaves a third of the width empty was ended on purpose: a listing, a verse, an address.
        gap = "\n" if x1 < edge - (edge - x0) * 0.33 else " "
        word = content
        if divided:
            gap = _DIVIDED
        elif content[-1] == "-" and content[-2:-1].isalpha():
            word, gap = content[:-1], _DIVIDED
        size = start + len(word)
        parts.append(word)
        boxes.append((start, size, page, x0, y0, x1, y1))
    if gap == _DIVIDED:
        parts.append("-")
    return _named(group, "".join(parts), boxes, titles, sizes)


def _named(group: list[Line], text: str, boxes: list[Box], titles: Titles, sizes: dict[int, int]) -> Paragraph:
    """Tell headings and list items from paragraphs."""
    level = _level(group, text, titles, sizes)
    if level:
        return Paragraph("heading", level, text.replace("\n", " "), boxes)
    return Paragraph("list" if _BULLET.match(text) else "paragraph", 0, text, boxes)


def _joint(stem: str, following: str) -> str:
    """What stands between the two halves of a word that was divided at a line's end."""
    if not following[0].islower():
        return "-"  # "Baden-" + "Württemberg": the hyphen is part of the name
    if _COORDINATION.match(following):
        return "- "
    if not stem[-2:].isalpha() or len(stem) < 2:
        return "-"  # "E-" + "mail", "x-" + "axis"
    return ""


def _level(group: list[Line], text: str, titles: Titles, sizes: dict[int, int]) -> int:
    if len(text) > _LONGEST_HEADING:
        return 0
    if titles:
        return titles.level(text)
    if not sizes or len(group) > 3:
        return 0
    level = sizes.get(round((group[0][4] - group[0][2]) * 2), 0)
    return level if level and any(map(str.isalpha, text)) else 0


def _appended(items: Paragraph, item: Paragraph) -> Paragraph:
    """One list out of two: an item a line."""
    shift = len(items.text) + 1
    moved: list[Box] = [(box[0] + shift, box[1] + shift, *box[2:]) for box in item.boxes]
    return Paragraph("list", 0, f"{items.text}\n{item.text}", items.boxes + moved)
