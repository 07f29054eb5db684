"""How candidates are found and put in order: the settings of a search and what a lexical hit is worth in each space."""

from __future__ import annotations

from dataclasses import dataclass

from shared.retrieval.spaces import Space


@dataclass(frozen=True, slots=True)
class Tuning:
    """How candidates are found and fused; the defaults are measured (docs/retrieval.md).

    `candidates` of each channel; `breadth` is how many neighbours are looked at before visibility, `effort` is
    hnsw.ef_search;
    `lexical_weight` times BM25 is added to the cosine (None: the space's own), `foreign_weight` is what is left of it
    when chunk and question differ in language, `keyword_weight` multiplies it for a question without function words
    ("BUrlG Urlaubsanspruch"): that one is about words. `by_rank` fuses by weighted reciprocal rank instead of scores.
    """

    candidates: int = 50
    breadth: int = 400
    effort: int = 400
    lexical_weight: float | None = None
    foreign_weight: float = 0.4
    keyword_weight: float = 2.0
    by_rank: bool = False


DEFAULT = Tuning()

MOST_LOOKED_AT = 1_000
"""Neighbours and candidates: hnsw.ef_search takes no more (pgvector)."""

_LEXICAL_WEIGHTS = {"use-v3": 0.05, "e5-small": 0.01}
"""What a point of BM25 is worth in cosine. Models differ in the range that cosines use (FACTS: unrelated to translated
text .27 to .85 for USE, .80 to .92 for e5); the weight follows that range."""
_LEXICAL_WEIGHT = 0.03


def lexical_weight(space: Space) -> float:
    """What a point of BM25 is worth in cosine of this space."""
    return _LEXICAL_WEIGHTS.get(space.model, _LEXICAL_WEIGHT)
