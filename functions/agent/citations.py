"""Proof: which words of an answer stand in the passages it cites. Pure: text in, verified text out.

A claim is a piece of the answer that ends in citation marks like [1]. It is proven when what it quotes stands in the
cited passage, or, without a quotation, when one sentence of the passage carries most of its words and every number
in it. A claim that is not proven loses its mark and is labelled; a passage that proves nothing is not cited.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from functions.agent.state import CitationState, PassageState

_MARKS = re.compile(r"(?:\s*\[\d{1,3}\])+")
_MARK = re.compile(r"\[(\d{1,3})\]")
_QUOTES = re.compile(r"[„“\"«»”]([^„“\"«»”]{3,}?)[“”\"»«]")
_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?](?!\s+[A-ZÄÖÜ])[^.!?\n]*)*[.!?]?")
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
        claim = answer[position : marks.start()]
        position = marks.end()
        out.append(claim)
        own = []
        for number in dict.fromkeys(int(n) for n in _MARK.findall(marks.group())):
            passage = known.get(number)
            place = _prove(claim, passage["text"]) if passage else None
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


def _prove(claim: str, passage: str) -> tuple[int, int] | None:
    """Where the passage proves the claim, as character offsets, or None."""
    quotes = _QUOTES.findall(claim)
    if quotes:
        places = [find_quote(quote, passage) for quote in quotes]
        if any(place is None for place in places):
            return None
        return max((place for place in places if place), key=lambda place: place[1] - place[0])
    return _supporting_sentence(claim, passage)


def find_quote(quote: str, passage: str) -> tuple[int, int] | None:
    """Where a quotation stands in a passage, as character offsets; white space, case and quotation marks are forgiven.

    An ellipsis inside the quotation stands for left-out words: its parts must follow one another.
    """
    text, offsets = _normalised(passage)
    start = end = -1
    cursor = 0
    for part in re.split(r"\s*(?:…|\.\.\.|\[…\]|\[\.\.\.\])\s*", quote):
        wanted = _normalised(part)[0].strip()
        if not wanted:
            continue
        found = _whole_words(text, wanted, cursor)
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
        before = found and text[found - 1].isalnum() and wanted[0].isalnum()
        after = end < len(text) and text[end].isalnum() and wanted[-1].isalnum()
        if not before and not after:
            return found
        cursor = found + 1
    return -1


def _normalised(text: str) -> tuple[str, list[int]]:
    """Text for comparison, and for each of its characters the offset it came from."""
    out: list[str] = []
    offsets: list[int] = []
    space = True
    for offset, char in enumerate(text):
        if char.isspace():
            if not space:
                out.append(" ")
                offsets.append(offset)
            space = True
            continue
        for piece in unicodedata.normalize("NFKC", char).casefold():
            out.append(_ALIKE.get(piece, piece))
            offsets.append(offset)
        space = False
    return "".join(out), offsets


_ALIKE = dict.fromkeys("„“”«»‟", '"') | dict.fromkeys("‘’‚‛`´", "'") | dict.fromkeys("‐‑‒–—−", "-")


def _supporting_sentence(claim: str, passage: str) -> tuple[int, int] | None:
    wanted = _words(claim)
    if not wanted:
        return None
    numbers = {word for word in wanted if any(c.isdigit() for c in word)}
    best: tuple[float, int, int] | None = None
    for match in _SENTENCE.finditer(passage):
        have = _words(match.group())
        if not numbers <= have:
            continue
        share = len(wanted & have) / len(wanted)
        if share >= SUPPORT and (best is None or share > best[0]):
            left = len(match.group()) - len(match.group().lstrip())
            best = (share, match.start() + left, match.end())
    return (best[1], best[2]) if best else None


def _words(text: str) -> set[str]:
    """Content words: everything of four letters or more, and every number."""
    return {w for w in _WORD.findall(text.casefold()) if len(w) > 3 or any(c.isdigit() for c in w)}
