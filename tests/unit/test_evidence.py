"""What passages are worth does not depend on how many were asked for; a floor lets in what reaches it."""

from __future__ import annotations

from uuid import uuid4

import pytest

from shared.retrieval.evidence import CONSIDERED, RELEVANCE_FLOOR, calibrate, strength, weigh
from shared.retrieval.passages import Passage
from shared.retrieval.ranking import lexical_weight
from shared.retrieval.spaces import Space

SPACE = Space(uuid4(), "some", "some-model", 64, evidence_floor=0.5)


def passage(similarity: float, *, bm25: float = 0.0, relevance: float | None = None) -> Passage:
    """A passage that was found with these scores."""
    ids = (uuid4(), uuid4(), uuid4())
    return Passage(*ids, "t", "x", (), {}, similarity=similarity, score=0.5, bm25=bm25, relevance=relevance)


@pytest.mark.parametrize(("similarity", "enough"), [(0.5, True), (0.4999, False), (0.5001, True)])
def test_what_reaches_the_floor_is_enough(similarity: float, enough: bool) -> None:
    """At the floor: it was fitted so that so many of the answerable questions reach it."""
    assert weigh([passage(similarity)], SPACE).enough is enough


def test_whoever_asks_for_more_passages_gets_no_other_verdict() -> None:
    """A passage behind the first five counts neither by its cosine nor by what the re-ranker thinks of it."""
    few = [passage(0.3)] * CONSIDERED
    assert weigh([*few, passage(0.9)], SPACE) == weigh(few, SPACE)
    assert weigh([*few[1:], passage(0.9)], SPACE).enough
    judged = [passage(0.9, relevance=RELEVANCE_FLOOR / 2)] * CONSIDERED
    best = passage(0.9, relevance=0.9)
    assert weigh([*judged, best], SPACE) == weigh(judged, SPACE)
    assert not weigh(judged, SPACE).enough
    assert weigh([*judged[1:], best], SPACE).enough


def test_nothing_found_is_never_evidence() -> None:
    """Not even in a space without a floor, where everything that was found counts."""
    free = Space(uuid4(), "free", "some-model", 64)
    assert not weigh([], SPACE).enough
    assert not weigh([], free).enough
    assert weigh([passage(-0.9)], free).enough
    assert strength([], SPACE) < strength([passage(-0.99)], SPACE)


def test_words_count_for_a_fifth_of_what_they_count_in_ranking() -> None:
    """Across languages an answerable question has few words in common with its passage."""
    counted = strength([passage(0.4, bm25=10.0)], SPACE) - strength([passage(0.4)], SPACE)
    assert counted == pytest.approx(0.2 * lexical_weight(SPACE) * 10)


def test_a_floor_is_judged_by_questions_it_was_not_fitted_on() -> None:
    """Fitted on every second one: here those are easy, so the others show what the floor is worth."""
    easy, hard = 0.9, 0.1
    found = calibrate([easy, hard] * 20, [0.5] * 40)
    assert found.floor == easy
    assert (found.kept, found.refused) == (0.0, 1.0)
