"""Measures of a ranking and of answers: nDCG, recall, reciprocal rank, AUC, exact match, F1; with confidence intervals.

Pure: numbers in, numbers out.
"""

from __future__ import annotations

import math
import random
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Grades = Mapping[Any, float]
"""What is relevant to a question, and how much (> 0)."""

RESAMPLES = 1_000
"""Bootstrap samples; with a thousand the ends of a 95 % interval move by less than a tenth of its width."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and the ends of its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def ndcg(ranking: Sequence[Hashable], relevant: Grades, k: int = 10) -> float:
    """Normalised discounted cumulative gain of the first `k`, 0 to 1; 0 when nothing is relevant.

    Linear gains, logarithmic discount (Järvelin, Kekäläinen: Cumulated gain-based evaluation, TOIS 2002). An item that
    is ranked twice counts once.
    """
    gain = sum(relevant.get(item, 0.0) / math.log2(rank + 2) for rank, item in enumerate(_once(ranking)[:k]))
    best = sorted(relevant.values(), reverse=True)[:k]
    ideal = sum(grade / math.log2(rank + 2) for rank, grade in enumerate(best))
    return gain / ideal if ideal else 0.0


def recall(ranking: Sequence[Hashable], relevant: Grades, k: int = 10) -> float:
    """Share of what is relevant among the first `k`, 0 to 1; 0 when nothing is relevant."""
    return len(set(_once(ranking)[:k]) & set(relevant)) / len(relevant) if relevant else 0.0


def reciprocal_rank(ranking: Sequence[Hashable], relevant: Grades, k: int = 10) -> float:
    """One divided by the rank of the first relevant item among the first `k`; 0 when there is none."""
    return next((1 / rank for rank, item in enumerate(_once(ranking)[:k], start=1) if item in relevant), 0.0)


def _once(ranking: Sequence[Hashable]) -> list[Hashable]:
    return list(dict.fromkeys(ranking))


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Mann-Whitney U by ranks. ValueError when one of both is empty.
    """
    if not positive or not negative:
        raise ValueError("AUC needs scores of both kinds")
    scores = sorted([(score, True) for score in positive] + [(score, False) for score in negative])
    wins = 0.0
    below = 0  # negatives that score less than the present group of equals
    start = 0
    while start < len(scores):
        end = start
        while end < len(scores) and scores[end][0] == scores[start][0]:
            end += 1
        hits = sum(is_positive for _, is_positive in scores[start:end])
        misses = end - start - hits
        wins += hits * (below + misses / 2)
        below += misses
        start = end
    return wins / (len(positive) * len(negative))


def keeping(positive: Sequence[float], share: float) -> float:
    """The highest threshold that at least `share` (0 to 1) of the positives reach. ValueError without positives."""
    if not positive:
        raise ValueError("a threshold needs scores")
    ordered = sorted(positive)
    return ordered[min(math.floor((1 - share) * len(ordered) + 1e-9), len(ordered) - 1)]


def estimate(values: Sequence[float], *, seed: int = 1337) -> Estimate:
    """Mean with its 95 % percentile bootstrap interval; zeros for no values. The same input gives the same interval."""
    return _bootstrap(list(values), seed)


def difference(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 1337) -> Estimate:
    """Mean of the paired differences `ours - theirs`, question by question, with its interval.

    An interval that does not contain 0 means that one setting is better, not that it was lucky. ValueError for
    different lengths.
    """
    return _bootstrap([a - b for a, b in zip(ours, theirs, strict=True)], seed)


def _bootstrap(values: list[float], seed: int) -> Estimate:
    if not values:
        return Estimate(0.0, 0.0, 0.0)
    dice = random.Random(seed)  # noqa: S311 # resampling, not secrets
    means = sorted(sum(dice.choices(values, k=len(values))) / len(values) for _ in range(RESAMPLES))
    return Estimate(sum(values) / len(values), means[int(0.025 * RESAMPLES)], means[math.ceil(0.975 * RESAMPLES) - 1])


_ARTICLES = re.compile(r"\b(a|an|the|der|die|das|den|dem|des|ein|eine|einen|einem|einer|eines)\b")
_MARKS = string.punctuation + "„“”‚‘’«»–—…"
_DELETED = str.maketrans(dict.fromkeys(_MARKS))
_PARTING = re.compile(rf"(?<!\d)[{re.escape(_MARKS)}]|[{re.escape(_MARKS)}](?!\d)|(?<=\d)[^\w\s.,](?=\d)")
"""Marks between words; a point or comma between two digits belongs to the number: 5 does not stand in 3.5."""


def exact_match(answer: str, gold: Sequence[str]) -> float:
    """1 when the answer is one of the expected ones after SQuAD's normalisation, else 0."""
    return _over(answer, gold, lambda given, wanted: float(given == wanted))


def answer_f1(answer: str, gold: Sequence[str]) -> float:
    """Best harmonic mean of precision and recall of words against one of the expected answers, 0 to 1.

    As the evaluation script of SQuAD 1.1 does it, with German articles and quotation marks added.
    """
    return _over(answer, gold, _f1)


def holds_answer(answer: str, gold: Sequence[str]) -> float:
    """1 when the words of an expected answer stand side by side in the answer, else 0.

    Case and articles count as little as in exact match; marks part words, so that "Rollo's" holds "Rollo".
    """
    given = f" {' '.join(_parted(answer))} "
    wanted = (" ".join(_parted(one)) for one in gold)
    return float(any(words and f" {words} " in given for words in wanted))


def _over(answer: str, gold: Sequence[str], measure: Callable[[list[str], list[str]], float]) -> float:
    return max((measure(_words(answer), _words(wanted)) for wanted in gold), default=0.0)


def _words(text: str) -> list[str]:
    """As `normalize_answer` of SQuAD's evaluate-v1.1.py: lower case, without punctuation, without articles."""
    return _ARTICLES.sub(" ", _composed(text).translate(_DELETED)).split()


def _parted(text: str) -> list[str]:
    return _ARTICLES.sub(" ", _PARTING.sub(" ", _composed(text))).split()


def _composed(text: str) -> str:
    """In lower case; "ü" is one letter, however it was written."""
    return unicodedata.normalize("NFC", text).lower()


def _f1(given: list[str], wanted: list[str]) -> float:
    same = sum((Counter(given) & Counter(wanted)).values())
    return 2 * same / (len(given) + len(wanted)) if same else float(given == wanted)
