"""Search where a corpus or a question is at its edge: no words, nothing left, characters that nobody sees."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from shared.database import operator_session
from shared.fakes import FakeBus
from shared.retrieval import statistics
from shared.retrieval.questions import checked_question
from shared.retrieval.spaces import profile
from shared.tenants.directory import Principal
from tests.integration.search_material import index, titles


@pytest.fixture(autouse=True)
def _bus(bus: FakeBus) -> None:
    """What is published goes nowhere."""


@pytest.mark.parametrize("content", ["🙂🙂", "das ist es"], ids=["signs", "function words"])
def test_a_corpus_without_a_word_is_searched(tenant: Principal, content: str) -> None:
    """The first document of a tenant may be a picture or a sign: its mean length is no divisor, and it is found."""
    index(tenant, "wordless", content)
    assert titles(tenant, "Wie lange ist die Frist?") == ["wordless"]
    index(tenant, "right", "Die Frist beträgt drei Monate.")
    assert titles(tenant, "Frist", lexical_only=True) == ["right"]


def test_a_tenant_that_was_emptied_is_searched_again(tenant: Principal) -> None:
    """Statistics counted while there was nothing say nothing about what came since, and stop no search."""
    with operator_session() as session:
        session.execute(
            text("insert into rag.corpus_statistics values (:t, 5000, 90, :at)"),
            {"t": tenant.tenant_id, "at": datetime(2026, 1, 1, tzinfo=UTC)},
        )
    with operator_session() as session:
        statistics.refresh(session, tenant.tenant_id)
        known = session.execute(
            text("select chunks, average_length from rag.corpus_statistics where tenant_id = :t"),
            {"t": tenant.tenant_id},
        ).one()
    assert tuple(known) == (0, 0)
    index(tenant, "wrong", "Der Garten blüht.")
    index(tenant, "right", "Die Frist beträgt drei Monate.")
    assert titles(tenant, "Frist", lexical_only=True) == ["right"]


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("Bitte <Kundennummer> eintragen.", "Kundennummer"),
        ("Umsatz <Vorjahr und Gewinn> 5 %", "Gewinn"),
        ("List<Auftragsposten>", "Auftragsposten"),
        ("Der Zweig wird geholt.", "git fetch <Zweig>"),
    ],
    ids=["placeholder", "less than", "type", "question"],
)
def test_words_between_angle_brackets_are_words(tenant: Principal, stored: str, asked: str) -> None:
    """Text is no HTML by the time it is searched: what looks like a tag is what somebody wrote."""
    index(tenant, "right", stored)
    index(tenant, "wrong", "Völlig andere Sätze über Gartenbau und Wetter.")
    assert titles(tenant, asked, lexical_only=True) == ["right"]


@pytest.mark.parametrize(
    "asked",
    [
        unicodedata.normalize("NFD", "Kündigungsfrist für Löschgeräte"),
        "Kündigungs\u00adfrist für\u00a0Lösch\u200bgeräte\ufeff",
    ],
    ids=["decomposed", "invisible"],
)
def test_a_question_is_read_as_documents_are(asked: str) -> None:
    """Copied out of a PDF or typed on a Mac, it is the same question: the same words and the same vector."""
    right = "Kündigungsfrist für Löschgeräte"
    assert checked_question(asked) == right
    assert profile("any", 8, query_prefix="query: ").as_query(asked) == f"query: {right}"
