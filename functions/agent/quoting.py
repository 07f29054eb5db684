"""Finding words of an answer in a passage: quotations verbatim but for typography, paraphrases by their words. Pure."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from functions.agent.measuring import negated, number_of, units_fit

# Every pattern runs in linear time on any answer: no two neighbouring repetitions match the same characters.
# The outermost quotation counts, with what it quotes itself; models also open „ and close ".
QUOTES = re.compile(
    r"""„((?:[^„“”]|„[^„“”]*[“”])+)[“”] | „([^„"]+)" | “((?:[^“”]|“[^“”]*”)+)” | [“”]([^„“”]+)[“”]
    | «([^«»]+)» | »([^«»]+)« | "([^"]+)" """,
    re.VERBOSE,
)
MARKS_OF_QUOTES = frozenset('„“”«»"')
_ELLIPSIS = re.compile(r"\[(?:…|\.\.\.)\]|…|\.\.\.")
_WORD = re.compile(r"\d+(?:[.,:/]\d+)+|\w+")
# A number at the head of a line counts items, unless a month follows: "31. März".
LIST_ITEM = re.compile(
    r"^[ \t]*\d{1,2}[.)][ \t]+(?!jan|feb|m[aä]r|apr|ma[iy]|jun|jul|aug|sep|o[kc]t|nov|de[zc])",
    re.MULTILINE | re.IGNORECASE,
)
# A full stop after a number ends no sentence: "bis zum 31. März", "im 2. Abschnitt".
_SENTENCE = re.compile(r"[^.!?\n]+(?:(?:(?<=\d)\.|[.!?](?!\s+[A-ZÄÖÜ]))[^.!?\n]*)*[.!?]?")
SUPPORT = 0.6
"""Share of a claim's content words that its sentence must carry; a paraphrase keeps its nouns and numbers."""

OMITTED = 300
"""Characters that an ellipsis may stand for: about two sentences. From far apart anything can be put together."""

BEGINNINGS = 20
"""How many places with the first words of a quotation are tried."""

_INSIDE_NUMBERS = frozenset(".,:/^")
_BEFORE_SIGN = frozenset(["", " ", "("])

STITCH_WORDS = 3
"""From so many words on, two halves of a quotation that stand in two passages were sewn together."""


def find_quote(quote: str, passage: str) -> tuple[int, int] | None:
    """Where a quotation stands in a passage, as character offsets.

    White space, case, kinds of quotation marks and hyphens, and division at line ends are forgiven. An ellipsis
    inside the quotation stands for left-out words: its parts must follow one another, at most OMITTED characters apart,
    and no "not" may be among what was left out.
    """
    text, offsets = _normalised(passage)
    parts = [part for part in (_normalised(one)[0].strip() for one in _ELLIPSIS.split(quote)) if part]
    if not parts:
        return None
    begun = -1
    for _ in range(BEGINNINGS):
        place = _part(text, parts[0], begun + 1, len(text))
        if place is None:
            return None
        begun, end = place
        for part in parts[1:]:
            following = _part(text, part, end, min(len(text), end + OMITTED + len(part)))
            if following is None or negated(text[end : following[0]]):
                break
            end = following[1]
        else:
            return offsets[begun], offsets[end - 1] + 1
    return None


def _part(text: str, wanted: str, cursor: int, stop: int) -> tuple[int, int] | None:
    """Where a part of a quotation stands in text[cursor:stop]."""
    found = _whole_words(text, wanted, cursor, stop)
    if found < 0:
        # English puts the full stop of the answer into the quotation of half a sentence.
        wanted = wanted.rstrip(".,;:!?")
        found = _whole_words(text, wanted, cursor, stop) if wanted else -1
    return (found, found + len(wanted)) if found >= 0 else None


def _whole_words(text: str, wanted: str, cursor: int, stop: int) -> int:
    """Where `wanted` stands in `text` without cutting a word or number: “5 days” is not in “15 days” or “1.5 days”."""
    while (found := text.find(wanted, cursor, stop)) >= 0:
        end = found + len(wanted)
        before = found and _in_word(text[found - 1]) and _in_word(wanted[0])
        after = end < len(text) and _in_word(text[end]) and _in_word(wanted[-1])
        if not before and not after and not _cuts_number(text, found, end):
            return found
        cursor = found + 1
    return -1


def _cuts_number(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] begins or ends inside a number (1.5, 12.500, 12:30), or leaves a minus before it."""
    if text[start].isdigit() and start:
        previous, sign = text[start - 1], text[start - 2 : start - 1]
        if (previous in _INSIDE_NUMBERS and sign.isdigit()) or (previous == "-" and sign in _BEFORE_SIGN):
            return True
    return text[end - 1].isdigit() and text[end : end + 1] in _INSIDE_NUMBERS and text[end + 1 : end + 2].isdigit()


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
            if char in _RAISED and out and out[-1].isdigit():
                out.append("^")  # 10³ is not 103
                offsets.append(offset)
            for piece in char.lower() if char.isascii() else unicodedata.normalize("NFKD", char).casefold():
                out.append(_ALIKE.get(piece, piece))
                offsets.append(offset)
    return "".join(out), tuple(offsets)


def _divides(out: list[str]) -> bool:
    return len(out) > 1 and out[-1] == "-" and out[-2].isalpha()


_INVISIBLE = frozenset("\u00ad\u200b\u200c\u200d\u2060\ufeff")  # soft hyphen, zero widths
_RAISED = frozenset("⁰¹²³⁴⁵⁶⁷⁸⁹")
_ALIKE = dict.fromkeys("„“”«»‟", '"') | dict.fromkeys("‘’‚‛`´", "'") | dict.fromkeys("‐‑‒–—−", "-")


def supporting_sentence(claim: str, passage: str, *, any_number: bool = False) -> tuple[int, int] | None:
    """The sentence of a passage that carries most of a claim's words and all its numbers, as character offsets.

    A sentence that denies proves no claim that does not, and the other way round; numbers keep their units.
    `any_number`: whatever its numbers are; that is how an altered one is told from an invention.
    """
    wanted = words(claim)
    if not wanted:
        return None
    needed, denies = numbers_in(wanted), negated(claim)
    best: tuple[float, int, int] | None = None
    for have, start, end in sentences(passage):
        share = len(wanted & have) / len(wanted)
        if share < SUPPORT or (best is not None and share <= best[0]) or not (any_number or needed <= have):
            continue
        sentence = passage[start:end]
        if negated(sentence) is denies and (any_number or units_fit(claim, sentence)):
            best = (share, start, end)
    return (best[1], best[2]) if best else None


@lru_cache(maxsize=64)
def sentences(passage: str) -> tuple[tuple[frozenset[str], int, int], ...]:
    """The words of each sentence of a passage, with its place."""
    found = []
    for match in _SENTENCE.finditer(passage):
        left = len(match.group()) - len(match.group().lstrip())
        found.append((words(match.group()), match.start() + left, match.end()))
    return tuple(found)


@lru_cache(maxsize=256)
def words(text: str) -> frozenset[str]:
    """Content words: everything of four letters or more, and every number."""
    words = (number_of(word) if word[0].isdigit() else word for word in _WORD.findall(text.casefold()))
    return frozenset(word for word in words if len(word) > 3 or any(c.isdigit() for c in word))


def numbers_in(words: frozenset[str]) -> frozenset[str]:
    """Those of the words that are numbers or carry one."""
    return frozenset(word for word in words if any(c.isdigit() for c in word))
