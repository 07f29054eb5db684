"""Every node and every verdict of verification, with a scripted model behind the real proxy and the real door."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from shared.conversations.waiting import cancel, wake_runs
from shared.database import operator_session, tenant_session
from shared.fakes import FakeBus
from shared.money.budgets import set_budget
from shared.services import services
from shared.settings import get_settings
from shared.tools.approvals import decide, pending_approvals
from shared.tools.cases import put_case, read_case
from tests.agent_door import GOOD, QUESTION, Agent, Door, open_door
from tests.conftest import Database
from tests.integration.tool_material import allow
from tests.scripted_model import Say


@pytest.fixture(scope="module")
def door(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """Once for the module: the proxy takes more than ten seconds to start."""
    with open_door(tmp_path_factory.mktemp("agent")) as made:
        yield made


@pytest.fixture
def agent(door: Door, bus: FakeBus) -> Agent:
    """The agent with a fresh tenant."""
    return door.agent(bus)


@pytest.fixture
def able(door: Door, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Says what the model can do (CHAT_ABILITIES)."""

    def set_to(abilities: str) -> None:
        settings = get_settings().model_copy(update={"chat_abilities": abilities})
        monkeypatch.setattr(services(), "settings", settings)
        monkeypatch.setattr(services().models, "_settings", settings)

    return set_to


def findings(run_id: UUID) -> list[str]:
    """What verification found, as the last step stored it."""
    with operator_session() as operator:
        stored = operator.execute(
            text("select checkpoint from core.checkpoints where thread_id = :run order by checkpoint_id desc limit 1"),
            {"run": str(run_id)},
        ).scalar_one()
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

    values = JsonPlusSerializer().loads_typed(("msgpack", bytes(stored)))["channel_values"]
    return list(values.get("findings", []))


# ---- proof


def test_a_proven_answer_is_cited_and_booked_to_the_token(agent: Agent) -> None:
    """Question in, quotation with document and place out; the ledger is the provider's bill."""
    agent.script.fresh(Say(GOOD))
    run, events = agent.answer()
    assert (run.state, run.no_evidence, len(run.citations)) == ("answered", False, 1)
    assert run.citations[0].quote.startswith("Alle Beschäftigten")
    assert "".join(e.data["text"] for e in events if e.kind == "token").strip() == GOOD
    bill = agent.script.billed
    assert bill["in"] > 50
    assert agent.money() == (bill["in"] + bill["embedded"], bill["out"], sum(bill.values()), 0)
    assert run.cost_eur == sum(bill.values())
    assert agent.bus.names().count("answer-ready") == 1


@pytest.mark.parametrize(
    ("said", "finding"),
    [
        ("„Alle Beschäftigten bekommen einen Dienstwagen und eine Bahnkarte.“ [1]", "invented"),
        ("„Alle Beschäftigten haben Anspruch auf 40 Arbeitstage Urlaub.“ [1]", "altered-number"),
        ("„Alle Beschäftigten haben Anspruch auf 14 Tagen nach Eingang der Belege.“ [1] [2]", "mixed-sources"),
        ("„Alle Beschäftigten haben Anspruch auf 30 Arbeitstage Urlaub.“ [7]", "wrong-number"),
        ("Die Kantine öffnet montags schon am frühen Morgen [1].", "unsupported"),
        ("Die Kantine öffnet montags schon am frühen Morgen.", "unmarked"),
    ],
)
def test_what_is_not_proven_is_found_and_not_answered(agent: Agent, said: str, finding: str) -> None:
    """Each way to be wrong has its name, and alone it is no answer."""
    agent.script.fresh(Say(said))
    run, _ = agent.answer()
    assert (run.state, run.no_evidence, run.citations) == ("answered", True, ())
    assert findings(run.run_id) == [finding]
    assert said not in (run.answer or "")


def test_beside_a_proven_claim_the_unproven_one_is_labelled(agent: Agent) -> None:
    """What holds keeps its citation; what does not says so."""
    agent.script.fresh(Say(f"{GOOD} Die Kantine öffnet montags schon am frühen Morgen [1]."))
    run, _ = agent.answer()
    assert (run.no_evidence, len(run.citations)) == (False, 1)
    assert (run.answer or "").endswith("(nicht belegt)") or "(nicht belegt)" in (run.answer or "")
    assert findings(run.run_id) == ["unsupported"]


@pytest.mark.parametrize("said", ["NO_EVIDENCE", ""])
def test_a_model_that_finds_nothing_is_believed(agent: Agent, said: str) -> None:
    """Nothing found is said plainly, in the language of the question."""
    agent.script.fresh(Say(said))
    run, _ = agent.answer()
    assert (run.no_evidence, run.citations) == (True, ())
    assert "keinen Beleg" in (run.answer or "")


def test_an_answer_in_the_wrong_language_is_written_again(agent: Agent, able: Callable[[str], None]) -> None:
    """The second draft replaces the first; readers are told; both are paid."""
    able("writes")
    english = "The company grants its whole staff a generous number of days of paid leave every single year."
    agent.script.fresh(Say(f"{english} {GOOD}"), Say(GOOD))
    run, events = agent.answer()
    assert run.answer == GOOD
    assert [e.kind for e in events].count("draft-restarted") == 1
    assert len(agent.script.asked) == 2
    assert "German" in agent.script.asked[1]["messages"][-1]["content"]
    assert run.cost_eur == sum(agent.script.billed.values())


def test_a_follow_up_is_made_understandable_first(agent: Agent, able: Callable[[str], None]) -> None:
    """The conversation goes to the model as data, and what it makes of the question is searched for."""
    able("writes")
    agent.script.fresh(Say(GOOD), Say(QUESTION), Say(GOOD))
    first, _ = agent.answer()
    run_id = agent.ask("Und wie viele sind das?", first.conversation_id)
    assert agent.deliver(run_id) == 204
    run, _ = agent.run(run_id)
    assert (run.state, len(run.citations)) == ("answered", 1)
    assert "<conversation>" in agent.script.asked[1]["messages"][1]["content"]
    assert QUESTION in agent.script.asked[2]["messages"][1]["content"]


# ---- tools and people

CLOSE = ("update_case", json.dumps({"case_number": "4711", "status": "closed", "note": "erledigt"}))


def test_a_tool_is_called_over_the_wire(agent: Agent, able: Callable[[str], None]) -> None:
    """Arguments come in pieces, the result goes back as data, and a claim that rests on it is proven."""
    able("tools")
    agent.script.fresh(Say(calls=(("calculate", '{"expression": "30*2"}'),)), Say(f"Das Ergebnis ist 60 [3]. {GOOD}"))
    run, events = agent.answer()
    assert "(calculate)" in (run.answer or "")
    assert [e.data["name"] for e in events if e.kind == "step"] == ["retrieve", "reason", "act", "reason", "verify"]
    told = agent.script.asked[1]["messages"][-1]
    assert (told["role"], told["tool_call_id"]) == ("tool", "call-0")
    assert "60" in told["content"]


def test_arguments_that_are_no_json_are_told_to_the_model(agent: Agent, able: Callable[[str], None]) -> None:
    """A model that writes nonsense gets an answer to it, not an error page."""
    able("tools")
    agent.script.fresh(Say(calls=(("calculate", '{"expression": '),)), Say(GOOD))
    run, _ = agent.answer()
    assert (run.state, len(run.citations)) == ("answered", 1)
    assert agent.script.asked[1]["messages"][-1]["role"] == "tool"


@pytest.mark.parametrize("kind", ["approved", "refused"])
def test_what_needs_a_person_waits_for_one(agent: Agent, able: Callable[[str], None], kind: Any) -> None:
    """The run holds nothing meanwhile; the decision sends it on, once, however often it is delivered."""
    able("tools")
    allow(agent.tenant, "update_case", approvers=("admin",), four_eyes=False)
    with tenant_session(agent.tenant.tenant_id) as session:
        put_case(session, agent.tenant.tenant_id, "4711", "Reklamation", "test")
    agent.script.fresh(Say(calls=(CLOSE,)), Say(GOOD))
    run_id = agent.ask("Schließe Fall 4711. " + QUESTION)
    assert agent.deliver(run_id) == 204
    assert agent.run(run_id)[0].waiting_for == "approval"
    assert agent.deliver(run_id) == 204
    with tenant_session(agent.tenant.tenant_id) as session:
        assert read_case(session, agent.tenant, "4711").status == "open"
        (approval,) = pending_approvals(session, agent.tenant)
        decide(session, agent.tenant, approval.approval_id, kind, None, "so")
    for _ in range(2):
        assert agent.deliver(run_id) == 204
    run, events = agent.run(run_id)
    assert run.state == "answered"
    with tenant_session(agent.tenant.tenant_id) as session:
        found = read_case(session, agent.tenant, "4711")
    assert found.status == ("closed" if kind == "approved" else "open")
    assert [e.kind for e in events].count("answer") == 1
    assert len(agent.script.asked) == 2


# ---- delivery, cancelling and money


def test_two_deliveries_at_once_are_one_answer(agent: Agent) -> None:
    """The second finds the run held and is acknowledged; one call, one answer, one announcement."""
    agent.script.fresh(Say(GOOD * 5))
    run_id = agent.ask()
    statuses: list[int] = []

    def second(number: int) -> None:
        if number == 3:  # the first delivery is in the middle of its answer
            statuses.append(agent.deliver(run_id))

    agent.script.before_piece = second
    statuses.append(agent.deliver(run_id))
    run, events = agent.run(run_id)
    assert statuses == [204, 204]
    assert (run.state, len(agent.script.asked)) == ("answered", 1)
    assert [e.kind for e in events].count("answer") == 1
    assert agent.bus.names().count("answer-ready") == 1


def test_half_an_answer_is_not_taken_for_a_whole_one(agent: Agent) -> None:
    """The provider breaks off in the middle: the next delivery asks again, and readers drop what they had."""
    agent.script.fresh(Say(GOOD + " Und noch etwas.", fault="cut"), Say(GOOD))
    run_id = agent.ask()
    assert agent.deliver(run_id) == 503
    assert agent.run(run_id)[0].state == "queued"
    assert agent.deliver(run_id) == 204
    run, events = agent.run(run_id)
    assert run.answer == GOOD
    assert [e.kind for e in events].count("draft-restarted") == 1


def test_a_person_cancels_while_the_model_speaks(agent: Agent) -> None:
    """The provider is hung up on, nothing stays reserved, and no answer comes."""
    agent.script.fresh(Say(GOOD * 40))
    run_id = agent.ask()

    def cancelled(number: int) -> None:
        if number == 5:
            with tenant_session(agent.tenant.tenant_id) as session:
                assert cancel(session, agent.tenant, run_id)
        agent.script.done.wait(0.02)

    agent.script.before_piece = cancelled
    assert agent.deliver(run_id) == 204
    run, events = agent.run(run_id)
    assert (run.state, run.answer, events[-1].kind) == ("cancelled", None, "cancelled")
    tokens, output, cost, reserved = agent.money()
    # It had spoken without counting: the most that can have been is booked, and no more.
    assert (tokens > 0, output > 0, reserved) == (True, True, 0)
    assert cost == tokens + output
    assert agent.bus.names().count("answer-ready") == 1


def test_a_hard_budget_stops_a_run_until_it_is_raised(agent: Agent) -> None:
    """Not a token above the limit; raised, the run goes on where it stood."""
    agent.script.fresh(Say(GOOD))
    with operator_session() as operator:
        set_budget(operator, agent.tenant.tenant_id, "day", Decimal(100))
    run_id = agent.ask()
    assert agent.deliver(run_id) == 204
    run, _ = agent.run(run_id)
    assert (run.state, run.waiting_for, agent.script.asked) == ("waiting", "budget", [])
    with operator_session() as operator:
        set_budget(operator, agent.tenant.tenant_id, "day", Decimal(100_000))
    with tenant_session(agent.tenant.tenant_id) as session:
        assert wake_runs(session, agent.tenant.tenant_id, ["budget"]) == 1
    assert agent.deliver(run_id) == 204
    run, _ = agent.run(run_id)
    assert (run.state, len(agent.script.asked)) == ("answered", 1)
    bill = agent.script.billed
    assert agent.money() == (bill["in"] + bill["embedded"], bill["out"], sum(bill.values()), 0)
