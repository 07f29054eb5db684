"""The extractive answerer: quotes the sentences of the passages that answer the question, or says NO_EVIDENCE. Pure.

It writes nothing of its own but quotation marks and citations, so it cannot invent anything and instructions hidden
in a passage cannot move it: they are at most quoted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import unescape

import numpy as np
from numpy.typing import NDArray

from litellm_service.sentences import Sentence, split
from litellm_service.weights import CROSS_LINGUAL, MONOLINGUAL, Weights
from litellm_service.words import (
    Language,
    answer_type,
    fits_type,
    language_of,
    names_and_numbers,
    question_stems,
    stems,
)

Embed = Callable[[Sequence[str]], NDArray[np.float32]]

NO_EVIDENCE = "NO_EVIDENCE"
WITHOUT_PASSAGES: Mapping[Language, str] = {
    "de": "Ich kann nur aus mitgegebenen Textstellen zitieren, und diese Anfrage enthält keine.",
    "en": "I can only quote from passages that come with a question, and this request has none.",
}
MAX_QUOTES = 3
# Fewer characters than this are no sentence worth quoting ("Ja.", "a) und").
MIN_SENTENCE_CHARS = 15

_PASSAGES = re.compile(r"<passages>(.*?)</passages>", re.DOTALL)
_PASSAGE = re.compile(r'<passage\s+n="(\d{1,4})"(?:\s+title="([^"]*)")?[^>]*>(.*?)</passage>', re.DOTALL)
_QUESTION = re.compile(r"<question>(.*?)</question>", re.DOTALL)
_QUOTES = {"&quot;": '"', "&apos;": "'"}
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Passage:
    """One numbered passage of the prompt, unescaped."""

    number: int
    title: str
    text: str


@dataclass(frozen=True)
class Prompt:
    """What the answerer reads of a conversation."""

    passages: tuple[Passage, ...]
    question: str


@dataclass(frozen=True)
class Candidate:
    """A sentence that could be quoted."""

    passage: Passage
    sentence: Sentence

    @property
    def quote(self) -> str:
        """The sentence with every run of whitespace as one space."""
        return _SPACE.sub(" ", self.sentence.text).strip()


@dataclass(frozen=True)
class Scored:
    """A candidate and its score: a log-odds, 0 at even chances that the sentence holds the answer."""

    candidate: Candidate
    score: float


def read_prompt(messages: Sequence[Mapping[str, object]]) -> Prompt | None:
    """Passages and question of the last user message; None when it does not have both."""
    content = _last_user_content(messages)
    # The last ones: what a passage quotes is escaped, what stands before them is instructions.
    blocks, questions = _PASSAGES.findall(content), _QUESTION.findall(content)
    if not blocks or not questions or not questions[-1].strip():
        return None
    passages = tuple(
        Passage(int(number), unescape(title, _QUOTES), unescape(text, _QUOTES))
        for number, title, text in _PASSAGE.findall(blocks[-1])
    )
    return Prompt(passages, unescape(questions[-1], _QUOTES).strip())


def answer(messages: Sequence[Mapping[str, object]], embed: Embed) -> str:
    """The answer to a chat: quotes with citations, NO_EVIDENCE, or one sentence when no passages came along.

    `embed` gives one L2-normalised row for each text.
    """
    prompt = read_prompt(messages)
    if prompt is None:
        return WITHOUT_PASSAGES[language_of(_last_user_content(messages))]
    return render(select(prompt, embed), language_of(prompt.question))


def select(prompt: Prompt, embed: Embed) -> list[Candidate]:
    """The one to three sentences to quote, in the order of the passages; empty when nothing is good enough."""
    scored, weights = score(prompt, embed)
    if not scored or scored[0].score < weights.threshold:
        return []
    chosen = [scored[0]]
    for other in scored[1:]:
        if len(chosen) == MAX_QUOTES or other.score < max(weights.threshold, scored[0].score - weights.margin):
            break
        if all(other.candidate.quote != one.candidate.quote for one in chosen):
            chosen.append(other)
    return [one.candidate for one in chosen]


def render(chosen: Sequence[Candidate], language: Language) -> str:
    """One line for each quote, „…“ for German and "…" for English, followed by its citation."""
    if not chosen:
        return NO_EVIDENCE
    opening, closing = ("„", "“") if language == "de" else ('"', '"')
    return "\n".join(f"{opening}{one.quote}{closing} [{one.passage.number}]" for one in chosen)


def score(prompt: Prompt, embed: Embed) -> tuple[list[Scored], Weights]:
    """Every candidate with its score, best first, and the weights that were used."""
    candidates, quotable = candidates_of(prompt)
    if not quotable:
        return [], MONOLINGUAL
    weights = _weights_for(prompt)
    features = feature_rows(prompt, candidates, embed)[quotable]
    scores = features @ np.array(weights.coefficients) + weights.intercept
    order = np.argsort(-scores, kind="stable")
    return [Scored(candidates[quotable[i]], float(scores[i])) for i in order], weights


def candidates_of(prompt: Prompt) -> tuple[list[Candidate], list[int]]:
    """Every sentence of the passages in order, and the indices of those that may be quoted."""
    candidates = [Candidate(passage, sentence) for passage in prompt.passages for sentence in split(passage.text)]
    quotable = [
        index
        for index, one in enumerate(candidates)
        if one.sentence.kind != "heading" and len(one.quote) >= MIN_SENTENCE_CHARS and not one.quote.endswith("?")
    ]
    return candidates, quotable


def _weights_for(prompt: Prompt) -> Weights:
    """Shared words say much within a language and nothing across languages, so each case has its own weights."""
    asked = language_of(prompt.question)
    same = sum(language_of(passage.text) == asked for passage in prompt.passages)
    return MONOLINGUAL if same * 2 >= len(prompt.passages) else CROSS_LINGUAL


def feature_rows(prompt: Prompt, candidates: Sequence[Candidate], embed: Embed) -> NDArray[np.float32]:
    """One row for each candidate, columns as in `weights.FEATURES`."""
    titles = [one.sentence.heading or one.passage.title for one in candidates]
    distinct = sorted({title for title in titles if title})
    vectors = embed([prompt.question, *(one.quote for one in candidates), *distinct])
    question, sentences = vectors[0], vectors[1 : 1 + len(candidates)]
    of_title = {title: float(vectors[1 + len(candidates) + i] @ question) for i, title in enumerate(distinct)}
    cosine = sentences @ question
    before, after = _neighbours(candidates)
    lexical = _lexical_rows(prompt.question, candidates)
    share = lexical[:, 0]
    wanted = answer_type(prompt.question)
    typed = np.array([fits_type(wanted, one.quote, prompt.question) for one in candidates])
    counted = wanted in ("number", "time")
    number = np.array([one.passage.number for one in candidates])
    best_of_passage = np.array([cosine[number == n].max() for n in number])
    return np.column_stack(
        [
            cosine,
            np.where(before >= 0, cosine[before], 0.0),
            np.where(after >= 0, cosine[after], 0.0),
            best_of_passage,
            np.array([of_title.get(title, 0.0) for title in titles]),
            lexical,
            np.where(before >= 0, share[before], 0.0),
            np.where(after >= 0, share[after], 0.0),
            typed * counted,
            typed * (not counted),
            np.log([max(len(one.quote), 1) for one in candidates]) - 4.5,
        ]
    ).astype(np.float32)


def _neighbours(candidates: Sequence[Candidate]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Index of the sentence before and after each one in the same passage, -1 for none."""
    count = len(candidates)
    numbers = np.array([one.passage.number for one in candidates])
    index = np.arange(count)
    same = numbers[1:] == numbers[:-1]
    before = np.where(np.concatenate([[False], same]), index - 1, -1)
    after = np.where(np.concatenate([same, [False]]), index + 1, -1)
    return before, after


def _lexical_rows(question: str, candidates: Sequence[Candidate]) -> NDArray[np.float64]:
    """Per sentence: shares of the question's rare words, the rarest one, names, and the share in the whole passage.

    A sentence has the words of its heading too ("Kündigung": "Sie beträgt drei Monate.").
    """
    asked = sorted(question_stems(question))
    sentences = [f"{one.sentence.heading} {one.quote}".lower() for one in candidates]
    found = [stems(sentence) for sentence in sentences]
    # A stem inside a word counts too: German compounds ("frist" in "Kündigungsfrist").
    has = np.array(
        [
            [word in words or (len(word) > 4 and word in sentence) for word in asked]
            for sentence, words in zip(sentences, found, strict=True)
        ],
        dtype=np.float64,
    ).reshape(len(sentences), len(asked))
    rarity = np.log(1 + (len(sentences) + 1) / (has.sum(axis=0) + 0.5))
    total, highest = rarity.sum() or 1.0, rarity.max(initial=0.0) or 1.0
    numbers = np.array([one.passage.number for one in candidates])
    in_passage = np.array([has[numbers == number].max(axis=0) @ rarity / total for number in numbers])
    marks = names_and_numbers(question)
    named = [sum(mark in sentence for mark in marks) / len(marks) if marks else 0.0 for sentence in sentences]
    return np.column_stack([has @ rarity / total, (has * rarity).max(axis=1, initial=0.0) / highest, named, in_passage])


def _last_user_content(messages: Sequence[Mapping[str, object]]) -> str:
    """Text of the last user message; text parts of a multi-part message are joined."""
    for message in reversed(messages):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                parts = (part.get("text") for part in content if isinstance(part, dict))
                return "\n".join(part for part in parts if isinstance(part, str))
            return content if isinstance(content, str) else ""
    return ""
