"""What the agent makes of a conversation and of its evidence, and in which language it answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import text

from functions.agent.answering import answer_question
from shared.completions import ChatReply
from shared.conversations.runs import ask, read_run
from shared.database import operator_session, tenant_session
from shared.events import AnswerQuestion
from shared.fakes import FakeBus, FakeModels
from shared.llm import Abilities
from shared.services import Services
from shared.settings import Settings
from shared.tenants.directory import Principal
from tests.integration.agent_material import GOOD, ended, models_of, set_floor
from tests.integration.test_answering import HOLIDAY, index, put


@pytest.fixture
def writer(settings: Settings, bus: FakeBus) -> Services:
    """Services whose chat model writes, but calls no tools."""
    return Services(settings, _models=FakeModels(able=Abilities(True)))


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


@pytest.fixture
def high_floor(tenant: Principal) -> Iterator[None]:
    """Hardly anything is evidence."""
    set_floor(tenant, 0.9)
    yield
    set_floor(tenant, None)


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
