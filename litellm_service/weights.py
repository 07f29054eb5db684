"""Weights of the extractive answerer: two logistic regressions, fitted by `python -m benchmarks.extractive --fit`."""

from __future__ import annotations

from dataclasses import dataclass

FEATURES = (
    "cosine of question and sentence",
    "cosine of the sentence before",
    "cosine of the sentence after",
    "best cosine in the passage",
    "cosine of heading or title",
    "share of the question's words, rare ones weigh more",
    "rarest shared word",
    "share of the question's names and numbers",
    "share of the question's words in the whole passage",
    "word share of the sentence before",
    "word share of the sentence after",
    "has the number or time asked for",
    "has a person or place when asked for one",
    "length (log characters)",
)


@dataclass(frozen=True)
class Weights:
    """A score is features @ coefficients + intercept: the log-odds that a sentence holds the answer.

    Below `threshold` nothing is quoted; a second and third quote may be at most `margin` below the best.
    """

    coefficients: tuple[float, ...]
    intercept: float
    threshold: float
    margin: float


# XQuAD, the articles not fitted on (346 questions a line): a quote has the answer in .90 of the answered German and .91
# of the English questions (.84 across the languages), the first one in .81/.83 (.71–.72); wrongly refused are
# .09/.06 (.10–.17); a refusal is right in .95/.97 (at the fitted thresholds).
# Within a language the fit gives -2.6, for passages of which two or five are of other articles. -2.9 was chosen on
# the even articles through the whole agent, where search brings the passages and its gate has refused before; there
# .92/.94 of all 711 German and English questions are answered, .96/.97 of the unanswerable refused (docs/retrieval.md).
MONOLINGUAL = Weights(
    (5.525, 1.504, 0.429, 1.048, 0.5, 6.339, 2.039, 0.356, 0.951, -1.192, -1.388, 0.533, 0.236, 0.332),
    -9.212,
    -2.9,
    2.2,
)
CROSS_LINGUAL = Weights(
    (10.298, -0.185, -0.56, 1.739, 0.5, 1.324, 1.968, -0.197, 2.118, -0.285, -1.436, 0.801, -0.024, 0.757),
    -8.324,
    -3.4,
    1.0,
)
