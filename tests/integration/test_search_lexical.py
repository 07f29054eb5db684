"""Lexical search is BM25: its scores are those of the formula, whatever way they are worked out."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from uuid import UUID

import pytest
from sqlalchemy import text

from shared.database import operator_session, tenant_session
from shared.events import Access
from shared.retrieval import statements
from shared.tenants.directory import Principal
from tests.integration.search_material import index
from tests.integration.test_search_indexes import fill, look

WORDS = ("buche", "eiche", "fichte", "kiefer", "ahorn", "linde", "birke", "erle")
K1, B = 1.2, 0.5


def corpus(tenant: Principal, chunks: int) -> list[list[str]]:
    """Chunks of tree names, each name up to seven times in one, in a language without stems."""
    dice = random.Random(3)
    made = [
        [word for word in dice.sample(WORDS, 4) for _ in range(dice.choice((1, 1, 2, 3, 4, 5, 7)))]
        for _ in range(chunks)
    ]
    for number, words in enumerate(made):
        index(tenant, f"d{number}", " ".join(words), language="simple")
    return made


def candidates(tenant: Principal, question: str, near: Sequence[UUID] = ()) -> list[tuple[str, float]]:
    """Text and score of what the lexical channel finds, in its order."""
    with tenant_session(tenant.tenant_id) as session:
        rows = session.execute(
            text(
                "select c.text, l.score from rag.lexical_candidates(:q, 'simple', 1, '{}', '{}', '{}', '{}', '{}', "
                "null, null, null, cast(:near as uuid[]), 50) with ordinality as l(chunk_id, score, matched, expanded, "
                "place) join rag.chunks c on c.tenant_id = :t and c.chunk_id = l.chunk_id order by l.place"
            ),
            {"q": question, "t": tenant.tenant_id, "near": "{" + ",".join(map(str, near)) + "}"},
        )
        return [(row.text, row.score) for row in rows]


def counted(occurrences: int) -> int:
    """Once, twice, three times and five times are told apart."""
    return max(mark for mark in (0, 1, 2, 3, 5) if mark <= occurrences)


def bm25(words: Sequence[str], occurrences: int, inverse: float, mean_length: float) -> float:
    """A word's part of a chunk's score (Robertson, Zaragoza 2009, 3.15)."""
    return inverse * occurrences * (K1 + 1) / (occurrences + K1 * (1 - B + B * len(words) / mean_length))


def test_scores_are_those_of_the_formula(tenant: Principal) -> None:
    """Every chunk with a word of the question, best first, scored by BM25 over the tenant's own chunks."""
    chunks = corpus(tenant, 24)
    mean = sum(map(len, chunks)) / len(chunks)
    asked = ("eiche", "birke", "erle")
    has = Counter(word for words in chunks for word in set(words))
    inverse = {w: math.log(1 + (len(chunks) - has[w] + 0.5) / (has[w] + 0.5)) for w in asked}
    expected = {
        " ".join(words): sum(bm25(words, counted(words.count(w)), inverse[w], mean) for w in asked if w in words)
        for words in chunks
    }
    found = candidates(tenant, " ".join(asked))
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert dict(found) == pytest.approx({chunk: score for chunk, score in expected.items() if score > 0}, abs=1e-6)


def test_a_common_word_ranks_what_rarer_ones_found(tenant: Principal) -> None:
    """Above the budget of postings a word finds nothing by itself, and adds its worth to what is there."""
    chunks = corpus(tenant, 24)
    mean = sum(map(len, chunks)) / len(chunks)
    statistics = {"t": tenant.tenant_id, "chunks": 9_000, "mean": mean}
    with operator_session() as operator:
        operator.execute(
            text("insert into rag.corpus_statistics (tenant_id, chunks, average_length) values (:t, :chunks, :mean)"),
            statistics,
        )
        operator.execute(
            text(
                "insert into rag.term_statistics (tenant_id, term, chunks) "
                "values (:t, rag.term(:t, 1, 'simple', 'eiche'), 4000)"
            ),
            statistics,
        )
    has = sum("birke" in words for words in chunks)
    rare, common = math.log(1 + (9_000 - has + 0.5) / (has + 0.5)), math.log(1 + 5_000 / 4_000.5)
    expected = {
        " ".join(words): bm25(words, counted(words.count("birke")), rare, mean)
        + (bm25(words, 1, common, mean) if "eiche" in words else 0)
        for words in chunks
        if "birke" in words
    }
    assert dict(candidates(tenant, "eiche birke")) == pytest.approx(expected, abs=1e-6)
    assert candidates(tenant, "eiche") == []
    with tenant_session(tenant.tenant_id) as session:
        near = session.scalars(text("select chunk_id from rag.chunks where text like '%eiche%' limit 3")).all()
    assert len(candidates(tenant, "eiche", near)) == 3


def test_a_rare_word_counts_in_what_may_be_seen(tenant: Principal) -> None:
    """Chunks of others' documents change no score: how rare a word is follows from what the member may see."""
    corpus(tenant, 6)
    before = candidates(tenant, "eiche linde")
    with operator_session() as operator:
        operator.execute(
            text(
                "insert into rag.corpus_statistics (tenant_id, chunks, average_length) "
                "select :t, count(*), avg(length) from rag.chunk_terms where tenant_id = :t"
            ),
            {"t": tenant.tenant_id},
        )
    assert candidates(tenant, "eiche linde") == before
    for number in range(5):
        index(tenant, f"secret-{number}", "eiche linde", language="simple", access=Access(groups=("board",)))
    assert candidates(tenant, "eiche linde") == before


def test_chunks_of_equal_worth_keep_one_order(tenant: Principal) -> None:
    """The same words in any order are worth the same: the chunk's id decides, not the plan."""
    for number in range(12):
        index(tenant, f"d{number}", " ".join(random.Random(number).sample(WORDS, len(WORDS))), language="simple")
    found = candidates(tenant, " ".join(WORDS))
    assert len({score for _, score in found}) == 1
    with tenant_session(tenant.tenant_id) as session:
        ids = session.execute(text("select text from rag.chunks order by chunk_id")).scalars().all()
    assert [chunk for chunk, _ in found] == list(ids)


def test_exact_search_finds_the_same_by_look_ups_and_by_reading_all(
    tenant: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which way vectors are read depends on how many chunks are visible, and shows only in the time."""
    space = fill(tenant, 200)
    found = []
    for many in (1, 1_000_000):
        monkeypatch.setattr(statements, "MANY", many)
        statements.search_sql.cache_clear()
        found.append(look(tenant, space))
    statements.search_sql.cache_clear()
    assert [one.diagnostics.exact_compared for one in found] == [200, 200]
    assert found[0].passages == found[1].passages
    assert len(found[0].passages) == 10
