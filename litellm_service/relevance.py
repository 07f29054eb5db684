"""How likely it is that a document answers a question, by its best sentence. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from litellm_service import extractive, vectors

MAX_DOCUMENTS = 200


class BadRequest(Exception):
    """The request cannot be served as it is: HTTP 400, the message says why."""


def relevances(question: str, documents: Sequence[str], embed: extractive.Embed) -> list[float]:
    """For each document the chance (0 to 1) that its best sentence answers the question, by the answerer's weights.

    Whether words or meaning count more depends on whether the documents are in the question's language; they are
    judged together. `embed` gives one L2-normalised row a text. A document without a sentence is worth 0.
    """
    passages = tuple(extractive.Passage(number, "", text) for number, text in enumerate(documents))
    scored, _ = extractive.score(extractive.Prompt(passages, question), embed)
    best = [0.0] * len(documents)
    for one in scored:
        number = one.candidate.passage.number
        best[number] = max(best[number], _probability(one.score))
    return best


def _probability(log_odds: float) -> float:
    """The logistic function, without overflow."""
    return 1 / (1 + math.exp(-log_odds)) if log_odds > 0 else math.exp(log_odds) / (1 + math.exp(log_odds))


def read_request(body: Any) -> tuple[str, list[str], int]:
    """Question, texts and how many results are wanted. Raises BadRequest."""
    question = body.get("query") if isinstance(body, dict) else None
    documents = body.get("documents") if isinstance(body, dict) else None
    if not isinstance(question, str) or not question.strip():
        raise BadRequest("query must be a string with words")
    if not isinstance(documents, list) or not 1 <= len(documents) <= MAX_DOCUMENTS:
        raise BadRequest(f"documents must be a list of 1 to {MAX_DOCUMENTS}")
    given = [document.get("text") if isinstance(document, dict) else document for document in documents]
    if any(not isinstance(text, str) for text in given):
        raise BadRequest("a document must be a string or have a text")
    texts = [text for text in given if isinstance(text, str)]
    if len(question) + sum(map(len, texts)) > vectors.MAX_REQUEST_CHARS:
        raise BadRequest(f"a request may have {vectors.MAX_REQUEST_CHARS} characters")
    most = body.get("top_n")
    if most is not None and (not isinstance(most, int) or most < 1):
        raise BadRequest("top_n must be a number from 1")
    return question, texts, most or len(texts)
