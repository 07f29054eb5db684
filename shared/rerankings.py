"""Reading a rerank answer in Cohere's wire format, as LiteLLM's /rerank gives it: every document judged exactly once.

Pure: decoded JSON in, relevances out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from shared.completions import count
from shared.errors import PermanentError


@dataclass(frozen=True, slots=True)
class Reranked:
    """One relevance a document, in the order of the documents, and the tokens or searches that were billed (0: the
    provider did not say)."""

    relevances: list[float]
    tokens: int


class UnusableRanking(PermanentError):
    """An answer that came, and is paid for (`tokens`), but orders nothing: other count, foreign index, NaN."""

    def __init__(self, detail: object, tokens: int) -> None:
        super().__init__(
            "wrong-ranking",
            f"The re-ranking model answered with something unusable: {detail}.",
            "Check RERANK_MODEL.",
        )
        self.tokens = tokens


def reranked(answer: Any, documents: int) -> Reranked:
    """The relevances of `documents` texts, put in order by `index`. Raises UnusableRanking.

    A provider that leaves documents out, names one twice or one that was not there would silently drop passages.
    """
    meta = _object(answer, "meta")
    tokens = count(_object(meta, "tokens").get("input_tokens")) or count(
        _object(meta, "billed_units").get("total_tokens")
    )
    try:
        rows = sorted(answer["results"], key=lambda row: row["index"])
        if [row["index"] for row in rows] != list(range(documents)):
            raise ValueError(f"{len(rows)} results for {documents} documents, or indexes that are not theirs")
        relevances = [row["relevance_score"] for row in rows]
        for relevance in relevances:
            if isinstance(relevance, bool) or not isinstance(relevance, int | float) or not math.isfinite(relevance):
                raise ValueError("a relevance that is no number")
    except (KeyError, TypeError, ValueError) as error:
        raise UnusableRanking(error, tokens) from None
    return Reranked([float(relevance) for relevance in relevances], tokens)


def _object(whole: Any, name: str) -> dict[str, Any]:
    found = whole.get(name) if isinstance(whole, dict) else None
    return found if isinstance(found, dict) else {}
