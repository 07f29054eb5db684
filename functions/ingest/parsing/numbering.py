"""Automatic numbers of Word paragraphs ("1.", "§ 2.3", "a)"): they are not in the text, only in its numbering part."""

from __future__ import annotations

from typing import Any, NamedTuple

from lxml import etree

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_LEVELS = 9
_ROMAN = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"))
_ROMAN_ENDS = ((10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i"))


class _Level(NamedTuple):
    form: str
    pattern: str
    start: int


class Numbering:
    """The counters of a document; `label` must be asked once for each numbered paragraph, in order."""

    def __init__(self, root: etree._Element | None) -> None:
        """`root`: the numbering part (ECMA-376 part 1, 17.9), None when the document has none."""
        self._levels: dict[str, dict[int, _Level]] = {}
        self._abstract: dict[str, str] = {}
        self._counters: dict[str, list[int | None]] = {}
        self._restarts: dict[str, dict[int, int]] = {}
        if root is None:
            return
        for abstract in root.iter(f"{W}abstractNum"):
            levels = {_number(level, "ilvl", 0): _level(level) for level in abstract.iter(f"{W}lvl")}
            self._levels[abstract.get(f"{W}abstractNumId", "")] = levels
        for number in root.iter(f"{W}num"):
            reference = number.find(f"{W}abstractNumId")
            if reference is not None:
                self._abstract[number.get(f"{W}numId", "")] = reference.get(f"{W}val", "")
            for override in number.iter(f"{W}lvlOverride"):
                start = override.find(f"{W}startOverride")
                if start is not None:
                    restarts = self._restarts.setdefault(number.get(f"{W}numId", ""), {})
                    restarts[_number(override, "ilvl", 0)] = _number(start, "val", 1)

    def label(self, number_id: str, level: int) -> str:
        """The number of the next paragraph of this list: "- " for bullets, "" where nothing is printed."""
        abstract = self._abstract.get(number_id)
        levels = self._levels.get(abstract or "", {})
        here = levels.get(level)
        if abstract is None or here is None or not 0 <= level < _LEVELS:
            return "- "
        counters = self._counters.setdefault(abstract, [None] * _LEVELS)
        count = counters[level]
        counters[level] = here.start if count is None else count + 1
        restart = self._restarts.get(number_id, {}).pop(level, None)  # counts for the first paragraph only
        if restart is not None:
            counters[level] = restart
        counters[level + 1 :] = [None] * (_LEVELS - level - 1)
        if here.form == "bullet":
            return "- "
        text = here.pattern
        for index in range(_LEVELS):
            if f"%{index + 1}" in text:
                form, _, start = levels.get(index, here)
                value = counters[index]
                text = text.replace(f"%{index + 1}", _formatted(start if value is None else value, form))
        return f"{text} " if text.strip() else ""


def _level(element: etree._Element) -> _Level:
    def value(name: str, otherwise: str) -> str:
        child: Any = element.find(f"{W}{name}")
        return otherwise if child is None else child.get(f"{W}val", otherwise)

    start = value("start", "1")
    return _Level(value("numFmt", "decimal"), value("lvlText", "")[:100], int(start) if start.isdecimal() else 1)


def _number(element: etree._Element, name: str, otherwise: int) -> int:
    value = element.get(f"{W}{name}", "")
    return int(value) if value.isdecimal() else otherwise


def _formatted(value: int, form: str) -> str:
    if form in ("lowerLetter", "upperLetter") and value > 0:
        letters = chr(97 + (value - 1) % 26) * min((value - 1) // 26 + 1, 10)
        return letters.upper() if form == "upperLetter" else letters
    if form in ("lowerRoman", "upperRoman") and 0 < value < 4000:
        roman = ""
        for size, sign in (*_ROMAN, *_ROMAN_ENDS):
            count, value = divmod(value, size)
            roman += sign * count
        return roman.upper() if form == "upperRoman" else roman
    return "" if form == "none" else str(value)
