"""The agent whole: memory, evidence, tools, people, budgets, hand-over, cancelling; each with a scripted model."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from functions.agent import deciding
from functions.agent.answering import answer_question
from shared.completions import ChatReply, CutOff, ToolCall
from shared.conversations.runs import Run, RunEvent, ask, events_after, read_run, take_lease
from shared.conversations.waiting import cancel, wake_runs
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
from shared.tools.approvals import decide, pending_approvals
from shared.tools.cases import put_case, read_case
from tests.integration.test_answering import HOLIDAY, index, put
from tests.integration.tool_material import allow

GOOD = "„Alle Beschäftigten haben Anspruch auf 30 Arbeitstage Urlaub.“ [1]"
RELEASED = json.loads((Path(__file__).parent / "data/checkpoints-0.1.json").read_text(encoding="utf-8"))


@pytest.fixture
def writer(settings: Settings, bus: FakeBus) -> Services:
    """Services whose chat model writes, but calls no tools."""
    return Services(settings, _models=FakeModels(able=Abilities(True)))


def models_of(services: Services) -> FakeModels:
    assert isinstance(services.models, FakeModels)
    return services.models


def ended(tenant: Principal, run_id: UUID) -> tuple[Run, list[RunEvent]]:
    with tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, run_id)
        events = events_after(session, tenant, run_id, 0)
    assert run is not None
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return run, events


@pytest.mark.parametrize("before", list(RELEASED))
def test_a_run_that_an_earlier_release_began_is_finished(
    tenant: Principal, fake_services: Services, before: str
) -> None:
    """Its stored steps are read as they are: names of nodes and keys of the state are wire formats."""
    index(tenant, "urlaub", HOLIDAY)
    stored = RELEASED[before]
    command = put(tenant, stored["question"])
    ids = {"tenant": tenant.tenant_id, "thread": str(command.run_id)}
    with operator_session() as session:
        for row in stored["checkpoints"]:
            session.execute(
                text(
                    "insert into core.checkpoints (tenant_id, thread_id, checkpoint_ns, checkpoint_id, parent_id, "
                    "kind, checkpoint, metadata) values (:tenant, :thread, :checkpoint_ns, :checkpoint_id, "
                    ":parent_id, :kind, :checkpoint, cast(:metadata as jsonb))"
                ),
                ids
                | row
                | {"checkpoint": base64.b64decode(row["checkpoint"]), "metadata": json.dumps(row["metadata"])},
            )
        for row in stored["writes"]:
            session.execute(
                text(
                    "insert into core.checkpoint_writes (tenant_id, thread_id, checkpoint_ns, checkpoint_id, task_id, "
                    "task_path, position, channel, kind, value) values (:tenant, :thread, :checkpoint_ns, "
                    ":checkpoint_id, :task_id, :task_path, :position, :channel, :kind, :value)"
                ),
                ids | row | {"value": base64.b64decode(row["value"])},
            )
        session.execute(text("update core.runs set epoch = 1 where run_id = :run"), {"run": command.run_id})
    models_of(fake_services).replies = [GOOD]
    answer_question(command, fake_services)
    run, _ = ended(tenant, command.run_id)
    assert run.state == "answered"
    assert run.no_evidence is (before == "before give_up")
    assert models_of(fake_services).embedded == ([stored["question"]] if before == "before retrieve" else [])
    assert len(models_of(fake_services).asked) == (before in ("before retrieve", "before generate"))


def test_only_the_last_step_is_kept(tenant: Principal, fake_services: Services) -> None:
    """Steps hold passages: what is not needed to resume is not stored."""
    index(tenant, "urlaub", HOLIDAY)
    command = put(tenant)
    models_of(fake_services).replies = [GOOD]
    answer_question(command, fake_services)
    with tenant_session(tenant.tenant_id) as session:
        counts = [
            session.execute(
                text(f"select count(*) from core.{table} where thread_id = :run"), {"run": str(command.run_id)}
            ).scalar_one()
            for table in ("checkpoints", "checkpoint_writes")
        ]
    assert counts == [1, 0]


# ---- memory and evidence


def follow_up(tenant: Principal, first: AnswerQuestion, question: str) -> AnswerQuestion:
    with tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, first.run_id)
        assert run is not None
        run_id = ask(session, tenant, question, conversation_id=run.conversation_id)
    return AnswerQuestion(tenant_id=tenant.tenant_id, run_id=run_id)


def test_a_follow_up_is_rewritten_by_a_model_that_writes(tenant: Principal, writer: Services) -> None:
    """It sees the conversation as quoted material, and what it makes of the question is searched for and asked."""
    index(tenant, "urlaub", HOLIDAY)
    models = models_of(writer)
    models.replies = [GOOD]
    first = put(tenant)
    answer_question(first, writer)
    models.replies = ["Wie viele Arbeitstage Urlaub haben Beschäftigte im Portal?", GOOD]
    second = follow_up(tenant, first, "Und wo beantragt man ihn?")
    answer_question(second, writer)
    rewriting, answering = models.asked[1:]
    assert "<answered>„Alle Beschäftigten" in rewriting[1]["content"]
    assert "<question>Wie viele Arbeitstage Urlaub haben Beschäftigte im Portal?</question>" in answering[1]["content"]
    assert models.embedded[1] == "Wie viele Arbeitstage Urlaub haben Beschäftigte im Portal?"
    run, events = ended(tenant, second.run_id)
    assert run.question == "Und wo beantragt man ihn?"
    assert events[0].data == {"name": "contextualise"}


@pytest.mark.parametrize(
    ("question", "whole"),
    [
        ("Und im Portal?", "Wie viele Arbeitstage Urlaub haben Beschäftigte? Und im Portal?"),
        ("Warum?", "Wie viele Arbeitstage Urlaub haben Beschäftigte? Warum?"),
        ("Wo wird der Antrag auf Urlaub gestellt?", "Wo wird der Antrag auf Urlaub gestellt?"),
    ],
)
def test_a_follow_up_is_joined_for_a_model_that_only_quotes(
    tenant: Principal, fake_services: Services, question: str, whole: str
) -> None:
    """Without a model that writes, a rule decides whether the question leans on the one before."""
    index(tenant, "urlaub", HOLIDAY)
    models = models_of(fake_services)
    models.replies = [GOOD, GOOD]
    first = put(tenant)
    answer_question(first, fake_services)
    answer_question(follow_up(tenant, first, question), fake_services)
    assert models.embedded[1] == whole
    assert len(models.asked) == 2


def test_another_members_conversation_is_not_remembered(tenant: Principal, writer: Services) -> None:
    """A conversation is its member's own: nobody else can continue it."""
    from shared.errors import PermanentError

    first = put(tenant)
    with operator_session() as session:
        session.execute(
            text(
                "insert into core.members (tenant_id, member_id, email, name, role) "
                "select tenant_id, gen_random_uuid(), 'other-' || email, 'Other', 'member' from core.members "
                "where tenant_id = :t"
            ),
            {"t": tenant.tenant_id},
        )
        other_id = session.execute(
            text("select member_id from core.members where tenant_id = :t and name = 'Other'"), {"t": tenant.tenant_id}
        ).scalar_one()
        conversation = session.execute(
            text("select conversation_id from core.runs where run_id = :r"), {"r": first.run_id}
        ).scalar_one()
    other = replace(tenant, member_id=other_id)
    with pytest.raises(PermanentError, match="no such conversation"), tenant_session(tenant.tenant_id) as session:
        ask(session, other, "Und?", conversation_id=conversation)


def _floor(tenant: Principal, floor: float | None) -> None:
    with operator_session() as session:
        session.execute(text("update rag.vector_spaces set evidence_floor = :f where model = 'fake'"), {"f": floor})


@pytest.fixture
def high_floor(tenant: Principal) -> Iterator[None]:
    """Hardly anything is evidence."""
    _floor(tenant, 0.9)
    yield
    _floor(tenant, None)


@pytest.mark.usefixtures("high_floor")
def test_thin_evidence_is_searched_for_again_in_other_words(tenant: Principal, writer: Services) -> None:
    """The second query is the model's; with what it finds the answer is written."""
    index(tenant, "urlaub", HOLIDAY)
    models = models_of(writer)
    models.replies = [HOLIDAY, GOOD]
    command = put(tenant, "Wie lange darf ich in die Ferien?")
    answer_question(command, writer)
    run, events = ended(tenant, command.run_id)
    assert models.embedded == ["Wie lange darf ich in die Ferien?", HOLIDAY]
    assert (run.state, run.no_evidence) == ("answered", False)
    assert [e.data["name"] for e in events if e.kind == "step"] == ["retrieve", "retrieve", "generate", "verify"]


@pytest.mark.usefixtures("high_floor")
def test_without_evidence_no_answer_is_paid_for(tenant: Principal, writer: Services, fake_services: Services) -> None:
    """Two searches find too little: it is said plainly, and the model writes nothing."""
    index(tenant, "urlaub", HOLIDAY)
    models_of(writer).replies = ["Ferien Dauer", "must not be asked"]
    command = put(tenant, "Wie lange darf ich in die Ferien?")
    answer_question(command, writer)
    run, _ = ended(tenant, command.run_id)
    assert (run.state, run.no_evidence) == ("answered", True)
    assert len(models_of(writer).asked) == 1
    quoting = put(tenant, "Wie lange darf ich in die Ferien?")
    answer_question(quoting, fake_services)
    assert models_of(fake_services).asked == []


def test_an_answer_in_the_wrong_language_is_written_once_more(tenant: Principal, writer: Services) -> None:
    """The second draft counts; readers are told to drop the first."""
    index(tenant, "urlaub", HOLIDAY)
    models = models_of(writer)
    english = "The employees have a claim to this: „Anspruch auf 30 Arbeitstage Urlaub“ [1]."
    german = "Die Beschäftigten haben einen Anspruch: „Anspruch auf 30 Arbeitstage Urlaub“ [1]."
    models.replies = [english, german]
    command = put(tenant)
    answer_question(command, writer)
    run, events = ended(tenant, command.run_id)
    assert run.answer == german
    assert "in German" in models.asked[1][-1]["content"]
    assert [e.kind for e in events].count("draft-restarted") == 1
    models.replies = [english, english]
    stubborn = put(tenant)
    answer_question(stubborn, writer)
    run, _ = ended(tenant, stubborn.run_id)
    assert (run.answer or "").startswith("Die Antwort liegt nur in einer anderen Sprache vor:")


def test_an_answer_that_ends_at_the_length_limit_says_so(tenant: Principal, fake_services: Services) -> None:
    """What is there counts, and nobody takes it for the whole."""
    index(tenant, "urlaub", HOLIDAY)
    models_of(fake_services).replies = [ChatReply(GOOD, "fake", 9, 9, (), "length")]
    command = put(tenant)
    answer_question(command, fake_services)
    run, _ = ended(tenant, command.run_id)
    assert "Längengrenze" in (run.answer or "")


def test_what_the_providers_filter_refuses_is_said_with_its_reason(tenant: Principal, fake_services: Services) -> None:
    """A filtered answer is no answer, and paid all the same."""
    index(tenant, "urlaub", HOLIDAY)
    models_of(fake_services).replies = [ChatReply("", "fake", 9, 0, (), "content_filter")]
    command = put(tenant)
    answer_question(command, fake_services)
    run, _ = ended(tenant, command.run_id)
    assert (run.state, run.reason) == ("failed", "content-filtered")


# ---- finished calls, money


def called(tenant: Principal, run_id: UUID) -> list[tuple[str, int, int, Decimal]]:
    with tenant_session(tenant.tenant_id) as session:
        rows = session.execute(
            text(
                "select call_key, input_tokens, output_tokens, cost_eur from core.model_calls where run_id = :r "
                "order by created_at"
            ),
            {"r": run_id},
        )
        return [tuple(row) for row in rows]


def booked(tenant: Principal, run_id: UUID) -> Any:
    """Tokens in and out, EUR, and what is still reserved, of a run in the ledger."""
    with tenant_session(tenant.tenant_id) as session:
        row = session.execute(
            text(
                "select sum(tokens)::int, sum(output_tokens)::int, sum(cost_eur), sum(reserved_eur) from core.ledger "
                "where run_id = :r"
            ),
            {"r": run_id},
        ).one()
    return tuple(row)


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
        session.execute(text("delete from core.prices where model = 'fake' or eur_per_million_output > 0"))


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


# ---- cancelling, handing over, two at once


def test_a_run_is_cancelled_while_the_model_streams(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """The next piece notices; what was streamed is booked, nothing stays reserved, everybody is told."""
    index(tenant, "urlaub", HOLIDAY)
    command = put(tenant)
    closed = []

    class Slow(FakeModels):
        def chat(self, messages: Sequence[dict[str, Any]], **_: Any) -> Iterator[str | ChatReply]:
            try:
                yield "„Alle "
                with tenant_session(tenant.tenant_id) as session:
                    assert cancel(session, tenant, command.run_id)
                while True:
                    yield "Beschäftigten "
            finally:
                closed.append(True)

    with pytest.raises(Superseded):
        answer_question(command, replace(fake_services, _models=Slow()))
    run, events = ended(tenant, command.run_id)
    assert (run.state, events[-1].kind) == ("cancelled", "cancelled")
    assert closed == [True]
    tokens, output, _, reserved = booked(tenant, command.run_id)
    assert (tokens > 6, output > 0, reserved) == (True, True, 0)
    assert bus.names()[-1] == "answer-ready"
    with tenant_session(tenant.tenant_id) as session:
        assert not cancel(session, tenant, command.run_id)
        with pytest.raises(LookupError):
            cancel(session, replace(tenant, member_id=command.run_id), command.run_id)


@pytest.mark.parametrize("node", ["contextualise", "retrieve", "reason", "generate", "verify", "answer"])
def test_a_run_is_cancelled_at_every_node(
    tenant: Principal, fake_services: Services, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    """Whatever the worker does when the word comes, its next write is refused and the run stays cancelled."""
    from functions.agent import graph

    index(tenant, "urlaub", HOLIDAY)
    models_of(fake_services).replies = [GOOD]
    command = put(tenant)
    real = graph.NODES[node]

    def cancelled(work: Any, state: Any) -> dict[str, Any]:
        with tenant_session(tenant.tenant_id) as session:
            cancel(session, tenant, command.run_id)
        return real(work, state)

    monkeypatch.setitem(graph.NODES, node, cancelled)
    with pytest.raises(Superseded):
        answer_question(command, fake_services)
    run, events = ended(tenant, command.run_id)
    assert run.state == "cancelled"
    assert events[-1].kind == "cancelled"
    assert booked(tenant, command.run_id)[3] in (0, None)
    with pytest.raises(Superseded):
        answer_question(command, fake_services)


def test_a_waiting_run_is_cancelled_too(tenant: Principal, fake_services: Services) -> None:
    """Nobody need hold it; what wakes it later finds it ended."""
    index(tenant, "urlaub", HOLIDAY)
    command = put(tenant)
    models_of(fake_services).failures = [Postponed(fake_services.clock.now() + timedelta(hours=1), "busy")]
    with pytest.raises(Postponed):
        answer_question(command, fake_services)
    with tenant_session(tenant.tenant_id) as session:
        assert cancel(session, tenant, command.run_id)
        assert wake_runs(session, tenant.tenant_id, ["provider"]) == 0


def test_a_long_run_is_handed_over_to_a_fresh_invocation(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """No step begins after the deadline; each invocation commands the next, and no step or call is repeated."""
    index(tenant, "urlaub", HOLIDAY)
    models = models_of(fake_services)
    models.replies = [GOOD]
    command = put(tenant)
    turns = 0
    while ended(tenant, command.run_id)[0].state != "answered":
        turns += 1
        # With no time at all every invocation would only hand over: one step each.
        _one_step(command, fake_services)
    assert turns > 4
    assert (len(models.asked), len(models.embedded)) == (1, 1)
    assert bus.names().count("answer-question") == turns
    assert bus.names().count("answer-ready") == 1
    run, events = ended(tenant, command.run_id)
    assert run.answer == GOOD
    assert [e.data["name"] for e in events if e.kind == "step"] == ["retrieve", "generate", "verify"]


def _one_step(command: AnswerQuestion, services: Services) -> None:
    """An invocation whose time is over after its first step."""
    from unittest.mock import patch

    from functions.agent.journal import Journal

    begun = []
    begin = Journal.begin

    def counted(self: Journal) -> None:
        begun.append(1)
        self._over = lambda: len(begun) > 1
        begin(self)

    with patch.object(Journal, "begin", counted):
        answer_question(command, services)


def test_two_workers_at_once_answer_once(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """Both get the message at the same moment: one takes the run, the other is told."""
    import threading

    index(tenant, "urlaub", HOLIDAY)
    command = put(tenant)
    models_of(fake_services).replies = [GOOD]
    outcomes: list[str] = []
    barrier = threading.Barrier(2)

    def deliver() -> None:
        barrier.wait(10)
        try:
            answer_question(command, fake_services)
            outcomes.append("answered")
        except Superseded:
            outcomes.append("superseded")

    threads = [threading.Thread(target=deliver) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["answered", "superseded"]
    assert len(models_of(fake_services).asked) == 1
    assert bus.names().count("answer-ready") == 1


# ---- tools and people


@pytest.fixture
def tooled(tenant: Principal, settings: Settings, bus: FakeBus) -> Services:
    """Services whose model calls tools, in a tenant that allows them."""
    able = settings.model_copy(update={"chat_abilities": "tools"})
    return Services(able, _models=FakeModels(able=Abilities(True, True)))


def calls(*wanted: tuple[str, dict[str, Any]]) -> list[ToolCall]:
    return [ToolCall(f"c{n}", name, arguments) for n, (name, arguments) in enumerate(wanted)]


def test_a_tool_is_called_and_its_result_proves_the_answer(tenant: Principal, tooled: Services) -> None:
    """The model asks for a computation, gets its result as data, and what it says of it is checked like any claim."""
    index(tenant, "urlaub", HOLIDAY)
    models = models_of(tooled)
    models.replies = [calls(("calculate", {"expression": "30*2"})), "Das Ergebnis ist 60 [2]. " + GOOD]
    command = put(tenant, "Wie viele Arbeitstage Urlaub sind das in zwei Jahren?")
    answer_question(command, tooled)
    run, events = ended(tenant, command.run_id)
    assert "calculate" in models.offered[0]
    assert models.asked[1][-1]["role"] == "tool"
    assert "60" in models.asked[1][-1]["content"]
    assert run.state == "answered"
    assert run.no_evidence is False
    assert (run.answer or "").startswith("Das Ergebnis ist 60 (calculate).")
    assert len(run.citations) == 1
    assert [e.data["name"] for e in events if e.kind == "step"] == ["retrieve", "reason", "act", "reason", "verify"]


def test_what_a_search_tool_finds_is_cited(tenant: Principal, tooled: Services) -> None:
    """Its passages get numbers of their own, after those that were there; the citation names chunk and document."""
    document_id = index(tenant, "urlaub", HOLIDAY)
    _floor(tenant, 0.9)
    models = models_of(tooled)
    models.replies = [calls(("search", {"query": "Arbeitstage Urlaub Portal"})), GOOD]
    command = put(tenant, "Wie lange darf ich in die Ferien?")
    try:
        answer_question(command, tooled)
    finally:
        _floor(tenant, None)
    run, _ = ended(tenant, command.run_id)
    assert "<passage n=" not in models.asked[0][1]["content"]
    assert "as [1]" in models.asked[1][-1]["content"]
    assert [(c.document_id, c.page) for c in run.citations] == [(document_id, 3)]


def test_a_model_that_never_stops_calling_answers_from_what_there_is(tenant: Principal, tooled: Services) -> None:
    """The step limit ends the search, not the answer, and the answer says so."""
    index(tenant, "urlaub", HOLIDAY)
    models = models_of(tooled)
    rounds = (tooled.settings.run_steps - 3 - deciding.LAST_STEPS) // deciding.ROUND_STEPS + 1
    models.replies = [*(calls(("calculate", {"expression": f"{n}+1"})) for n in range(rounds)), GOOD]
    command = put(tenant)
    answer_question(command, tooled)
    run, events = ended(tenant, command.run_id)
    assert run.state == "answered"
    assert run.partial is True
    assert (run.answer or "").startswith(GOOD)
    assert "aufgebraucht" in (run.answer or "")
    assert models.offered[-1] == []
    assert not any(message["role"] == "tool" for message in models.asked[-1])
    steps = [e.data["name"] for e in events if e.kind == "step"]
    assert len(steps) <= tooled.settings.run_steps


def test_wrong_arguments_are_told_to_the_model(tenant: Principal, tooled: Services) -> None:
    """Arguments that are no JSON, an unknown tool, too many calls: each call gets its answer, and the run goes on."""
    index(tenant, "urlaub", HOLIDAY)
    models = models_of(tooled)
    wrong = [ToolCall("a", "calculate", {}, "the arguments are not JSON"), ToolCall("b", "sudo", {})]
    many = calls(*[("calculate", {"expression": "1+1"})] * 10)
    models.replies = [wrong, many, GOOD]
    command = put(tenant)
    answer_question(command, tooled)
    assert ended(tenant, command.run_id)[0].state == "answered"
    told = [message for message in models.asked[2] if message["role"] == "tool"]
    assert [message["tool_call_id"] for message in told] == ["a", "b", *(call.call_id for call in many)]
    assert "fewer" in told[-1]["content"]


@pytest.fixture
def case(tenant: Principal) -> Callable[[], tuple[str, int]]:
    """A case that the model may change when a person agrees; reads its status and how often it was changed."""
    allow(tenant, "update_case", approvers=("admin",), four_eyes=False)
    with tenant_session(tenant.tenant_id) as session:
        put_case(session, tenant.tenant_id, "4711", "Reklamation", "test")

    def status() -> tuple[str, int]:
        with tenant_session(tenant.tenant_id) as session:
            found = read_case(session, tenant, "4711")
        return found.status, found.revision

    return status


CLOSE = ("update_case", {"case_number": "4711", "status": "closed", "note": "erledigt"})


@pytest.mark.parametrize("kind", ["approved", "edited", "refused"])
def test_a_run_waits_for_a_person_and_goes_on(
    tenant: Principal, tooled: Services, bus: FakeBus, case: Callable[[], tuple[str, int]], kind: Any
) -> None:
    """It holds nothing meanwhile; approved it is done, edited it is done so, refused the model is told."""
    index(tenant, "urlaub", HOLIDAY)
    models = models_of(tooled)
    models.replies = [calls(CLOSE), GOOD]
    command = put(tenant, "Schließe bitte den Fall 4711; wie viele Arbeitstage Urlaub haben Beschäftigte?")
    before = case()
    answer_question(command, tooled)
    run, events = ended(tenant, command.run_id)
    assert (run.state, run.waiting_for, events[-1].kind) == ("waiting", "approval", "approval-requested")
    assert case() == before
    with pytest.raises(Superseded):
        answer_question(command, tooled)
    with tenant_session(tenant.tenant_id) as session:
        (approval,) = pending_approvals(session, tenant)
        edited = {"case_number": "4711", "status": "in-progress", "note": ""} if kind == "edited" else None
        decide(session, tenant, approval.approval_id, kind, edited, "so")
    assert bus.names().count("answer-question") == 2
    answer_question(command, tooled)
    run, events = ended(tenant, command.run_id)
    assert run.state == "answered"
    assert case()[0] == {"approved": "closed", "edited": "in-progress", "refused": before[0]}[kind]
    assert models.asked[1][-1]["role"] == "tool"
    assert [e.kind for e in events if e.kind not in ("step", "token", "draft-restarted")] == [
        "approval-requested",
        "approval-decided",
        "answer",
    ]


def test_a_crash_after_the_decision_does_it_once(
    tenant: Principal, tooled: Services, case: Callable[[], tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies with the effect done and its step not stored; the next one finds the outcome."""
    from functions.agent.tools import Toolbox

    index(tenant, "urlaub", HOLIDAY)
    models = models_of(tooled)
    models.replies = [calls(CLOSE), GOOD]
    command = put(tenant, "Schließe bitte den Fall 4711; wie viele Arbeitstage Urlaub haben Beschäftigte?")
    answer_question(command, tooled)
    with tenant_session(tenant.tenant_id) as session:
        (approval,) = pending_approvals(session, tenant)
        decide(session, tenant, approval.approval_id, "approved")
    perform = Toolbox.perform

    def dies(self: Toolbox, *args: Any, **kwargs: Any) -> Any:
        perform(self, *args, **kwargs)
        raise ConnectionAbortedError

    with monkeypatch.context() as patch:
        patch.setattr(Toolbox, "perform", dies)
        with pytest.raises(ConnectionAbortedError):
            answer_question(command, tooled)
    done = case()
    assert done[0] == "closed"
    answer_question(command, tooled)
    assert ended(tenant, command.run_id)[0].state == "answered"
    assert case() == done


# ---- steps, feedback, the sweep


def test_a_step_is_kept_only_by_who_holds_the_run(make_tenant: Callable[..., Principal], bus: FakeBus) -> None:
    """A later epoch, another tenant, a cancelled run: refused in the write itself, and nothing of it is there."""
    from shared.conversations.steps import Step, keep

    one, two = make_tenant(), make_tenant()
    command = put(one)
    with tenant_session(one.tenant_id) as session:
        lease = take_lease(session, one.tenant_id, command.run_id)
    step = Step(str(command.run_id), "", "1", None, "msgpack", b"x", "{}")
    events = [RunEvent(lease.next_seq, "step", {"name": "retrieve"})]
    for wrong in (replace(lease, epoch=0), replace(lease, tenant_id=two.tenant_id)):
        with pytest.raises(Superseded):
            keep(wrong, events, step)
    keep(lease, events, step)
    keep(lease, [], replace(step, step="2", parent="1"))
    with operator_session() as session:
        rows = session.execute(
            text("select tenant_id, checkpoint_id from core.checkpoints where thread_id = :r"),
            {"r": str(command.run_id)},
        )
        assert [tuple(row) for row in rows] == [(one.tenant_id, "2")]
    assert [event.data for event in ended(one, command.run_id)[1]] == [{"name": "retrieve"}]
    with tenant_session(one.tenant_id) as session:
        cancel(session, one, command.run_id)
    with pytest.raises(Superseded):
        keep(lease, [], step)


def test_the_sweep_wakes_what_waited_for_a_time(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """The postponed command was lost: two minutes after its time the run is commanded again, and goes on."""
    from functions.maintenance.jobs.sweep import _runs_without_worker

    index(tenant, "urlaub", HOLIDAY)
    command = put(tenant)
    models_of(fake_services).failures = [Postponed(fake_services.clock.now() + timedelta(hours=1), "busy")]
    with pytest.raises(Postponed):
        answer_question(command, fake_services)
    with operator_session() as session:
        assert command.run_id not in [row[1] for row in _runs_without_worker(session)]
        session.execute(
            text("update core.runs set waiting_until = now() - interval '3 minutes' where run_id = :r"),
            {"r": command.run_id},
        )
        session.execute(text("delete from core.provider_gates"))
        assert command.run_id in [row[1] for row in _runs_without_worker(session)]
    models_of(fake_services).replies = [GOOD]
    answer_question(command, fake_services)
    assert ended(tenant, command.run_id)[0].state == "answered"


def test_a_question_that_waited_a_week_ends_with_a_reason(tenant: Principal, fake_services: Services) -> None:
    """Nobody waits longer; what has ended is told."""
    command = put(tenant)
    with operator_session() as session:
        session.execute(
            text("update core.runs set created_at = now() - interval '8 days' where run_id = :r"), {"r": command.run_id}
        )
    models_of(fake_services).failures = [Postponed(fake_services.clock.now() + timedelta(hours=1), "busy")]
    with pytest.raises(Postponed):
        answer_question(command, fake_services)
    run, _ = ended(tenant, command.run_id)
    assert (run.state, run.reason) == ("failed", "waited-too-long")


def test_good_answers_become_golden_questions(tenant: Principal, fake_services: Services, tmp_path: Path) -> None:
    """Feedback is kept against what was cited and the space; what was found good can be evaluated."""
    from click.testing import CliRunner

    from cli.main import noesis
    from shared.conversations.feedback import give_feedback, recent_feedback
    from shared.retrieval.golden import read_questions

    index(tenant, "urlaub", HOLIDAY)
    models_of(fake_services).replies = [GOOD, GOOD]
    good, bad = put(tenant), put(tenant)
    for command in (good, bad):
        answer_question(command, fake_services)
    with tenant_session(tenant.tenant_id) as session:
        give_feedback(session, tenant, good.run_id, "up", "genau")
        give_feedback(session, tenant, bad.run_id, "down")
        words = recent_feedback(session, tenant.tenant_id)
    assert {word.run_id: word.rating for word in words} == {good.run_id: "up", bad.run_id: "down"}
    assert all(word.space_id and len(word.chunk_ids) == 1 for word in words)
    path = tmp_path / "golden.jsonl"
    result = CliRunner().invoke(noesis, ["feedback", "export", str(path), "--tenant", tenant.tenant_slug])
    assert result.exit_code == 0, result.output
    (question,) = read_questions(path)
    assert question.relevant[0].document == "urlaub"
    assert (question.relevant[0].passage or "") in HOLIDAY
    assert question.language == "de"


def test_a_run_says_which_prompts_it_used(tenant: Principal, fake_services: Services) -> None:
    """Name, version and the beginning of the text's hash."""
    from functions.agent.prompts import prompt

    index(tenant, "urlaub", HOLIDAY)
    models_of(fake_services).replies = [GOOD]
    command = put(tenant)
    answer_question(command, fake_services)
    with operator_session() as session:
        used = session.execute(
            text("select prompts from core.runs where run_id = :r"), {"r": command.run_id}
        ).scalar_one()
    assert used == prompt("answer").tag
