"""Splitting German and English passages into sentences, with their place in the text. Pure.

Own code because the sentences must stay verbatim slices of the passage (positions, no clean-up) and because headings,
list items and table rows count as sentences here; the libraries at hand (pySBD, NLTK) rewrite or miss these and are
slower than the embedding that follows.
"""

# ruff: noqa: SIM905 - a list of words reads better without quotes and commas

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["sentence", "heading", "row"]

# A quote longer than this is no answer any more; such sentences are cut at a clause.
MAX_SENTENCE_CHARS = 600

# Written without dots and in lower case; a full stop after one of them does not end a sentence.
_ABBREVIATIONS = frozenset(
    # German
    "abb abs abschn abt anh anl anm aufl ausg az bd bde begr bes bsp bspw bzgl bzw ca chr dgl dipl dr ebd ed "
    "einschl entspr erg etc evtl exkl fa ff fig frl gem gest ggf ggü hg hl hrsg ing inkl insb insbes int jh jhd kap "
    "kath lfd lit lt mio mrd mtl nr österr prof rd rn rspr sen sog spez st str stv tel teilw "
    "tz usf ung urspr verb vgl vol vors wg zit ziff zz zzgl zzt "
    # English
    "al approx appt ave blvd capt cf cmdr co col corp dept ed eds eq esp est gen gov hon inc incl jr lt ltd "
    "maj messrs mr mrs ms mt nos op pp ph pres prof pt ref rev sen sgt sr st univ viz vs".split()
)
# Words of their own too ("There is no. Danach"), so only before a number.
_BEFORE_NUMBERS = frozenset("alt art fig figs max min mind no par pos sec tab vol".split())
_ORDINAL_FOLLOWERS = frozenset(
    "januar jänner februar märz april mai juni juli august september oktober november dezember jan feb apr jun jul aug "
    "sep sept okt nov dez jahrhundert jahrhunderts jahrhunderte jh jhd lebensjahr lebensjahrs lebensjahres geburtstag "
    "jahrestag jahrtausend quartal quartals semester monat monats tag tages woche kalendertag werktag stock platz "
    "auflage kapitel absatz änderung verordnung bundesliga weltkrieg weltkriegs".split()
)
# After these a number is an ordinal ("am 3. Dienstag"), whatever follows.
_ORDINAL_LEADERS = frozenset("am vom zum im beim der dem den des die das bis ab seit zur".split())

_BLANK = re.compile(r"\n[ \t\r]*\n")
_LIST_ITEM = re.compile(r"(?:[ \t]*(?:[-*+•–▪◦·]|\(?\d{1,3}[.)]|\(?[a-z]{1,2}\))[ \t]+(?=\S))+")
_MARKDOWN_HEADING = re.compile(r"[ \t]*#{1,6}[ \t]+\S")
_SECTION_HEADING = re.compile(r"[ \t]*(?:§+|Art(?:ikel|\.)?|Article|Section|Chapter|Kapitel|Abschnitt)[ \t]+\d")
_TABLE_RULE = re.compile(r"[ \t|:+=-]+$")
_STOP = re.compile(r"[.!?…]+[\"'”“»’)\]]*(?=\s+\S|$)")
_LAST_WORD = re.compile(r"[^\W_]+$")
_NEXT_WORD = re.compile(r"\s+[\"'„“«‚(\[]*([^\W_]*)")
_WORDED = re.compile(r"[^\W_]")
_ROMAN = re.compile(r"[IVX]{1,5}$")


@dataclass(frozen=True)
class Sentence:
    """One sentence, heading or table row: `text[start:end]` of the passage.

    Without outer whitespace, list markers and the outer bars of a table row.
    """

    start: int
    end: int
    text: str
    kind: Kind
    heading: str


def split(text: str) -> list[Sentence]:
    """All sentences of `text` in order; each knows the heading it stands under ('' for none).

    A line break inside a paragraph does not end a sentence (PDF lines are wrapped); a blank line, a heading, a list
    item and a table row do.
    """
    found: list[Sentence] = []
    heading = ""
    for start, end, kind in _blocks(text):
        spans = _spans(text, start, end) if kind == "sentence" else [(start, end)]
        for first, last in spans:
            for a, b in _cut(text, *_trim(text, first, last, " |" if kind == "row" else "")):
                if _WORDED.search(text, a, b):
                    found.append(Sentence(a, b, text[a:b], kind, heading if kind != "heading" else ""))
        if kind == "heading":
            heading = text[start:end].lstrip("# \t").rstrip("# \t\r\n")
    return found


def _blocks(text: str) -> Iterator[tuple[int, int, Kind]]:
    """Paragraphs, list items, headings and table rows as (start, end, kind), in order."""
    position = 0
    for blank in [*_BLANK.finditer(text), None]:
        end = blank.start() if blank else len(text)
        yield from _lines_to_blocks(text, position, end)
        position = blank.end() if blank else end


def _lines_to_blocks(text: str, start: int, end: int) -> Iterator[tuple[int, int, Kind]]:
    """One stretch between blank lines, cut where a line begins something new."""
    open_from: int | None = None
    position = start
    lines = text[start:end].split("\n")
    for index, line in enumerate(lines):
        first, position = position, position + len(line) + 1
        last = first + len(line)
        if not line.strip():
            continue
        kind = _line_kind(line, alone=len(lines) == 1, opening=index == 0)
        if kind == "sentence" and not _LIST_ITEM.match(line):
            open_from = first if open_from is None else open_from
            continue
        if open_from is not None:
            yield open_from, first, "sentence"
            open_from = None
        if kind == "sentence":
            open_from = first
        elif not _TABLE_RULE.match(line):
            yield first, last, kind
    if open_from is not None:
        yield open_from, end, "sentence"


def _line_kind(line: str, *, alone: bool, opening: bool) -> Kind:
    """What a line is by itself: a heading, a table row, or text."""
    stripped = line.strip()
    if _MARKDOWN_HEADING.match(line):
        return "heading"
    if stripped.startswith("|") and stripped.endswith("|") and len(stripped) > 2:
        return "row"
    short = len(stripped) <= 90 and _WORDED.search(stripped) is not None and stripped[-1] not in ".!?…:;,"
    if short and (alone or opening) and (_SECTION_HEADING.match(line) or (alone and not _LIST_ITEM.match(line))):
        return "heading"
    return "sentence"


def _spans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Sentences of one paragraph or list item as (start, end)."""
    item = _LIST_ITEM.match(text, start, end)
    first = item.end() if item else start
    for stop in _STOP.finditer(text, first, end):
        if stop.end() < end and _goes_on(text, first, stop, end):
            continue
        yield first, stop.end()
        first = stop.end()
    if text[first:end].strip():
        yield first, end


def _goes_on(text: str, first: int, stop: re.Match[str], end: int) -> bool:
    """True when the mark at `stop` does not end a sentence: abbreviation, initial, ordinal, or a small letter next."""
    following = _NEXT_WORD.match(text, stop.end(), end)
    word = following.group(1) if following else ""
    if word and word[0].islower():
        return True
    if stop.group()[0] != "." or len(stop.group()) > 1:
        return False
    before = _LAST_WORD.search(text, max(first, stop.start() - 40), stop.start())
    if before is None:
        return False
    last = before.group()
    if last.isdigit():
        return _is_ordinal(text[max(first, before.start() - 20) : before.start()], last, word)
    if _ROMAN.match(last) and len(last) > 1:
        return not word or word.lower() in _ORDINAL_FOLLOWERS
    # A single letter: "z. B.", "J. S. Bach", "U.S. Army". "Plan B. Danach" is lost, which is the rarer case.
    if len(last) == 1 or last.lower() in _ABBREVIATIONS:
        return True
    return word[:1].isdigit() and last.lower() in _BEFORE_NUMBERS


def _is_ordinal(before: str, number: str, following: str) -> bool:
    """True for the German ordinal ("31. März", "am 3. Dienstag"), false for a number that ends a sentence."""
    if len(number) > 2 and following.lower() not in _ORDINAL_FOLLOWERS:
        return False
    if following.lower() in _ORDINAL_FOLLOWERS:
        return True
    leading = before.split()
    return bool(leading) and leading[-1].lower() in _ORDINAL_LEADERS


def _trim(text: str, start: int, end: int, also: str = "") -> tuple[int, int]:
    """`start`, `end` moved inwards past whitespace and the characters in `also`."""
    while start < end and (text[start].isspace() or text[start] in also):
        start += 1
    while end > start and (text[end - 1].isspace() or text[end - 1] in also):
        end -= 1
    return start, end


def _cut(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """A sentence longer than the limit in pieces, cut behind a semicolon, comma or space; others as they are."""
    while end - start > MAX_SENTENCE_CHARS:
        window = text[start : start + MAX_SENTENCE_CHARS]
        at = next((p for mark in (";", ",", " ", "\n") if (p := window.rfind(mark)) > MAX_SENTENCE_CHARS // 3), -1)
        split_at = start + (at + 1 if at >= 0 else MAX_SENTENCE_CHARS)
        yield _trim(text, start, split_at)
        start = _trim(text, split_at, end)[0]
    yield start, end
