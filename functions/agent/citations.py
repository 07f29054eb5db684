"""Proof: which words of an answer stand in the passages it cites. Pure: text in, verified text out.

A claim is a piece of the answer that ends in citation marks like [1]. It is proven when what it quotes stands in the
cited passage and no number beside the quotation is foreign to it, or, without a quotation, when one sentence of the
passage carries most of its words and every number in it. A claim that is not proven loses its mark and is labelled; a
passage that proves nothing is not cited.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from functions.agent.state import CitationState, PassageState

# Every pattern runs in linear time on any answer: no two neighbouring repetitions match the same characters.
_MARKS = re.compile(r"\[\d{1,3}\](?:\s*\[\d{1,3}\])*")
_MARK = re.compile(r"\[(\d{1,3})\]")
# The outermost quotation counts, with what it quotes itself; models also open „ and close ".
_QUOTES = re.compile(
    r"""„((?:[^„“”]|„[^„“”]*[“”])+)[“”] | „([^„"]+)" | “((?:[^“”]|“[^“”]*”)+)” | [“”]([^„“”]+)[“”]
    | «([^«»]+)» | »([^«»]+)« | "([^"]+)" """,
    re.VERBOSE,
)
_MARKS_OF_QUOTES = frozenset('„“”«»"')
_ELLIPSIS = re.compile(r"\[(?:…|\.\.\.)\]|…|\.\.\.")
_WORD = re.compile(r"\d+(?:[.,:/]\d+)+|\w+")
_THOUSANDS = re.compile(r"\d{1,3}(?:[.,]\d{3})+")
# A number at the head of a line counts items, unless a month follows: "31. März".
_LIST_ITEM = re.compile(
    r"^[ \t]*\d{1,2}[.)][ \t]+(?!jan|feb|m[aä]r|apr|ma[iy]|jun|jul|aug|sep|o[kc]t|nov|de[zc])",
    re.MULTILINE | re.IGNORECASE,
)
# A full stop after a number ends no sentence: "bis zum 31. März", "im 2. Abschnitt".
_SENTENCE = re.compile(r"[^.!?\n]+(?:(?:(?<=\d)\.|[.!?](?!\s+[A-ZÄÖÜ]))[^.!?\n]*)*[.!?]?")
SUPPORT = 0.6
"""Share of a claim's content words that its sentence must carry; a paraphrase keeps its nouns and numbers."""


@dataclass(frozen=True, slots=True)
class Verified:
    """An answer after checking: the text with marks renumbered from 1, its citations, and what could not be proven."""

    text: str
    citations: tuple[CitationState, ...]
    unproven: int


def verify(answer: str, passages: Sequence[PassageState], unproven_label: str) -> Verified:
    """Check every cited claim of an answer against its passages."""
    known = {passage["number"]: passage for passage in passages}
    out: list[str] = []
    citations: list[CitationState] = []
    unproven = 0
    position = 0
    for marks in _MARKS.finditer(answer):
        claim = answer[position : marks.start()].rstrip()
        position = marks.end()
        out.append(claim)
        own = []
        for number in dict.fromkeys(int(n) for n in _MARK.findall(marks.group())):
            passage = known.get(number)
            place = _prove(claim, passage) if passage else None
            if passage and place:
                own.append(_cite(citations, number, passage["text"], place))
        if own:
            out.append(" " + " ".join(f"[{n}]" for n in dict.fromkeys(own)))
        else:
            unproven += 1
            out.append(f" {unproven_label}")
    tail = answer[position:]
    out.append(tail)
    if not citations and not unproven and _words(tail):
        unproven = 1
        out.append(f" {unproven_label}")
    return Verified("".join(out).strip(), tuple(citations), unproven)


def _cite(citations: list[CitationState], passage: int, text: str, place: tuple[int, int]) -> int:
    for known in citations:
        if known["passage"] == passage and (known["start"], known["end"]) == place:
            return known["number"]
    number = len(citations) + 1
    start, end = place
    citations.append({"number": number, "passage": passage, "quote": text[start:end], "start": start, "end": end})
    return number


def _prove(claim: str, passage: PassageState) -> tuple[int, int] | None:
    """Where the passage proves the claim, as character offsets, or None."""
    claim = _LIST_ITEM.sub("", claim).strip()
    if claim[:1] in _MARKS_OF_QUOTES and claim[-1:] in _MARKS_OF_QUOTES:
        # The extractive answerer's form; quotation marks inside, paired or not, are then the document's own.
        whole = find_quote(claim[1:-1], passage["text"])
        if whole:
            return whole
    quotes = [next(filter(None, found)) for found in _QUOTES.findall(claim)]
    if not quotes:
        return _supporting_sentence(claim, passage["text"])
    places = [find_quote(quote, passage["text"]) for quote in quotes]
    if any(place is None for place in places):
        return None
    # A true quotation must not carry a wrong number beside it; headings may bring numbers ("§ 3") too.
    around = " ".join([passage["title"], *passage["heading_path"], passage["text"]])
    if not _numbers(_words(_QUOTES.sub(" ", claim))) <= _words(around):
        return None
    return max((place for place in places if place), key=lambda place: place[1] - place[0])


def find_quote(quote: str, passage: str) -> tuple[int, int] | None:
    """Where a quotation stands in a passage, as character offsets.

    White space, case, kinds of quotation marks and hyphens, and division at line ends are forgiven. An ellipsis
    inside the quotation stands for left-out words: its parts must follow one another.
    """
    text, offsets = _normalised(passage)
    start = end = -1
    cursor = 0
    for part in _ELLIPSIS.split(quote):
        wanted = _normalised(part)[0].strip()
        if not wanted:
            continue
        found = _whole_words(text, wanted, cursor)
        if found < 0:
            # English puts the full stop of the answer into the quotation of half a sentence.
            wanted = wanted.rstrip(".,;:!?")
            found = _whole_words(text, wanted, cursor) if wanted else -1
        if found < 0:
            return None
        if start < 0:
            start = offsets[found]
        cursor = found + len(wanted)
        end = offsets[cursor - 1] + 1
    return (start, end) if start >= 0 else None


def _whole_words(text: str, wanted: str, cursor: int) -> int:
    """Where `wanted` stands in `text` without cutting a word or a number: “5 days” is not in “15 days”."""
    while (found := text.find(wanted, cursor)) >= 0:
        end = found + len(wanted)
        before = found and _in_word(text[found - 1]) and _in_word(wanted[0])
        after = end < len(text) and _in_word(text[end]) and _in_word(wanted[-1])
        if not before and not after:
            return found
        cursor = found + 1
    return -1


def _in_word(char: str) -> bool:
    return char.isalnum() or unicodedata.combining(char) > 0


@lru_cache(maxsize=64)
def _normalised(text: str) -> tuple[str, tuple[int, ...]]:
    """Text for comparison, and for each of its characters the offset it came from."""
    out: list[str] = []
    offsets: list[int] = []
    for offset, char in enumerate(text):
        if char.isspace():
            if out and out[-1] != " " and not _divides(out):
                out.append(" ")
                offsets.append(offset)
        elif char not in _INVISIBLE:
            if char.islower() and _divides(out) and text[offset - 1].isspace():
                # "Arbeits- tage" was one word before its line ended; done to quotation and passage alike.
                out.pop()
                offsets.pop()
            for piece in char.lower() if char.isascii() else unicodedata.normalize("NFKD", char).casefold():
                out.append(_ALIKE.get(piece, piece))
                offsets.append(offset)
    return "".join(out), tuple(offsets)


def _divides(out: list[str]) -> bool:
    return len(out) > 1 and out[-1] == "-" and out[-2].isalpha()


_INVISIBLE = frozenset("\u00ad\u200b\u200c\u200d\u2060\ufeff")  # soft hyphen, zero widths
_ALIKE = dict.fromkeys("„“”«»‟", '"') | dict.fromkeys("‘’‚‛`´", "'") | dict.fromkeys("‐‑‒–—−", "-")


def _supporting_sentence(claim: str, passage: str) -> tuple[int, int] | None:
    wanted = _words(claim)
    if not wanted:
        return None
    numbers = _numbers(wanted)
    best: tuple[float, int, int] | None = None
    for have, start, end in _sentences(passage):
        share = len(wanted & have) / len(wanted)
        if numbers <= have and share >= SUPPORT and (best is None or share > best[0]):
            best = (share, start, end)
    return (best[1], best[2]) if best else None


@lru_cache(maxsize=64)
def _sentences(passage: str) -> tuple[tuple[frozenset[str], int, int], ...]:
    """The words of each sentence of a passage, with its place."""
    found = []
    for match in _SENTENCE.finditer(passage):
        left = len(match.group()) - len(match.group().lstrip())
        found.append((_words(match.group()), match.start() + left, match.end()))
    return tuple(found)


@lru_cache(maxsize=256)
def _words(text: str) -> frozenset[str]:
    """Content words: everything of four letters or more, and every number."""
    words = (_number(word) for word in _WORD.findall(text.casefold()))
    return frozenset(word for word in words if len(word) > 3 or any(c.isdigit() for c in word))


def _number(word: str) -> str:
    """A number as German and English agree on it: 1.000 and 1,000 are 1000; 2,5 is 2.5; 12:30 is 12.30."""
    if not word[0].isdigit():
        return word
    if _THOUSANDS.fullmatch(word):
        return re.sub("[.,]", "", word)
    return word.replace(",", ".").replace(":", ".")


def _numbers(words: frozenset[str]) -> frozenset[str]:
    return frozenset(word for word in words if any(c.isdigit() for c in word))


def page_at(page_starts: Sequence[Sequence[int]], offset: int) -> int | None:
    """The page that an offset of a passage stands on; None when the document has no pages."""
    found = None
    for page, start in page_starts:
        if start > offset:
            break
        found = page
    return found
