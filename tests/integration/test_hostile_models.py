"""A chat model that means harm, or is only broken, behind the real proxy: one answer, paid once, booked in full."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from shared.database import operator_session, tenant_session
from shared.fakes import FakeBus
from shared.services import services
from shared.settings import get_settings
from tests.agent_door import GOOD, QUESTION, Agent, Door, open_door
from tests.conftest import Database
from tests.scripted_model import Say

DEEP = 300
SEARCH = '{"query": "Urlaub"}'


@pytest.fixture(scope="module")
def door(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """Once for the module: the proxy takes more than ten seconds to start."""
    with open_door(tmp_path_factory.mktemp("hostile")) as made:
        yield made


@pytest.fixture
def agent(door: Door, bus: FakeBus, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """The agent with a fresh tenant and a model that calls tools."""
    monkeypatch.setattr(services(), "settings", get_settings().model_copy(update={"chat_abilities": "tools"}))
    monkeypatch.setattr(services(), "_models", None)
    return door.agent(bus)


def stored_calls(run_id: UUID) -> list[str]:
    with operator_session() as operator:
        rows = operator.execute(text("select call_key from core.model_calls where run_id = :run"), {"run": run_id})
        return sorted(row.call_key for row in rows if not row.call_key.startswith("tool:"))


@pytest.mark.parametrize(
    "character",
    ["\x00", "\u2028", "\u2029", "\x85", "\x1b", "\u202e", "\U0001f9fe"],
    ids=ascii,
)
def test_whatever_character_a_model_writes_its_answer_is_stored(agent: Agent, character: str) -> None:
    """PostgreSQL takes no NUL, and lines of the stream end only where the proxy ends them: paid once, answered once."""
    agent.script.fresh(Say(f"Kurz {character} gesagt: {GOOD}"))
    run, events = agent.answer()
    assert (run.state, len(run.citations)) == ("answered", 1)
    assert run.answer is not None
    assert not set(run.answer) & {"\x00", "\x1b", "\u202e"}
    assert [event.kind for event in events].count("answer") == 1
    assert len(agent.script.asked) == 1
    bill = agent.script.billed
    assert agent.money() == (bill["in"] + bill["embedded"], bill["out"], sum(bill.values()), 0)


@pytest.mark.parametrize(
    "call",
    [
        ("search", '{"query": "Urlaub", "results": NaN}'),
        ("search", '{"query": "Urlaub", "results": 1e999}'),
        ("search", '{"query": "Urlaub", "results": ' + "9" * 100 + "}"),
        ("search", '{"query": ' * DEEP + '"Urlaub"' + "}" * DEEP),
        ("search", '{"query": "Urlaub", "query\\u0000": 1}'),
        ("sea\x00rch", SEARCH),
        ("ѕearch", SEARCH),
        ("search\u200b", SEARCH),
        ("x" * 5_000, SEARCH),
        ("", SEARCH),
    ],
    ids=["nan", "infinite", "large", "deep", "nul-key", "nul-name", "alike", "unseen", "long-name", "no-name"],
)
def test_a_call_that_cannot_be_is_told_to_the_model_once(agent: Agent, call: tuple[str, str]) -> None:
    """Arguments that no database, checkpoint or tool takes are refused, and so is every name but the tool's own."""
    agent.script.fresh(Say(calls=(call,)), then=Say(GOOD))
    run, _ = agent.answer()
    assert run.state == "answered"
    with tenant_session(agent.tenant.tenant_id) as session:
        assert not session.execute(
            text("select count(*) from core.tool_calls where run_id = :run and ok"), {"run": run.run_id}
        ).scalar_one()
    assert len(agent.script.asked) == 2
    spoken, told = agent.script.asked[1]["messages"][-2:]
    assert told["role"] == "tool"
    assert told["tool_call_id"] == spoken["tool_calls"][0]["id"]
    assert "There is no such tool" in told["content"] or "The arguments" in told["content"]
    bill = agent.script.billed
    assert agent.money() == (bill["in"] + bill["embedded"], bill["out"], sum(bill.values()), 0)


def test_a_thousand_calls_at_once_are_a_few(agent: Agent) -> None:
    """Some are done, every one that is repeated to the provider has its result, and the answer comes."""
    agent.script.fresh(Say(calls=tuple(("calculate", f'{{"expression": "1+{n}"}}') for n in range(1000))), Say(GOOD))
    run, _ = agent.answer()
    assert run.state == "answered"
    with tenant_session(agent.tenant.tenant_id) as session:
        done = session.execute(
            text("select count(*) from core.tool_calls where run_id = :run and ok"), {"run": run.run_id}
        ).scalar_one()
    assert done == 8
    messages: list[dict[str, Any]] = agent.script.asked[1]["messages"]
    wanted = [call["id"] for message in messages for call in message.get("tool_calls") or ()]
    results = [message["tool_call_id"] for message in messages if message["role"] == "tool"]
    assert len(wanted) <= 128
    # A model that is out of steps is told what tools found in one message, without the calls.
    assert results == wanted


@pytest.mark.parametrize(
    "usage",
    [{}, {"completion_tokens": -3}, {"completion_tokens": 10**9}],
    ids=["missing", "negative", "huge"],
)
def test_words_that_a_provider_does_not_count_are_not_free(agent: Agent, usage: dict[str, Any]) -> None:
    """It counted what it read and not what it wrote: booked is the most that it may have written."""
    agent.script.fresh(Say(GOOD, usage={"prompt_tokens": 7} | usage))
    run, _ = agent.answer()
    assert run.state == "answered"
    tokens, output, cost, reserved = agent.money()
    assert (tokens, output, reserved) == (7 + agent.script.billed["embedded"], get_settings().max_tokens, 0)
    assert cost == tokens + output


def test_a_tool_call_that_breaks_off_is_booked(agent: Agent) -> None:
    """Its arguments are words that the provider has sold, also when nobody ever reads them."""
    agent.script.fresh(Say(calls=(("search", '{"query": "' + "Urlaub " * 40 + '"}'),), half=True), then=Say(GOOD))
    run_id = agent.ask()
    assert agent.deliver(run_id) == 503
    tokens, output, cost, reserved = agent.money()
    assert tokens > agent.script.billed["embedded"]
    assert 140 <= output < get_settings().max_tokens
    assert (cost, reserved) == (tokens + output, 0)
    assert agent.deliver(run_id) == 204
    assert agent.run(run_id)[0].state == "answered"


def test_a_person_cancels_while_the_model_writes_a_tool_call(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is said aloud, so nothing is written: the run is looked at all the same."""
    from functions.agent import journal
    from shared.conversations.waiting import cancel

    monkeypatch.setattr(journal, "LOOK_SECONDS", 0.0)
    run_id: list[UUID] = []

    def stop(_number: int) -> None:
        with tenant_session(agent.tenant.tenant_id) as session:
            cancel(session, agent.tenant, run_id[0])

    agent.script.fresh(Say(calls=(("search", SEARCH),) * 3), then=Say(GOOD))
    agent.script.before_piece = stop
    run_id.append(agent.ask(QUESTION))
    assert agent.deliver(run_id[0]) == 204
    assert agent.run(run_id[0])[0].state == "cancelled"
    assert stored_calls(run_id[0]) == ["embed:0"]
