"""Two things at once: a run that waits or is resumed while access, vector space or time changes around it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from cli.main import noesis
from functions.agent import answering, nodes
from functions.agent.answering import answer_question
from functions.agent.journal import Journal
from functions.agent.tooling import effects
from shared.conversations.runs import ask
from shared.database import operator_session, tenant_session
from shared.errors import PermanentError
from shared.events import Access
from shared.fakes import FakeModels
from shared.llm import Abilities, ToolCall
from shared.retrieval.spaces import activate_first, ensure_space
from shared.services import Services
from shared.settings import Settings
from shared.tenants.directory import Principal
from shared.tools.approvals import decide, pending_approvals
from shared.tools.cases import put_case
from tests.integration.agent_material import GOOD, ended, models_of
from tests.integration.test_agent_money import dies_once
from tests.integration.test_answering import HOLIDAY, index, put
from tests.integration.tool_material import allow

PAY = "Das Gehalt der Leitung beträgt neuntausend Euro im Monat."


@pytest.fixture
def tooled(tenant: Principal, settings: Settings) -> Services:
    """Services whose model calls tools."""
    able = settings.model_copy(update={"chat_abilities": "tools"})
    return Services(able, _models=FakeModels(able=Abilities(True, True)))


def close(tenant: Principal, document: object) -> None:
    """Somebody else's document from now on."""
    with operator_session() as operator:
        operator.execute(
            text("update rag.documents set access_members = '{boss@example.com}' where document_id = :d"),
            {"d": document},
        )


def delete(tenant: Principal, document: object) -> None:
    """Softly: it can be restored."""
    with operator_session() as operator:
        operator.execute(text("update rag.documents set state = 'deleted' where document_id = :d"), {"d": document})


@pytest.mark.parametrize("change", [close, delete])
def test_what_was_closed_while_a_run_waited_is_not_read_by_it(
    tenant: Principal, tooled: Services, change: Callable[[Principal, object], None]
) -> None:
    """Days lie between the question and the word of a person: the model is not shown the passages again."""
    document = index(tenant, "gehalt", PAY, access=Access(members=(tenant.email,)))
    with tenant_session(tenant.tenant_id) as session:
        put_case(session, tenant.tenant_id, "C-1", "Gehalt", "upstream")
    allow(tenant, "update_case", asking="always", approvers=("asker",), four_eyes=False)
    models = models_of(tooled)
    models.replies = [[ToolCall("c", "update_case", {"case_number": "C-1", "status": "closed"})]]
    command = put(tenant, "Wie hoch ist das Gehalt der Leitung im Monat?")
    answer_question(command, tooled)
    assert ended(tenant, command.run_id)[0].waiting_for == "approval"
    assert PAY in str(models.asked)
    models.asked.clear()
    change(tenant, document)
    with tenant_session(tenant.tenant_id) as session:
        decide(session, tenant, pending_approvals(session, tenant)[0].approval_id, "approved")
    answer_question(command, tooled)
    run, _ = ended(tenant, command.run_id)
    assert (run.state, run.reason) == ("failed", "source-closed")
    assert models.asked == []


def test_an_answer_names_the_source_of_every_sentence(tenant: Principal, fake_services: Services) -> None:
    """A true sentence that the model left without a mark gets it: closed with its document, it is withheld."""
    index(tenant, "urlaub", HOLIDAY)
    document = index(tenant, "gehalt", f"Urlaub der Beschäftigten. {PAY}")
    models_of(fake_services).replies = [f"{GOOD} {PAY}"]
    command = put(tenant, "Wie viele Arbeitstage Urlaub haben alle Beschäftigten, und wie hoch ist das Gehalt?")
    answer_question(command, fake_services)
    run, _ = ended(tenant, command.run_id)
    assert {citation.document_id for citation in run.citations} >= {document}
    assert run.findings == ()
    assert PAY[:-1] in (run.answer or "")
    close(tenant, document)
    run, events = ended(tenant, command.run_id)
    assert PAY[:-1] not in (run.answer or "") + "".join(str(event.data) for event in events)


def test_a_vector_of_another_space_is_not_used(
    tenant: Principal, fake_services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies after the embedding, and a campaign switches before the next one: it asks the new model."""
    index(tenant, "urlaub", HOLIDAY)
    command = put(tenant)
    dies_once(monkeypatch, nodes, "search")
    with pytest.raises(ConnectionAbortedError):
        answer_question(command, fake_services)
    with operator_session() as operator:
        operator.execute(
            text("update rag.tenant_spaces set state = 'retired' where tenant_id = :t"), {"t": tenant.tenant_id}
        )
        activate_first(operator, tenant.tenant_id, ensure_space(operator, "other", 32))
    index(tenant, "noch-einmal", HOLIDAY)
    models = models_of(fake_services)
    models.replies = [GOOD]
    answer_question(command, fake_services)
    run, _ = ended(tenant, command.run_id)
    assert (run.state, len(run.citations)) == ("answered", 1)
    assert len(models.embedded) == 2


def test_a_run_is_handed_over_between_two_calls(
    tenant: Principal, tooled: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight tools of thirty seconds are longer than an invocation: what was done is kept, and done once."""
    index(tenant, "urlaub", HOLIDAY)
    done: list[str] = []
    real = effects.READERS["calculate"]

    def counted(arguments: Any, work: Any) -> Any:
        done.append(arguments.expression)
        return real(arguments, work)

    monkeypatch.setitem(effects.READERS, "calculate", counted)
    wanted = [ToolCall(f"c{n}", "calculate", {"expression": f"{n}+1"}) for n in range(3)]
    models_of(tooled).replies = [wanted, GOOD]
    command = put(tenant)
    with monkeypatch.context() as late:
        late.setattr(answering, "Journal", lambda lease, over: Journal(lease, lambda: len(done) == 1))
        answer_question(command, tooled)
    run, _ = ended(tenant, command.run_id)
    assert (run.state, done) == ("queued", ["0+1"])
    answer_question(command, tooled)
    run, _ = ended(tenant, command.run_id)
    assert (run.state, done) == ("answered", ["0+1", "1+1", "2+1"])
    assert len(models_of(tooled).asked) == 2


def test_calls_without_an_id_get_one_each(tenant: Principal, tooled: Services) -> None:
    """By it the provider finds the result to the call; some models give none, and some the same twice."""
    index(tenant, "urlaub", HOLIDAY)
    models = models_of(tooled)
    named = [("", "1+1"), ("", "2+2"), ("x", "3+3"), ("x", "4+4")]
    models.replies = [[ToolCall(i, "calculate", {"expression": e}) for i, e in named], GOOD]
    command = put(tenant)
    answer_question(command, tooled)
    assert ended(tenant, command.run_id)[0].state == "answered"
    spoken, *told = models.asked[1][2:]
    ids = [call["id"] for call in spoken["tool_calls"]]
    assert ids == [message["tool_call_id"] for message in told]
    assert len(set(ids)) == 4
    assert all(ids)


def test_a_question_cannot_move_the_cursor_of_who_decides(tenant: Principal, tooled: Services) -> None:
    """Whoever asks is not trusted by whoever agrees: what stands at the terminal is what will be done."""
    index(tenant, "urlaub", HOLIDAY)
    with tenant_session(tenant.tenant_id) as session:
        put_case(session, tenant.tenant_id, "C-1", "Urlaub", "upstream")
    allow(tenant, "update_case", asking="always", approvers=("asker",), four_eyes=False)
    wanted = ToolCall("c", "update_case", {"case_number": "C-1", "status": "closed"})
    models_of(tooled).replies = [[wanted]]
    command = put(tenant, "Wie viele\x1b[9A\x9b2J Arbeitstage\u202e Urlaub?\x07")
    answer_question(command, tooled)
    assert ended(tenant, command.run_id)[0].question == "Wie viele[9A2J Arbeitstage\u202e Urlaub?"
    with tenant_session(tenant.tenant_id) as session:
        approval = pending_approvals(session, tenant)[0].approval_id
    arguments = ["approvals", "show", str(approval), "-t", tenant.tenant_slug, "--as", tenant.email]
    shown = CliRunner().invoke(noesis, arguments, env={"COLUMNS": "300"})
    assert shown.exit_code == 0, shown.output
    assert "Arbeitstage\\u202e Urlaub?" in shown.output
    assert not set(shown.output) & {"\x1b", "\x9b", "\u202e"}


def test_a_draft_hides_nothing_while_it_comes(tenant: Principal, fake_services: Services) -> None:
    """It is read before it is checked: characters that reorder or are not seen go at once."""
    index(tenant, "urlaub", HOLIDAY)
    models_of(fake_services).replies = [f"Es\u202e sind\u200b\x1b[2J: {GOOD}"]
    command = put(tenant)
    answer_question(command, fake_services)
    _, events = ended(tenant, command.run_id)
    draft = "".join(event.data["text"] for event in events if event.kind == "token")
    assert draft == f"Es sind[2J: {GOOD}"


def test_two_questions_with_one_key_at_once_are_told_apart(tenant: Principal) -> None:
    """The second waits for the first, learns that its key is taken, and is not answered with the other's answer."""
    told: list[str] = []

    def second() -> None:
        with tenant_session(tenant.tenant_id) as session:
            try:
                ask(session, tenant, "Wie viele Tage sind es?", idempotency_key="k")
            except PermanentError as error:
                told.append(error.reason)

    thread = threading.Thread(target=second)
    with tenant_session(tenant.tenant_id) as session:
        first = ask(session, tenant, "Wann wird erstattet?", idempotency_key="k")
        mine = session.execute(text("select pg_backend_pid()")).scalar_one()
        thread.start()
        while not session.execute(
            text("select 1 from pg_locks where not granted and :mine = any(pg_blocking_pids(pid))"), {"mine": mine}
        ).first():
            assert thread.is_alive()
    thread.join()
    assert told == ["key-used-already"]
    assert ended(tenant, first)[0].question == "Wann wird erstattet?"
