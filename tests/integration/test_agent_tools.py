"""Tools in a run: called, cited, limited, and with the word of people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from functions.agent import deciding
from functions.agent.answering import answer_question
from shared.completions import ToolCall
from shared.database import tenant_session
from shared.errors import Superseded
from shared.fakes import FakeBus, FakeModels
from shared.llm import Abilities
from shared.services import Services
from shared.settings import Settings
from shared.tenants.directory import Principal
from shared.tools.approvals import decide, pending_approvals
from shared.tools.cases import put_case, read_case
from tests.integration.agent_material import GOOD, calls, ended, models_of, set_floor
from tests.integration.test_answering import HOLIDAY, index, put
from tests.integration.tool_material import allow


@pytest.fixture
def tooled(tenant: Principal, settings: Settings, bus: FakeBus) -> Services:
    """Services whose model calls tools, in a tenant that allows them."""
    able = settings.model_copy(update={"chat_abilities": "tools"})
    return Services(able, _models=FakeModels(able=Abilities(True, True)))


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
    set_floor(tenant, 0.9)
    models = models_of(tooled)
    models.replies = [calls(("search", {"query": "Arbeitstage Urlaub Portal"})), GOOD]
    command = put(tenant, "Wie lange darf ich in die Ferien?")
    try:
        answer_question(command, tooled)
    finally:
        set_floor(tenant, None)
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
