"""A chat provider that fails behind the real proxy: typed outcomes, the ledger is its bill, nothing is paid twice."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from shared import llm
from shared.database import operator_session
from shared.fakes import FakeBus
from shared.llm import ChatReply, LiteLLM
from shared.services import services
from tests.agent_door import GOOD, QUESTION, Agent, Door, open_door
from tests.conftest import Database
from tests.scripted_model import FAULTS, REFUSED, Say

PATIENCE = 5.0
"""Seconds that the agent bears a model that means to be silent. One that answers has all the time of production: how
long a busy machine takes for it is no fault of the model."""

OUTCOMES = {
    "429": (204, "waiting", "provider"),
    "429-retry-after": (204, "waiting", "provider"),
    "503": (204, "waiting", "provider"),
    "503-retry-after": (204, "waiting", "provider"),
    "500": (503, "queued", None),
    "401": (503, "queued", None),
    "hang": (503, "queued", None),
    "reset": (503, "queued", None),
    "html": (503, "queued", None),
    "empty": (503, "queued", None),
    "truncated": (503, "queued", None),
    "cut": (503, "queued", None),
    "no-choices": (503, "queued", None),
    "filter-400": (204, "failed", "content-filtered"),
    "filter": (204, "failed", "content-filtered"),
    "length": (204, "answered", None),
    "no-usage": (204, "answered", None),
    "wrong-usage": (204, "answered", None),
}
"""Fault → status of the door, state of the run, and what it waits for or why it failed."""


@pytest.fixture(scope="module")
def door(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """Once for the module: the proxy takes more than ten seconds to start."""
    with open_door(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.fixture
def heard() -> threading.Event:
    """Set when the first word of the model has reached the agent."""
    return threading.Event()


@pytest.fixture
def agent(door: Door, bus: FakeBus, monkeypatch: pytest.MonkeyPatch, heard: threading.Event) -> Iterator[Agent]:
    """The agent with a fresh tenant, and less patience with its model where the script has a silence next."""

    class Listening(LiteLLM):
        def chat(self, *args: Any, **options: Any) -> Iterator[str | ChatReply]:
            says = door.script.says
            silent = bool(says) and says[0].fault == "hang"
            with monkeypatch.context() as patch:
                patch.setattr(llm, "CHAT_SECONDS", PATIENCE if silent else llm.CHAT_SECONDS)
                patch.setattr(self._http, "timeout", httpx.Timeout(60, read=PATIENCE) if silent else llm.TIMEOUT)
                for piece in super().chat(*args, **options):
                    heard.set()
                    yield piece

    models = Listening(services().settings)
    monkeypatch.setattr(services(), "_models", models)
    yield door.agent(bus)
    models.close()


def time_passes(agent: Agent) -> None:
    """What was waited for is over."""
    with operator_session() as operator:
        operator.execute(text("delete from core.provider_gates"))
        operator.execute(
            text("update core.runs set waiting_until = now() where tenant_id = :t and state = 'waiting'"),
            {"t": agent.tenant.tenant_id},
        )


def wait_until_heard(heard: threading.Event) -> None:
    """Hold the model until its first word has arrived."""
    assert heard.wait(60), "the first word never arrived"


def calls_stored(run_id: UUID) -> Counter[str]:
    """The finished calls of a run by key."""
    with operator_session() as operator:
        rows = operator.execute(text("select call_key from core.model_calls where run_id = :run"), {"run": run_id})
        return Counter(row.call_key for row in rows)


def test_every_fault_has_its_outcome() -> None:
    """The table below is complete."""
    assert set(OUTCOMES) == set(FAULTS)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_as_it_should_and_is_mended_by_the_next_delivery(
    agent: Agent, heard: threading.Event, fault: str
) -> None:
    """Waiting, another delivery or an answer by what went wrong; asked once a delivery, paid as billed."""
    agent.script.fresh(Say(GOOD, fault=fault), then=Say(GOOD))
    # A reset throws away what was sent and not yet read: what breaks off in the middle must have been heard till there.
    agent.script.before_piece = lambda number: None if number == 0 else wait_until_heard(heard)
    run_id = agent.ask()
    status = agent.deliver(run_id)
    run, _ = agent.run(run_id)
    why = run.reason if run.state == "failed" else run.waiting_for
    assert (status, run.state, why) == OUTCOMES[fault]
    assert len(agent.script.asked) == 1
    tokens, output, cost, reserved = agent.money()
    bill = agent.script.billed
    assert reserved == 0
    assert cost == tokens + output
    if fault in REFUSED or fault in ("hang", "reset", "html", "empty", "no-choices"):
        assert (tokens, output) == (bill["embedded"], 0)
    elif fault in ("length", "filter"):
        assert (tokens, output) == (bill["in"] + bill["embedded"], bill["out"])
    else:
        # It spoke and did not count, or counted nonsense: booked is at least what was said, and a bounded amount.
        assert tokens > bill["embedded"]
        assert 0 < output <= services().settings.max_tokens
    if run.state in ("answered", "failed"):
        return
    time_passes(agent)
    assert agent.deliver(run_id) == 204
    run, events = agent.run(run_id)
    assert (run.state, len(run.citations)) == ("answered", 1)
    assert [e.kind for e in events].count("answer") == 1
    last = max((e.seq for e in events if e.kind == "draft-restarted"), default=0)
    assert "".join(e.data["text"] for e in events if e.kind == "token" and e.seq > last).strip() == GOOD
    assert len(agent.script.asked) == 2
    assert calls_stored(run_id) == {"embed:0": 1, "generate:0": 1}


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_at_any_rate_of_faults_the_ledger_is_the_bill(agent: Agent, share: float) -> None:
    """5, 30 and 100 %: every question is answered when the provider is well again, to the token, and asked no more."""
    faults = [fault for fault in FAULTS if fault in REFUSED and fault not in ("filter-400",)] + ["reset", "no-choices"]
    questions = 20
    wrong = round(questions * share)
    says = [Say(GOOD, fault=faults[n % len(faults)]) for n in range(wrong)]
    spread = [Say(GOOD)] * (questions - wrong)
    for n, say in enumerate(says):
        spread.insert(n * questions // max(1, wrong), say)
    agent.script.fresh(*spread, then=Say(GOOD))
    runs = [agent.ask(f"{QUESTION} Frage {n}.") for n in range(questions)]
    left, statuses = list(runs), Counter[int]()
    for _ in range(len(spread) + 1):
        for run_id in left:
            statuses[agent.deliver(run_id)] += 1
            time_passes(agent)
        left = [run_id for run_id in left if agent.run(run_id)[0].state != "answered"]
        if not left:
            break
    assert not left
    assert set(statuses) <= {204, 503}
    assert len(agent.script.asked) == questions + wrong
    bill = agent.script.billed
    assert agent.money() == (bill["in"] + bill["embedded"], bill["out"], sum(bill.values()), 0)
    for run_id in runs:
        assert calls_stored(run_id) == {"embed:0": 1, "generate:0": 1}
        assert [e.kind for e in agent.run(run_id)[1]].count("answer") == 1
    assert agent.bus.names().count("answer-ready") == questions


def test_while_the_provider_asks_for_time_nobody_asks_it(agent: Agent) -> None:
    """One 429 closes the gate for every run; when it opens each is asked once."""
    agent.script.fresh(Say(fault="429-retry-after"), then=Say(GOOD))
    first, second = agent.ask(), agent.ask()
    for run_id in (first, second):
        assert agent.deliver(run_id) == 204
        assert agent.run(run_id)[0].waiting_for == "provider"
    assert len(agent.script.asked) == 1
    time_passes(agent)
    for run_id in (first, second):
        assert agent.deliver(run_id) == 204
        assert agent.run(run_id)[0].state == "answered"
    assert len(agent.script.asked) == 3
