"""Finding words of an answer in a passage: quotations verbatim but for typography, paraphrases by their words. Pure."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

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
_THOUSANDS = re.compile(r"\d{1,3}(?:[.,]\d{3})+")
# A number at the head of a line counts items, unless a month follows: "31. März".
LIST_ITEM = re.compile(
    r"^[ \t]*\d{1,2}[.)][ \t]+(?!jan|feb|m[aä]r|apr|ma[iy]|jun|jul|aug|sep|o[kc]t|nov|de[zc])",
    re.MULTILINE | re.IGNORECASE,
)
# A full stop after a number ends no sentence: "bis zum 31. März", "im 2. Abschnitt".
_SENTENCE = re.compile(r"[^.!?\n]+(?:(?:(?<=\d)\.|[.!?](?!\s+[A-ZÄÖÜ]))[^.!?\n]*)*[.!?]?")
SUPPORT = 0.6
"""Share of a claim's content words that its sentence must carry; a paraphrase keeps its nouns and numbers."""

STITCH_WORDS = 3
"""From so many words on, two halves of a quotation that stand in two passages were sewn together."""


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


def supporting_sentence(claim: str, passage: str, *, any_number: bool = False) -> tuple[int, int] | None:
    """The sentence of a passage that carries most of a claim's words and all its numbers, as character offsets.

    `any_number`: whatever its numbers are; that is how an altered one is told from an invention.
    """
    wanted = words(claim)
    if not wanted:
        return None
    needed = numbers_in(wanted)
    best: tuple[float, int, int] | None = None
    for have, start, end in sentences(passage):
        share = len(wanted & have) / len(wanted)
        if (any_number or needed <= have) and share >= SUPPORT and (best is None or share > best[0]):
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
    words = (_number(word) for word in _WORD.findall(text.casefold()))
    return frozenset(word for word in words if len(word) > 3 or any(c.isdigit() for c in word))


def _number(word: str) -> str:
    """A number as German and English agree on it: 1.000 and 1,000 are 1000; 2,5 is 2.5; 12:30 is 12.30."""
    if not word[0].isdigit():
        return word
    if _THOUSANDS.fullmatch(word):
        return re.sub("[.,]", "", word)
    return word.replace(",", ".").replace(":", ".")


def numbers_in(words: frozenset[str]) -> frozenset[str]:
    """Those of the words that are numbers or carry one."""
    return frozenset(word for word in words if any(c.isdigit() for c in word))
