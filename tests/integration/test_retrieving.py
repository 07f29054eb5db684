"""From question to passages: embed, search, re-rank, context; what fails on the way costs order, never the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import pytest
from sqlalchemy import text

from shared.database import application_engine, operator_session, tenant_session
from shared.embeddings import UnusableVectors
from shared.errors import NoesisError, PermanentError, Postponed, TransientError
from shared.fakes import FakeBus, FakeModels
from shared.money.budgets import OverBudget
from shared.money.prices import set_price
from shared.rerankings import Reranked, UnusableRanking
from shared.retrieval.questions import Filters
from shared.retrieval.retrieving import Asker, Retrieved, Wanted, retrieve
from shared.settings import Settings
from shared.tenants.directory import Principal
from tests.integration.search_material import explained, index

QUESTION = "Wie viel Urlaub haben Vollzeitkräfte im Jahr?"
NOW = datetime(2026, 11, 21, tzinfo=UTC)


@dataclass
class Reversing(FakeModels):
    """A re-ranker that thinks the opposite of search, or fails; it looks how many connections are out meanwhile."""

    error: NoesisError | None = None
    connections: int = -1

    def rerank(self, question: str, documents: Sequence[str], *, model: str) -> Reranked:
        """The later, the more relevant."""
        self.connections = application_engine().pool.checkedout()  # type: ignore[attr-defined]
        self.reranked.extend(documents)
        if self.error:
            raise self.error
        return Reranked([number / 10 for number in range(len(documents))], 1000)


@pytest.fixture(autouse=True)
def _bus(bus: FakeBus) -> None:
    """What is published goes nowhere."""


@pytest.fixture
def corpus(tenant: Principal) -> Principal:
    """A tenant with some documents about holidays."""
    for number in range(6):
        index(tenant, f"d{number}", f"Urlaub {'im Jahr ' * (6 - number)}Nummer {number}.", headings=(f"§ {number}",))
    return tenant


def asked(
    who: Principal, settings: Settings, models: FakeModels, model: str = "", wanted: Wanted | None = None
) -> Retrieved:
    """Retrieve as the member, with this re-ranking model."""
    chosen = settings.model_copy(update={"rerank_model": model})
    asker = Asker(who.tenant_id, who.member_id, NOW, uuid4())
    return retrieve(models, chosen, asker, QUESTION, wanted or Wanted(top_k=3))


def ledger(who: Principal) -> list[tuple[str, str, int, Decimal, bool]]:
    """What was booked: model, state, tokens, EUR, for a run; the vector of the question is a call of its own."""
    with tenant_session(who.tenant_id) as session:
        rows = session.execute(
            text("select model, state, tokens, cost_eur, run_id is not null from core.ledger order by model <> 'fake'")
        )
        return [tuple(row) for row in rows]


def names(found: Retrieved) -> list[str]:
    """External ids, best first."""
    return [p.external_id for p in found.passages]


def test_without_a_reranker_the_order_is_that_of_search(corpus: Principal, settings: Settings) -> None:
    """The same passages, figures and evidence as the search alone, with the time of every stage."""
    found = asked(corpus, settings, FakeModels())
    direct = explained(corpus, QUESTION)
    assert found.passages == direct.passages[:3]
    assert found.evidence == direct.evidence
    assert (found.reranking, set(found.stages)) == ("off", {"embed", "search"})


def test_a_reranker_orders_more_candidates_than_are_wanted(corpus: Principal, settings: Settings) -> None:
    """All candidates are shown with title and headings; the best of the new order come, evidence stays."""
    models = Reversing()
    found = asked(corpus, settings, models, "cohere/rerank-v3.5")
    before = [p.external_id for p in explained(corpus, QUESTION).passages]
    assert names(found) == before[::-1][:3]
    assert [p.score for p in found.passages] == [0.5, 0.4, 0.3]
    assert len(models.reranked) == 6
    assert models.reranked[0].startswith("# d")
    assert " › § " in models.reranked[0]
    assert found.evidence == explained(corpus, QUESTION).evidence
    assert (found.reranking, set(found.stages)) == ("cohere/rerank-v3.5", {"embed", "search", "rerank"})


def test_no_connection_is_held_while_a_model_works(corpus: Principal, settings: Settings) -> None:
    """A connection is worth more than a lock: the pool is free during the call."""
    models = Reversing()
    asked(corpus, settings, models, "cohere/rerank-v3.5")
    assert models.connections == 0


def test_reranking_is_paid_through_the_ledger(corpus: Principal, settings: Settings) -> None:
    """What the provider counted, at the price of the day, for the run; the bundled model costs nothing."""
    with operator_session() as operator:
        set_price(operator, "cohere/priced", Decimal("2"), NOW - timedelta(days=1))
    asked(corpus, settings, Reversing(), "cohere/priced")
    asked(corpus, settings, Reversing(), "sentences")
    vector = ("fake", "settled", 7, Decimal(0), True)
    assert ledger(corpus) == [vector, vector, ("cohere/priced", "settled", 1000, Decimal("0.002"), True)]


def test_the_vector_of_a_question_is_paid_through_the_ledger(
    tenant: Principal, settings: Settings, priced: str
) -> None:
    """Reserved before it is asked for, booked as counted; an answer that never came costs nothing."""
    index(tenant, "d", "Urlaub im Jahr.")
    models = FakeModels()
    asked(tenant, settings, models)
    assert models.embedded == [QUESTION]
    assert ledger(tenant) == [(priced, "settled", 7, Decimal("0.000014"), True)]
    models.failures = [TransientError("gone")]
    with pytest.raises(TransientError):
        asked(tenant, settings, models)
    assert sorted(state for _, state, *_ in ledger(tenant)) == ["released", "settled"]
    models.failures = [UnusableVectors("1 vector for 2 texts", 4)]
    with pytest.raises(UnusableVectors):
        asked(tenant, settings, models)
    assert sorted(tokens for _, _, tokens, _, _ in ledger(tenant)) == [0, 4, 7]


def test_a_spent_budget_asks_for_no_vector(tenant: Principal, settings: Settings, priced: str) -> None:
    """The refusal says until when; nothing was sent."""
    with operator_session() as operator:
        operator.execute(
            text("insert into core.budgets (tenant_id, period, limit_eur) values (:t, 'day', 0.000001)"),
            {"t": tenant.tenant_id},
        )
    models = FakeModels()
    with pytest.raises(OverBudget):
        asked(tenant, settings, models)
    assert (models.embedded, ledger(tenant)) == ([], [])


@pytest.fixture
def priced() -> Iterator[str]:
    """The embedding model of the tests with a price: two euros a million tokens."""
    with operator_session() as operator:
        set_price(operator, "fake", Decimal("2"), NOW - timedelta(days=1))
    yield "fake"
    with operator_session() as operator:
        operator.execute(text("delete from core.prices where model = 'fake'"))


def test_the_bundled_reranker_corrects_and_does_not_replace(corpus: Principal, settings: Settings) -> None:
    """Its certainty is added to the score of search: a clear lead stays."""
    found = asked(corpus, settings, FakeModels(), "sentences")
    direct = {p.external_id: p.score for p in explained(corpus, QUESTION).passages}
    assert found.reranking == "sentences"
    assert all(p.score > direct[p.external_id] for p in found.passages)


def test_the_bundled_rerankers_judgement_decides_about_evidence(tenant: Principal, settings: Settings) -> None:
    """A passage that shares a word is found; that none of its sentences answers is said by the gate."""
    index(tenant, "d", "Urlaub.")
    found = asked(tenant, settings, FakeModels(), "sentences")
    assert found.evidence.enough
    assert found.evidence.relevance == pytest.approx(1 / 7, abs=0.01)
    index(tenant, "d", "Gartenbau und Wetter.", version=2)
    found = asked(tenant, settings, FakeModels(), "sentences")
    assert (len(found.passages), found.evidence.enough, found.evidence.relevance) == (1, False, 0.0)
    assert asked(tenant, settings, FakeModels()).evidence.enough  # the space of the tests is not calibrated


@pytest.mark.parametrize(
    ("error", "said", "tokens"),
    [
        (UnusableRanking("NaN", 700), "failed: wrong-ranking", 700),
        (PermanentError("model-refused", "x", "y"), "failed: model-refused", 0),
        (Postponed(NOW + timedelta(hours=1), "slow down"), "failed: postponed", 0),
        (TransientError("gone"), "failed: unreachable", 0),
    ],
    ids=["unusable", "refused", "asks for time", "unreachable"],
)
def test_a_failing_reranker_costs_order_and_not_the_answer(
    corpus: Principal, settings: Settings, error: NoesisError, said: str, tokens: int
) -> None:
    """The order of search stands, the reason is told, nothing stays reserved; what came unusable is paid."""
    found = asked(corpus, settings, Reversing(error=error), "cohere/rerank-v3.5")
    assert names(found) == [p.external_id for p in explained(corpus, QUESTION).passages[:3]]
    assert found.reranking == said
    assert [(state, booked) for _, state, booked, _, _ in ledger(corpus)] == [("settled", 7), ("released", tokens)]


def test_a_spent_budget_costs_the_reranking(corpus: Principal, settings: Settings) -> None:
    """Nothing is asked that cannot be paid, and the question goes on."""
    with operator_session() as operator:
        set_price(operator, "cohere/dear", Decimal("1000000"), NOW - timedelta(days=1))
        operator.execute(
            text("insert into core.budgets (tenant_id, period, limit_eur) values (:t, 'day', 1)"),
            {"t": corpus.tenant_id},
        )
    models = Reversing()
    found = asked(corpus, settings, models, "cohere/dear")
    assert (found.reranking, len(found.passages), models.reranked) == ("failed: postponed", 3, [])


def test_context_comes_with_its_chunks(corpus: Principal, settings: Settings) -> None:
    """Asked for, the passages are widened within the tokens."""
    index(corpus, "long", "Davor.", f"{QUESTION} Dreißig Tage.", "Danach.", headings=("Urlaub",))
    found = asked(corpus, settings, FakeModels(), wanted=Wanted(top_k=1, context_tokens=200))
    assert [len(p.parts) for p in found.passages] == [3]
    assert "context" in found.stages


def test_reranking_can_be_left_out_of_one_search(corpus: Principal, settings: Settings) -> None:
    """A setting of the platform, a choice of the caller."""
    models = Reversing()
    assert asked(corpus, settings, models, "cohere/x", Wanted(rerank=False)).reranking == "off"
    assert models.reranked == []


def test_filters_reach_the_search(corpus: Principal, settings: Settings, make_tenant: Callable[..., Principal]) -> None:
    """And are checked before anything is paid."""
    index(corpus, "en", "Holiday in the year.", language="en")
    found = asked(corpus, settings, FakeModels(), wanted=Wanted(filters=Filters(languages=("en",))))
    assert names(found) == ["en"]
    models = FakeModels()
    with pytest.raises(PermanentError):
        asked(corpus, settings, models, wanted=Wanted(filters=Filters(languages=("xx",))))
    assert models.embedded == []
    assert asked(make_tenant(), settings, FakeModels()).passages == []
