"""How well the extractive answerer quotes: XQuAD in German, English and across both, with and without evidence.

    .venv-litellm/bin/python -m benchmarks.extractive          measure the articles the weights were not fitted on
    .venv-litellm/bin/python -m benchmarks.extractive --fit    fit the weights on the other half, print and measure them

A question is asked of five passages: its own paragraph, two of the same article and the two most similar (USE) of other
articles, shuffled. Without evidence ("near") the own paragraph is replaced by a third of the same article, ("far") all
five are the most similar ones of other articles.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from litellm_service import extractive, vectors
from litellm_service.sentences import split
from litellm_service.weights import CROSS_LINGUAL, FEATURES, MONOLINGUAL, Weights

SHARED = Path(os.environ.get("NOESIS_SHARED", Path(__file__).parents[1] / "../shared"))
Setting = Literal["present", "near", "far"]
Pair = tuple[str, str]
PAIRS: tuple[Pair, ...] = (("de", "de"), ("en", "en"), ("de", "en"), ("en", "de"))
# All paragraphs of an XQuAD article have one title, so it would be fitted as a sign of the wrong paragraph; in real
# documents the heading often names what is asked. Set by hand.
TITLE = "cosine of heading or title"
TITLE_WEIGHT = 0.5
# A second or third quote should come with about every third answer; across languages the first is less sure.
MEAN_QUOTES = {"MONOLINGUAL": 1.35, "CROSS_LINGUAL": 1.6}
SETTINGS: tuple[Setting, ...] = ("present", "near", "far")


@dataclass(frozen=True)
class Paragraph:
    article: int
    title: str
    text: str


@dataclass(frozen=True)
class Case:
    """One question with its five passages; `gold` and `answer` are the evidence in the passages' language, if any."""

    prompt: extractive.Prompt
    answer: str
    gold: int | None
    span: tuple[int, int]


class Corpus:
    """XQuAD in both languages with the vectors that choose the distractors."""

    def __init__(self, embed: vectors.SentenceVectors) -> None:
        self.paragraphs: dict[str, list[Paragraph]] = {}
        self.questions: dict[str, list[tuple[str, int, str, int]]] = {}
        for language in ("de", "en"):
            data = json.loads((SHARED / f"data/xquad/xquad.{language}.json").read_text(encoding="utf-8"))["data"]
            found = [(index, a["title"], p) for index, a in enumerate(data) for p in a["paragraphs"]]
            self.paragraphs[language] = [Paragraph(index, title, p["context"]) for index, title, p in found]
            self.questions[language] = [
                (qa["question"], number, qa["answers"][0]["text"], qa["answers"][0]["answer_start"])
                for number, (_, _, p) in enumerate(found)
                for qa in p["qas"]
            ]
        self.similar = {
            pair: embed([q[0] for q in self.questions[pair[0]]]) @ embed([p.text for p in self.paragraphs[pair[1]]]).T
            for pair in PAIRS
        }

    def cases(self, pair: Pair, setting: Setting, *, odd: bool) -> Iterator[Case]:
        """The cases of the odd (or even) articles."""
        asked, told = pair
        paragraphs = self.paragraphs[told]
        for index, (question, own, _, _) in enumerate(self.questions[asked]):
            article = paragraphs[own].article
            if article % 2 != odd:
                continue
            _, _, answer, start = self.questions[told][index]
            dice = random.Random(index)
            siblings = [n for n, p in enumerate(paragraphs) if p.article == article and n != own]
            ranked = np.argsort(-self.similar[pair][index])
            others = [int(n) for n in ranked if paragraphs[n].article != article]
            chosen = {
                "present": [own, *dice.sample(siblings, 2), *others[:2]],
                "near": [*dice.sample(siblings, 3), *others[:2]],
                "far": others[:5],
            }[setting]
            dice.shuffle(chosen)
            passages = tuple(
                extractive.Passage(number, paragraphs[n].title.replace("_", " "), paragraphs[n].text)
                for number, n in enumerate(chosen, 1)
            )
            gold = chosen.index(own) + 1 if own in chosen else None
            yield Case(extractive.Prompt(passages, question), answer, gold, (start, start + len(answer)))


def holds_answer(case: Case, candidate: extractive.Candidate) -> bool:
    """True when the sentence has the gold answer in it."""
    start, end = case.span
    sentence = candidate.sentence
    return candidate.passage.number == case.gold and sentence.start < end and start < sentence.end


def token_f1(given: str, gold: str) -> float:
    """F1 of the words of `given` and `gold` (SQuAD's measure)."""
    one, two = (Counter(re.findall(r"\w+", text.lower())) for text in (given, gold))
    shared = sum((one & two).values())
    return 0.0 if not shared else 2 * shared / (sum(one.values()) + sum(two.values()))


def measure(corpus: Corpus, pair: Pair, embed: vectors.SentenceVectors) -> str:
    """One line of the table."""
    hits = first = quoted = answered_total = 0
    f1: list[float] = []
    refused: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for setting in SETTINGS:
        for case in corpus.cases(pair, setting, odd=True):
            chosen = extractive.select(case.prompt, embed)
            total[setting] += 1
            refused[setting] += not chosen
            if setting == "present":
                answered_total += bool(chosen)
                quoted += len(chosen)
                first += bool(chosen) and holds_answer(case, chosen[0])
                hits += any(holds_answer(case, one) for one in chosen)
                f1.append(token_f1(" ".join(one.quote for one in chosen), case.answer))
    empty = refused["near"] + refused["far"]
    return (
        f"{pair[0]}›{pair[1]}  {total['present']:4d}  {hits / total['present']:.3f}  {hits / answered_total:.3f}  "
        f"{first / answered_total:.3f}  {quoted / answered_total:.2f}  {np.mean(f1):.3f}  "
        f"{empty / max(empty + refused['present'], 1):.3f}  {refused['present'] / total['present']:.3f}  "
        f"{refused['near'] / total['near']:.3f}  {refused['far'] / total['far']:.3f}"
    )


HEADER = (
    "q›p  cases  | of all, quote has the answer | of answered | first quote | quotes | F1 | "
    "NO_EVIDENCE precision | wrongly refused | near recall | far recall"
)


def speed(corpus: Corpus) -> str:
    """Milliseconds for a question over five passages of about 800 tokens (3,600 characters), nothing cached."""
    taken: list[float] = []
    counts: list[int] = []
    texts = [p.text for p in corpus.paragraphs["de"]]
    long = [" ".join(texts[start : start + 5])[:3600] for start in range(0, len(texts) - 5, 5)]
    for index in range(5):
        passages = tuple(extractive.Passage(n, "", t) for n, t in enumerate(long[index * 5 : index * 5 + 5], 1))
        embed = vectors.SentenceVectors(vectors.model("use-v3"))
        started = time.perf_counter()
        extractive.select(extractive.Prompt(passages, corpus.questions["de"][index][0]), embed)
        taken.append((time.perf_counter() - started) * 1000)
        started = time.perf_counter()
        extractive.select(extractive.Prompt(passages, corpus.questions["de"][index + 9][0]), embed)
        taken.append((time.perf_counter() - started) * 1000)
        counts.append(sum(len(split(one.text)) for one in passages))
    cold, warm = np.median(taken[::2]), np.median(taken[1::2])
    return f"5 passages of 3,600 characters, {np.mean(counts):.0f} sentences: {cold:.0f} ms, asked again {warm:.0f} ms"


def fit(corpus: Corpus, pairs: tuple[Pair, ...], embed: vectors.SentenceVectors, mean_quotes: float) -> Weights:
    """Logistic regression on the even articles; threshold and margin by search on the same half."""
    rows: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.float64]] = []
    groups: list[tuple[Setting, NDArray[np.float32], NDArray[np.float64]]] = []
    for pair in pairs:
        for setting in SETTINGS:
            for case in corpus.cases(pair, setting, odd=False):
                candidates, quotable = extractive.candidates_of(case.prompt)
                features = extractive.feature_rows(case.prompt, candidates, embed)[quotable]
                holds = np.array([holds_answer(case, candidates[index]) for index in quotable], dtype=np.float64)
                groups.append((setting, features, holds))
                rows.append(features)
                labels.append(holds)
    x = np.column_stack([np.vstack(rows), np.ones(sum(map(len, rows)))]).astype(np.float64)
    y = np.concatenate(labels)
    w = _logistic(x, y, FEATURES.index(TITLE))
    scored = [(setting, np.sort(features @ w[:-1] + w[-1])[::-1]) for setting, features, _ in groups]
    ranked = [(features @ w[:-1] + w[-1], holds) for setting, features, holds in groups if setting == "present"]
    best = max(np.arange(-4, 2, 0.05), key=lambda t: _balance(scored, float(t)))
    margin = max(m for m in np.arange(0.1, 3.0, 0.1) if _mean_quotes(ranked, float(best), float(m)) <= mean_quotes)
    return Weights(
        tuple(round(float(v), 3) for v in w[:-1]),
        round(float(w[-1]), 3),
        round(float(best), 2),
        round(float(margin), 1),
    )


def _logistic(x: NDArray[np.float64], y: NDArray[np.float64], given: int) -> NDArray[np.float64]:
    """Coefficients (the last one is the intercept) by Newton's method with a ridge; column `given` stays as set."""
    w = np.zeros(x.shape[1])
    w[given] = TITLE_WEIGHT
    free = [column for column in range(x.shape[1]) if column != given]
    part = x[:, free]
    ridge = np.diag([1.0] * (len(free) - 1) + [0.0])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ w))
        w[free] += np.linalg.solve((part.T * (p * (1 - p))) @ part + ridge, part.T @ (y - p) - ridge @ w[free])
    return w


def _balance(scored: list[tuple[Setting, NDArray[np.float64]]], threshold: float) -> float:
    """What the threshold is chosen by: a wrong refusal costs three, an answer without near or far evidence one each."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for setting, scores in scored:
        total[setting] += 1
        right[setting] += (scores[0] >= threshold) == (setting == "present")
    return 3 * right["present"] / total["present"] + right["near"] / total["near"] + right["far"] / total["far"]


def _mean_quotes(
    ranked: list[tuple[NDArray[np.float64], NDArray[np.float64]]], threshold: float, margin: float
) -> float:
    counts = [
        min(extractive.MAX_QUOTES, int((scores >= max(threshold, scores.max() - margin)).sum())) for scores, _ in ranked
    ]
    return float(np.mean([count for count in counts if count]))


def main() -> None:
    """Print the table; with --fit the weights before it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true")
    arguments = parser.parse_args()
    embed = vectors.SentenceVectors(vectors.model("use-v3"), capacity=100_000)
    corpus = Corpus(embed)
    if arguments.fit:
        for name, pairs, old in (("MONOLINGUAL", PAIRS[:2], MONOLINGUAL), ("CROSS_LINGUAL", PAIRS[2:], CROSS_LINGUAL)):
            new = fit(corpus, pairs, embed, MEAN_QUOTES[name])
            print(name, new)
            for label, value in zip(FEATURES, new.coefficients, strict=True):
                print(f"    {value:7.3f}  {label}")
            object.__setattr__(old, "__dict__", dict(new.__dict__))
    print(HEADER)
    for pair in PAIRS:
        print(measure(corpus, pair, embed))
    print(speed(corpus))


if __name__ == "__main__":
    main()
