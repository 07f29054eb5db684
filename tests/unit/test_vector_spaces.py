"""Vector spaces: what a profile is known by, and what is known about it before anybody calibrates."""

from __future__ import annotations

from uuid import uuid4

import pytest

from litellm_service.vectors import DIMENSIONS
from shared.retrieval.evidence import weigh
from shared.retrieval.passages import Passage
from shared.retrieval.spaces import Chunker, profile


def passage(similarity: float, bm25: float = 0.0) -> Passage:
    """A passage with these scores."""
    ids = uuid4(), uuid4(), uuid4()
    return Passage(*ids, "title", "text", (), {}, similarity=similarity, score=similarity, bm25=bm25)


@pytest.mark.parametrize("model", sorted(DIMENSIONS))
def test_every_bundled_model_has_a_measured_evidence_floor(model: str) -> None:
    """A tenant who switches to it keeps "no evidence" as a result, without calibrating first."""
    space = profile(model, DIMENSIONS[model])
    assert space.evidence_floor is not None
    assert weigh([passage(space.evidence_floor + 0.01)], space).enough
    assert not weigh([passage(space.evidence_floor - 0.01)], space).enough


def test_shared_words_lift_a_passage_over_the_floor_of_e5() -> None:
    """Strength is the cosine and a fifth of weighted BM25; .02 of it here."""
    space = profile("e5-small", DIMENSIONS["e5-small"])
    assert not weigh([passage(0.78)], space).enough
    assert weigh([passage(0.78, bm25=10.0)], space).enough


def test_a_floor_belongs_to_the_whole_profile() -> None:
    """Other chunks or a prefix give other cosines: what was measured for one says nothing about the other."""
    assert profile("e5-small", 384, Chunker(size=200)).evidence_floor is None
    assert profile("e5-small", 384, query_prefix="query: ").evidence_floor is None
