"""Reading an embeddings answer in OpenAI's wire format: every vector checked, because a wrong one spoils the index.

A vector is a list of numbers, or little-endian float32 in base64 (`encoding_format`), which is a quarter of the bytes
and costs neither side the writing and reading of decimal numbers.

Pure: decoded JSON in, vectors out.
"""

from __future__ import annotations

import base64
import math
import sys
from array import array
from dataclasses import dataclass
from typing import Any

from shared.completions import count
from shared.errors import PermanentError


@dataclass(frozen=True, slots=True)
class Embedded:
    """One vector a text, in order, and the tokens the provider counted (0: it did not say)."""

    vectors: list[list[float]]
    tokens: int


class UnusableVectors(PermanentError):
    """An answer that came, and is paid for (`tokens`), but cannot be stored: other count, dimension, NaN."""

    def __init__(self, detail: object, tokens: int) -> None:
        super().__init__(
            "wrong-vectors",
            f"The embedding model answered with something unusable: {detail}.",
            "Check EMBEDDINGS_MODEL and EMBEDDINGS_DIM against the model.",
        )
        self.tokens = tokens


def read_vectors(answer: Any, texts: int, dimension: int) -> list[list[float]]:
    """The vectors of an embeddings answer, put in order by `index` and checked one by one.

    A provider that returns too few, misnumbered, wrongly sized or non-finite vectors would silently spoil the index.
    """
    try:
        rows = sorted(answer["data"], key=lambda row: row["index"])
        if [row["index"] for row in rows] != list(range(texts)):
            raise ValueError(f"{len(rows)} vectors for {texts} texts")
        vectors = [_numbers(row["embedding"]) for row in rows]
        for vector in vectors:
            if len(vector) != dimension:
                raise ValueError(f"dimension {len(vector)} instead of {dimension}")
            if not all(map(math.isfinite, vector)):
                raise ValueError("a vector with NaN or infinity")
            if not any(vector):
                raise ValueError("a vector of zeros has no direction")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnusableVectors(error, 0) from None
    return vectors


def _numbers(vector: Any) -> list[float]:
    """A vector in either form. Raises ValueError, TypeError, OverflowError."""
    if isinstance(vector, str):
        numbers = array("f", base64.b64decode(vector, validate=True))
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers.tolist()
    if not isinstance(vector, list):
        raise ValueError("a vector is not a list of numbers")
    return [float(x) for x in vector]


def embedded(answer: Any, texts: int, dimension: int) -> Embedded:
    """The vectors of an answer and what they cost. Raises UnusableVectors with its tokens, which are paid."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    tokens = count(usage.get("prompt_tokens")) or count(usage.get("total_tokens"))
    try:
        return Embedded(read_vectors(answer, texts, dimension), tokens)
    except UnusableVectors as error:
        error.tokens = tokens
        raise
