"""Proof: which words of an answer stand in the passages it cites. Pure: text in, verified text out.

A claim is a piece of the answer that ends in citation marks like [1]. It is proven when what it quotes stands in the
cited passages and no number beside the quotation is foreign to them, or, without a quotation, when one sentence of the
passage carries most of its words and every number in it with its unit, and denies as it does. A claim that is not
proven loses its mark and is labelled. A sentence without a mark gets that of the passage which carries it, or is
labelled too; a passage that proves nothing is not cited.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from functions.agent.measuring import units_fit
from functions.agent.quoting import (
    LIST_ITEM,
    MARKS_OF_QUOTES,
    QUOTES,
    STITCH_WORDS,
    find_quote,
    numbers_in,
    supporting_sentence,
    words,
)
from functions.agent.state import CitationState, PassageState
from functions.agent.wording import language_of

# [1], and how some models write several, [1, 2] or [1-3].
_ONE = r"\[\d{1,3}(?:\s?[,;–-]\s?\d{1,3}){0,9}\]"
_MARKS = re.compile(rf"{_ONE}(?:\s*{_ONE})*")
_NUMBERS = re.compile(r"(\d{1,3})(?:\s?[–-]\s?(\d{1,3}))?")
# Other habits of models: 【1†source】, [^1].
_HABITS = re.compile(r"【(\d{1,3})(?:[†:][^【】]{0,99})?】|\[\^(\d{1,3})\]")
# Sentences of the answer itself: a full stop after a number or a single letter ("31. März", "z. B.") ends none.
_SENTENCE_END = re.compile(r"(?<![\d.])(?<!\b\w)[.!?]+(?=\s+[^a-zäöüß\s])|\n+")
CLAIM_WORDS = 3
"""From so many content words on, a sentence without a mark says something that wants proof."""

Finding = str
"""invented, altered-number, mixed-sources, wrong-number, unsupported, unmarked: why a claim was labelled."""


@dataclass(frozen=True, slots=True)
class Verified:
    """An answer after checking: the text with marks renumbered from 1, its citations, and what could not be proven.

    `results`: claims proven by the result of a tool, which is no document and has no citation.
    """

    text: str
    citations: tuple[CitationState, ...]
    unproven: int
    findings: tuple[Finding, ...] = ()
    results: int = 0


Proof = tuple[PassageState, tuple[int, int]]
"""A passage and where in its text the proof stands."""


@dataclass
class _Checking:
    """The answer as it is put together again."""

    known: Mapping[int, PassageState]
    label: str
    out: list[str] = field(default_factory=list)
    citations: list[CitationState] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    results: int = 0

    def unproven(self, finding: Finding) -> None:
        """Label what was just written."""
        self.findings.append(finding)
        self.out.append(f" {self.label}")

    def sentences(self, text: str) -> None:
        """Write sentences that have no mark; what a passage carries gets its mark, what none carries is labelled."""
        for sentence, gap in _split(text):
            if _claims(sentence):
                self._unmarked(sentence)
            else:
                self.out.append(sentence)
                if not self._known_numbers(sentence):
                    self.unproven("unmarked")
            self.out.append(gap)

    def _unmarked(self, sentence: str) -> None:
        """Write a claim to which the model has set no mark: unnamed, its source could not be closed or deleted."""
        proofs = (proof for passage in self.known.values() for proof in _prove(sentence, [passage]))
        proof = next(proofs, None)
        if proof is None:
            self.out.append(sentence)
            self.unproven("unmarked")
        elif proof[0]["chunk_id"]:
            body = sentence.rstrip(".!?")
            self.out.append(f"{body} [{_cite(self.citations, proof)}]{sentence[len(body) :]}")
        else:
            self.out.append(sentence)

    def _known_numbers(self, sentence: str) -> bool:
        """Whether a sentence too short for a claim ("It is 900 euros.") has its numbers from a passage."""
        bare = LIST_ITEM.sub("", sentence)
        numbers = numbers_in(words(bare))
        return not numbers or any(
            numbers <= words(whole) and units_fit(bare, whole) for whole in map(_whole, self.known.values())
        )

    def claim(self, claim: str, marks: list[int]) -> None:
        """Write a claim with the marks that hold."""
        self.out.append(claim)
        cited = [self.known[number] for number in marks if number in self.known]
        proofs = _prove(claim, cited)
        own: list[str] = []
        for proof in proofs:
            if proof[0]["chunk_id"]:
                own.append(f"[{_cite(self.citations, proof)}]")
            else:
                self.results += 1
                own.append(f"({proof[0]['title']})")
        if own:
            self.out.append(" " + " ".join(dict.fromkeys(own)))
        else:
            self.unproven(_why(claim, cited, list(self.known.values())))


def verify(answer: str, passages: Sequence[PassageState], unproven_label: str) -> Verified:
    """Check every claim of an answer against its passages."""
    answer = _HABITS.sub(lambda mark: f"[{mark[1] or mark[2]}]", answer)
    checking = _Checking({passage["number"]: passage for passage in passages}, unproven_label)
    position = 0
    for marks in _MARKS.finditer(answer):
        before, claim = _last_sentence(answer[position : marks.start()].rstrip())
        position = marks.end()
        checking.sentences(before)
        checking.claim(claim, _numbers_of(marks.group()))
    tail = answer[position:]
    if position:
        checking.sentences(tail)
    else:
        checking.out.append(tail)
        if words(tail):
            checking.unproven("unmarked")
    text = "".join(checking.out).strip()
    findings = tuple(checking.findings)
    return Verified(text, tuple(checking.citations), len(findings), findings, checking.results)


def _numbers_of(marks: str) -> list[int]:
    """The passages that marks name, each once, in their order."""
    found: list[int] = []
    for first, last in _NUMBERS.findall(marks):
        found += range(int(first), min(int(last or first), int(first) + 20) + 1)
    return list(dict.fromkeys(found))


def _blind(text: str) -> str:
    """The text with its quotations blotted out, as long as before: full stops inside them end no sentence."""
    return QUOTES.sub(lambda match: "x" * len(match.group()), text)


def _split(text: str) -> list[tuple[str, str]]:
    """Sentences, each with the white space behind it; together they are the text."""
    found = []
    start = 0
    for end in _SENTENCE_END.finditer(_blind(text)):
        stop = end.start() if text[end.start()] == "\n" else end.end()
        found.append((text[start:stop], text[stop : end.end()]))
        start = end.end()
    found.append((text[start:], ""))
    return found


def _last_sentence(text: str) -> tuple[str, str]:
    """What stands before a claim, and the claim: the last sentence, with those before it that quote."""
    parts = _split(text)
    first = len(parts) - 1
    while first > 0 and not parts[first][0].strip():
        first -= 1
    while first > 0 and (QUOTES.search(parts[first - 1][0]) or not _claims(parts[first - 1][0])):
        first -= 1
    return "".join(a + b for a, b in parts[:first]), "".join(a + b for a, b in parts[first:])


def _claims(sentence: str) -> bool:
    """Whether a sentence says something that wants proof: not a heading, a question, or what leads to a list."""
    stripped = sentence.strip()
    return not stripped.endswith((":", "?")) and not stripped.startswith("#") and len(words(stripped)) >= CLAIM_WORDS


def _cite(citations: list[CitationState], proof: Proof) -> int:
    passage, (start, end) = proof
    for known in citations:
        if (known["passage"], known["start"], known["end"]) == (passage["number"], start, end):
            return known["number"]
    number, quote = len(citations) + 1, passage["text"][start:end]
    citations.append({"number": number, "passage": passage["number"], "quote": quote, "start": start, "end": end})
    return number


def _prove(claim: str, cited: Sequence[PassageState]) -> list[Proof]:
    """Where the cited passages prove the claim, as character offsets in each; nothing when they do not."""
    claim = LIST_ITEM.sub("", claim).strip()
    if claim[:1] in MARKS_OF_QUOTES and claim[-1:] in MARKS_OF_QUOTES and not _says_nothing(claim[1:-1]):
        # The extractive answerer's form; quotation marks inside, paired or not, are then the document's own.
        whole = [(passage, place) for passage in cited if (place := find_quote(claim[1:-1], passage["text"]))]
        if whole:
            return whole
    quotes = _quotes_of(claim)
    if all(map(_says_nothing, quotes)):
        return [(passage, place) for passage in cited if (place := _supports(claim, passage))]
    proofs: list[Proof] = []
    for passage in cited:
        places = [place for quote in quotes if (place := find_quote(quote, passage["text"]))]
        if places:
            proofs.append((passage, max(places, key=lambda place: place[1] - place[0])))
    # Each quotation stands in one of the cited passages; a claim may rest on two of them.
    if not all(any(find_quote(quote, passage["text"]) for passage, _ in proofs) for quote in quotes):
        return []
    # A true quotation must not carry a wrong number beside it.
    around, own = " ".join(_whole(passage) for passage, _ in proofs), QUOTES.sub(" ", claim)
    return proofs if numbers_in(words(own)) <= words(around) and units_fit(own, around) else []


def _supports(claim: str, passage: PassageState) -> tuple[int, int] | None:
    """Where a passage carries a claim that quotes nothing."""
    place = supporting_sentence(claim, passage["text"])
    if place is None and not passage["chunk_id"]:
        # The result of a tool is often a bare number: what counts is that the claim says the same one.
        numbers = numbers_in(words(claim))
        told = passage["text"]
        return (0, len(told)) if numbers and numbers <= words(told) and units_fit(claim, told) else None
    return place


def _whole(passage: PassageState) -> str:
    """A passage with what stands above it: headings may bring numbers ("§ 3") too."""
    return " ".join([passage["title"], *passage["heading_path"], passage["text"]])


_NOTHING = re.compile(
    r"der|die|das|den|dem|des|eine?[mnrs]?|und|oder|i[nms]|a[nm]|auf|zu[mr]?|vo[nm]|mit|für|bei|ist|sind|es|er|sie"
    r"|the|an?|and|or|of|on|at|to|for|is|are|be|by|it|this|that|as|with|from"
)


def _says_nothing(quote: str) -> bool:
    """Whether a quotation holds only words that stand in every text: it proves nothing."""
    return all(_NOTHING.fullmatch(word) for word in re.findall(r"\w+", quote.casefold()))


def _quotes_of(claim: str) -> list[str]:
    return [next(filter(None, found)) for found in QUOTES.findall(claim)]


def _why(claim: str, cited: Sequence[PassageState], known: Sequence[PassageState]) -> Finding:
    """What is wrong with a claim that is not proven."""
    if not cited:
        return "wrong-number"
    others = [passage for passage in known if passage not in cited]
    if others and _prove(claim, others):
        return "wrong-number"
    quotes = _quotes_of(claim)
    if not quotes:
        near = any(supporting_sentence(claim, passage["text"], any_number=True) for passage in cited)
        return "altered-number" if near else "unsupported"
    lost = [quote for quote in quotes if not any(find_quote(quote, passage["text"]) for passage in cited)]
    if not lost or any(_without_numbers(quote, cited) for quote in lost):
        return "altered-number"
    return "mixed-sources" if any(_stitched(quote, known) for quote in lost) else "invented"


_NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*")


def _without_numbers(quote: str, passages: Sequence[PassageState]) -> bool:
    """Whether a quotation stands there with other numbers."""
    if not _NUMBER.search(quote):
        return False
    blank = _NUMBER.sub("0", quote)
    return any(find_quote(blank, _NUMBER.sub("0", passage["text"])) for passage in passages)


def _stitched(quote: str, passages: Sequence[PassageState]) -> bool:
    """Whether a quotation begins in one passage and ends in another."""
    parts = quote.split()

    def stands(piece: list[str]) -> bool:
        return any(find_quote(" ".join(piece), passage["text"]) for passage in passages)

    low, high = 0, len(parts)
    while low < high:  # the longest beginning that stands somewhere: shorter ones do too
        middle = (low + high + 1) // 2
        low, high = (middle, high) if stands(parts[:middle]) else (low, middle - 1)
    return STITCH_WORDS <= low <= len(parts) - STITCH_WORDS and stands(parts[low:])


def foreign_language(draft: str, language: str) -> bool:
    """Whether the words of an answer, without what it quotes, are in the other language (`de`, `en`)."""
    own = _MARKS.sub(" ", QUOTES.sub(" ", draft))
    return len(words(own)) >= CLAIM_WORDS and language_of(own, default=language) != language


@dataclass(frozen=True, slots=True)
class Place:
    """Where a quotation stands: the chunk, the offsets in its text, what it is there, and the page."""

    chunk_id: str
    start: int
    end: int
    quote: str
    heading_path: tuple[str, ...]
    page: int | None


def placed(passage: PassageState, start: int, end: int) -> Place:
    """The chunk of a passage that `text[start:end]` is cited from: the one with most of it, which is then the quote."""
    text, parts = passage["text"], passage.get("parts") or []
    if not parts:
        page = page_at(passage["page_starts"], start)
        return Place(passage["chunk_id"], start, end, text[start:end], tuple(passage["heading_path"]), page)
    # The chunk that was found comes before its neighbours when both have it whole.
    ordered = sorted(parts, key=lambda one: one["chunk_id"] != passage["chunk_id"])
    part = max(ordered, key=lambda one: min(end, one["end"]) - max(start, one["start"]))
    first, last = max(start, part["start"]), min(end, part["end"])
    begin = first - part["start"]
    return Place(
        part["chunk_id"],
        begin,
        last - part["start"],
        text[first:last],
        tuple(part["heading_path"]),
        page_at(part["page_starts"], begin),
    )


def page_at(page_starts: Sequence[Sequence[int]], offset: int) -> int | None:
    """The page that an offset of a passage stands on; None when the document has no pages."""
    found = None
    for page, start in page_starts:
        if start > offset:
            break
        found = page
    return found


__all__ = ["Place", "Verified", "find_quote", "foreign_language", "page_at", "placed", "verify"]
