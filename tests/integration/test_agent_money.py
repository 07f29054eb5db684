"""What a question costs: booked to the token, within every limit, and finished calls never again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from functions.agent.answering import answer_question
from shared.completions import ChatReply, CutOff, ToolCall
from shared.conversations.waiting import wake_runs
from shared.database import operator_session, tenant_session
from shared.errors import Postponed, Superseded, TransientError
from shared.events import AnswerQuestion
from shared.fakes import FakeBus, FakeClock, FakeModels
from shared.llm import Abilities
from shared.money.budgets import OverBudget, read_budgets, set_budget
from shared.money.prices import set_price
from shared.services import Services
from shared.settings import Settings
from shared.tenants.directory import Principal
from tests.integration.agent_material import GOOD, booked, called, ended, models_of
from tests.integration.test_answering import HOLIDAY, index, put

RANKER = "cohere/rerank-v3.5"


@pytest.fixture
def priced(database: object) -> Iterator[None]:
    """A million words cost 1 EUR in, 10 EUR out; embeddings 2 EUR."""
    from datetime import UTC, datetime

    start = datetime(2020, 1, 1, tzinfo=UTC)
    with operator_session() as session:
        set_price(session, "extractive", Decimal(1), datetime(2026, 2, 1, tzinfo=UTC), Decimal(10))
        set_price(session, "fake", Decimal(2), start)
    yield
    with operator_session() as session:
        session.execute(
            text("delete from core.prices where model in ('fake', :ranker) or eur_per_million_output > 0"),
            {"ranker": RANKER},
        )


@pytest.mark.usefixtures("priced")
def test_what_an_answer_cost_is_exact_to_the_token(tenant: Principal, fake_services: Services) -> None:
    """Tokens in and out at their own prices, the question's vector too; nothing stays reserved."""
    index(tenant, "urlaub", HOLIDAY)
    models = models_of(fake_services)
    models.replies = [GOOD]
    command = put(tenant)
    answer_question(command, fake_services)
    sent = sum(len(str(message["content"]).split()) for message in models.asked[0])
    written, question = len(GOOD.split()), 6
    assert called(tenant, command.run_id) == [
        ("embed:0", question, 0, Decimal(question) * 2 / 1_000_000),
        ("generate:0", sent, written, (Decimal(sent) + 10 * written) / 1_000_000),
    ]
    cost = (Decimal(2 * question + sent) + 10 * written) / 1_000_000
    assert booked(tenant, command.run_id) == (question + sent, written, cost, 0)
    run, _ = ended(tenant, command.run_id)
    assert run.cost_eur == cost
    with tenant_session(tenant.tenant_id) as session:
        day = next(read_budgets(session, tenant.tenant_id, fake_services.clock.now()))
    assert (day.spent, day.reserved) == (cost, Decimal(0))


@pytest.mark.usefixtures("priced")
def test_a_finished_model_call_is_never_paid_again(
    tenant: Principal, fake_services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies after the reply is stored and before its step is: the next one uses the reply."""
    from functions.agent.calling import Caller

    index(tenant, "urlaub", HOLIDAY)
    models = models_of(fake_services)
    models.replies = [GOOD, "must not be asked"]
    command = put(tenant)
    finish = Caller._finish

    def dies(self: Caller, key: str, *rest: Any) -> None:
        finish(self, key, *rest)
        if key == "generate:0":
            raise ConnectionAbortedError

    with monkeypatch.context() as patch:
        patch.setattr(Caller, "_finish", dies)
        with pytest.raises(ConnectionAbortedError):
            answer_question(command, fake_services)
    answer_question(command, fake_services)
    run, events = ended(tenant, command.run_id)
    assert run.answer == GOOD
    assert (len(models.asked), len(models.embedded)) == (1, 1)
    assert len(called(tenant, command.run_id)) == 2
    drafts = "".join(
        e.data["text"] if e.kind == "token" else "|" for e in events if e.kind in ("token", "draft-restarted")
    )
    assert drafts == f"{GOOD}|{GOOD}"


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("told", [True, False], ids=["usage told", "usage not told"])
def test_an_answer_cut_in_the_middle_is_booked(tenant: Principal, fake_services: Services, told: bool) -> None:
    """As the provider counted; if it did not, the most that can have been: never less than the truth."""
    index(tenant, "urlaub", HOLIDAY)
    models = models_of(fake_services)
    command = put(tenant)

    class Cut(FakeModels):
        def chat(self, messages: Sequence[dict[str, Any]], **_: Any) -> Iterator[str | ChatReply]:
            yield "„Der An"
            raise CutOff("cut", 50 if told else 0, 2 if told else 0)

    with pytest.raises(TransientError):
        answer_question(command, replace(fake_services, _models=Cut()))
    tokens, output, cost, reserved = booked(tenant, command.run_id)
    assert reserved == 0
    if told:
        assert (tokens, output) == (56, 2)
        assert cost == Decimal(12 + 50 + 20) / 1_000_000
    else:
        assert tokens > 56
        assert output >= 2
    models.replies = [GOOD]
    answer_question(command, fake_services)
    run, _ = ended(tenant, command.run_id)
    assert run.cost_eur == booked(tenant, command.run_id)[2] > cost


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("period", ["run", "day", "month"])
def test_a_run_over_its_budget_waits_and_goes_on_when_it_is_raised(
    tenant: Principal, fake_services: Services, bus: FakeBus, period: Any
) -> None:
    """Nothing is lost and nothing spent; readers see what it waits for."""
    index(tenant, "urlaub", HOLIDAY)
    models_of(fake_services).replies = [GOOD]
    with operator_session() as session:
        set_budget(session, tenant.tenant_id, period, Decimal("0.001"))
    command = put(tenant)
    with pytest.raises(OverBudget):
        answer_question(command, fake_services)
    run, events = ended(tenant, command.run_id)
    assert (run.state, run.waiting_for) == ("waiting", "budget")
    assert events[-1].kind == "waiting"
    with pytest.raises(Superseded):
        answer_question(command, fake_services)
    with operator_session() as session:
        set_budget(session, tenant.tenant_id, period, Decimal(1))
    with tenant_session(tenant.tenant_id) as session:
        assert wake_runs(session, tenant.tenant_id, ["budget"]) == 1
    assert bus.names().count("answer-question") == 2
    answer_question(command, fake_services)
    run, _ = ended(tenant, command.run_id)
    assert (run.state, run.waiting_for) == ("answered", None)
    assert booked(tenant, command.run_id)[3] == 0


@pytest.mark.usefixtures("priced")
def test_a_budget_that_is_nearly_spent_is_told_once(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """One event for a limit and period; a new limit is told anew."""
    index(tenant, "urlaub", HOLIDAY)
    models = models_of(fake_services)
    with operator_session() as session:
        set_budget(session, tenant.tenant_id, "day", Decimal("0.0125"))
    for _ in range(3):
        models.replies = [GOOD]
        command = put(tenant)
        answer_question(command, fake_services)
    assert bus.names().count("budget-nearly-spent") == 1
    with operator_session() as session:
        set_budget(session, tenant.tenant_id, "day", Decimal("0.0130"))
    models.replies = [GOOD]
    answer_question(put(tenant), fake_services)
    assert bus.names().count("budget-nearly-spent") == 2


def test_a_provider_that_asks_for_time_is_left_alone(tenant: Principal, settings: Settings, bus: FakeBus) -> None:
    """The run waits until then, other runs do not ask either, and afterwards it goes on by itself."""
    from datetime import UTC, datetime

    clock = FakeClock(datetime.now(UTC))
    services = Services(settings, clock, _models=FakeModels())
    models = models_of(services)
    index(tenant, "urlaub", HOLIDAY)
    until = clock.now() + timedelta(hours=1)
    first, second = put(tenant), put(tenant)

    class Busy(FakeModels):
        def chat(self, messages: Sequence[dict[str, Any]], **_: Any) -> Iterator[str | ChatReply]:
            raise Postponed(until, "busy")
            yield ""

    with pytest.raises(Postponed):
        answer_question(first, replace(services, _models=Busy()))
    models.replies = [GOOD, GOOD]
    with pytest.raises(Postponed) as caught:
        answer_question(second, services)
    assert caught.value.until == until
    assert models.asked == []
    assert ended(tenant, first.run_id)[0].waiting_for == "provider"
    clock.advance(timedelta(hours=1, seconds=1))
    with operator_session() as session:
        session.execute(text("update core.runs set waiting_until = now() where state = 'waiting'"))
    for command in (first, second):
        answer_question(command, services)
        assert ended(tenant, command.run_id)[0].state == "answered"


def test_a_model_without_a_price_waits_where_a_cap_holds(tenant: Principal, fake_services: Services) -> None:
    """In staging nobody could say what the call would cost."""
    index(tenant, "urlaub", HOLIDAY)
    staging = replace(
        fake_services,
        settings=fake_services.settings.model_copy(update={"noesis_stage": "staging", "chat_model": "openai/new"}),
    )
    with operator_session() as session:
        set_price(session, "fake", Decimal(0), staging.clock.now() - timedelta(days=9))
    command = put(tenant)
    with pytest.raises(OverBudget):
        answer_question(command, staging)
    with operator_session() as session:
        session.execute(text("delete from core.prices where model = 'fake'"))
    assert ended(tenant, command.run_id)[0].waiting_for == "price"


def test_a_question_may_take_only_so_many_tokens(tenant: Principal, fake_services: Services) -> None:
    """A typed refusal, before anything is paid."""
    index(tenant, "urlaub", HOLIDAY)
    small = replace(fake_services, settings=fake_services.settings.model_copy(update={"run_tokens": 1000}))
    command = put(tenant)
    answer_question(command, small)
    run, _ = ended(tenant, command.run_id)
    assert (run.state, run.reason) == ("failed", "run-tokens-spent")
    assert models_of(fake_services).asked == []


@pytest.fixture
def ranking(fake_services: Services, priced: None) -> Services:
    """Services with a re-ranker that costs 3 EUR a million tokens."""
    with operator_session() as session:
        set_price(session, RANKER, Decimal(3), fake_services.clock.now() - timedelta(days=9))
    settings = fake_services.settings.model_copy(update={"rerank_model": RANKER})
    return replace(fake_services, settings=settings)


def dies_once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """The worker dies when it comes to this function, the first time."""
    real, deaths = getattr(owner, name), [ConnectionAbortedError()]

    def dying(*arguments: Any, **named: Any) -> Any:
        if deaths:
            raise deaths.pop()
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, dying)


def dies_after_ranking(tenant: Principal, ranking: Services, monkeypatch: pytest.MonkeyPatch) -> AnswerQuestion:
    """A question whose worker dies between the paid re-ranking and the end of its step."""
    from functions.agent import nodes

    index(tenant, "urlaub", HOLIDAY)
    models = models_of(ranking)
    models.replies = [GOOD]
    command = put(tenant)
    dies_once(monkeypatch, nodes, "passage_state")
    with pytest.raises(ConnectionAbortedError):
        answer_question(command, ranking)
    return command


def test_a_paid_re_ranking_is_kept_like_a_reply(
    tenant: Principal, ranking: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies after it and before its step is kept: judged once, booked to the token as part of the answer."""
    command = dies_after_ranking(tenant, ranking, monkeypatch)
    models = models_of(ranking)
    judged = list(models.reranked)
    assert len(judged) == 1
    answer_question(command, ranking)
    assert models.reranked == judged
    vector, order, reply = called(tenant, command.run_id)
    tokens = len(judged[0].split()) + 6
    assert order[0].startswith("rerank:0:")
    assert order[1:] == (tokens, 0, Decimal(3 * tokens) / 1_000_000)
    run, _ = ended(tenant, command.run_id)
    assert run.answer == GOOD
    assert run.cost_eur == vector[3] + order[3] + reply[3] == booked(tenant, command.run_id)[2]


def test_other_passages_are_another_re_ranking(
    tenant: Principal, ranking: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found after a crash may have changed: an order of other passages would be none of these."""
    command = dies_after_ranking(tenant, ranking, monkeypatch)
    models = models_of(ranking)
    index(tenant, "portal", "Der Antrag auf Urlaub wird von Beschäftigten im Portal gestellt.")
    answer_question(command, ranking)
    assert len(models.reranked) == 3
    assert len({key for key, *_ in called(tenant, command.run_id) if key.startswith("rerank:0:")}) == 2
    assert ended(tenant, command.run_id)[0].state == "answered"


@pytest.mark.parametrize("limit", ["run budget", "run tokens"])
def test_a_re_ranking_that_a_question_may_not_pay_costs_its_order(
    tenant: Principal, ranking: Services, limit: str
) -> None:
    """The limits of one question hold for it too; the question goes on in the order of search."""
    for number in range(15):
        index(tenant, f"urlaub-{number}", f"{HOLIDAY} " * 10)
    models = models_of(ranking)
    models.replies = [GOOD]
    if limit == "run budget":
        with operator_session() as session:
            set_price(session, RANKER, Decimal(10**7), ranking.clock.now() - timedelta(days=9))
            set_budget(session, tenant.tenant_id, "run", Decimal("0.1"))
    else:
        # Enough for an answer from five passages, not for a judgement of fifteen.
        small = ranking.settings.model_copy(update={"run_tokens": 12_000})
        ranking = replace(ranking, settings=small)
    command = put(tenant)
    answer_question(command, ranking)
    assert models.reranked == []
    run, _ = ended(tenant, command.run_id)
    assert (run.state, run.no_evidence) == ("answered", False)
    assert booked(tenant, command.run_id)[3] == 0


def test_the_vector_of_a_search_by_the_model_is_paid_once(
    tenant: Principal, ranking: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies in the tool, after the embedding: the next one uses the vector."""
    from functions.agent.tooling import documents

    index(tenant, "urlaub", HOLIDAY)
    models = models_of(ranking)
    models.able = Abilities(True, True)
    models.replies = [[ToolCall("c", "search", {"query": "Antrag im Portal"})], GOOD]
    command = put(tenant)
    dies_once(monkeypatch, documents, "search_passages")
    for crash in (True, False):
        if crash:
            with pytest.raises(ConnectionAbortedError):
                answer_question(command, ranking)
        else:
            answer_question(command, ranking)
    assert models.embedded.count("Antrag im Portal") == 1
    assert len(models.asked) == 2
    assert ended(tenant, command.run_id)[0].state == "answered"
