"""Many questions at once: none waits for another's model, none gets another's answer, each takes few round trips."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event, text

from functions.agent.answering import answer_question
from shared.conversations.runs import RunEvent, hold, take_lease
from shared.database import application_engine, forget_engines, operator_session, tenant_session
from shared.errors import Superseded
from shared.fakes import FakeModels
from shared.llm import ChatReply
from shared.money.budgets import read_budgets, set_budget
from shared.money.ledger import Call, reserve_alone
from shared.money.prices import Price, set_price
from shared.money.standing import standing_of
from shared.services import Services
from shared.settings import Settings
from shared.tenants.directory import Principal
from tests.integration.agent_material import GOOD, ended, models_of
from tests.integration.round_trips import statements
from tests.integration.test_answering import HOLIDAY, index, put

MOST_STATEMENTS, MOST_COMMITS = 42, 9
"""Of a question with one search and one chat: 39 with its steps, each of which commits by itself; 9 other commits."""


@pytest.fixture
def priced(database: object) -> Iterator[None]:
    """Every call touches the tenant's counters."""
    start = datetime(2026, 1, 2, tzinfo=UTC)
    with operator_session() as session:
        set_price(session, "extractive", Decimal(1), start, Decimal(10))
        set_price(session, "fake", Decimal(2), start)
    yield
    with operator_session() as session:
        session.execute(
            text("delete from core.prices where model in ('extractive', 'fake') and valid_from = :start"),
            {"start": start},
        )


@dataclass
class Silent(FakeModels):
    """A chat that says nothing until it is told to."""

    asked_for: threading.Event = field(default_factory=threading.Event)
    may_speak: threading.Event = field(default_factory=threading.Event)

    def chat(self, messages: Sequence[dict[str, Any]], **_: Any) -> Iterator[str | ChatReply]:
        """GOOD, when it may."""
        self.asked_for.set()
        assert self.may_speak.wait(60)
        yield GOOD
        yield ChatReply(GOOD, "extractive", 10, 10)


@pytest.mark.usefixtures("priced")
def test_a_slow_model_holds_nothing_that_another_question_of_its_tenant_needs(
    tenant: Principal, settings: Settings, fake_services: Services
) -> None:
    """While one question waits for its model, reserved in the tenant's budget, another one is paid and answered."""
    index(tenant, "urlaub", HOLIDAY)
    with operator_session() as operator:
        set_budget(operator, tenant.tenant_id, "day", Decimal(5))
    silent = Silent()
    slow, quick = put(tenant), put(tenant)
    models_of(fake_services).replies = [GOOD]
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(answer_question, slow, Services(settings, _models=silent))
        try:
            assert silent.asked_for.wait(60)
            answer_question(quick, fake_services)
            assert ended(tenant, quick.run_id)[0].state == "answered"
            with tenant_session(tenant.tenant_id) as session:
                reserved = {b.period: b.reserved for b in read_budgets(session, tenant.tenant_id, datetime.now(UTC))}
            assert reserved["day"] > 0
        finally:
            silent.may_speak.set()
        waiting.result(60)
    assert ended(tenant, slow.run_id)[0].answer == GOOD
    with tenant_session(tenant.tenant_id) as session:
        left = {b.period: b.reserved for b in read_budgets(session, tenant.tenant_id, datetime.now(UTC))}
    assert left["day"] == 0


@dataclass
class Echo(FakeModels):
    """Quotes the document whose name stands in the question."""

    def chat(self, messages: Sequence[dict[str, Any]], **_: Any) -> Iterator[str | ChatReply]:
        """The one sentence of that document, as it is."""
        asked = str(messages[-1]["content"])
        number = re.findall(r"Raum (\d+)", asked)[-1]
        passage = re.search(rf'n="(\d+)"[^>]*>\s*Raum {number} ', asked)
        assert passage, asked
        said = f"„Raum {number} liegt im Flügel {number}.“ [{passage[1]}]"
        yield said
        yield ChatReply(said, "extractive", 5, 5)


@pytest.mark.usefixtures("bus")
def test_questions_at_once_share_the_graph_and_nothing_else(tenant: Principal, settings: Settings) -> None:
    """The graph is compiled once a process; sixteen runs in eight threads each end with their own answer and events."""
    for number in range(10, 18):
        index(tenant, f"raum-{number}", f"Raum {number} liegt im Flügel {number}.")
    commands = {n: put(tenant, f"Wo liegt Raum {10 + n % 8}?") for n in range(16)}
    services = Services(settings, _models=Echo())
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda command: answer_question(command, services), commands.values()))
    for n, command in commands.items():
        run, events = ended(tenant, command.run_id)
        assert run.state == "answered"
        said = "".join(e.data["text"] for e in events if e.kind == "token")
        assert said.startswith(f"„Raum {10 + n % 8} ")
        assert [str(10 + n % 8) in citation.quote for citation in run.citations] == [True]


def test_a_question_takes_few_round_trips(tenant: Principal, fake_services: Services) -> None:
    """With thirty at once on two cores statements are the time: a new one in the way of every question is seen here."""
    index(tenant, "urlaub", HOLIDAY)
    models_of(fake_services).replies = [GOOD, GOOD]
    forget_engines()  # one connection from here on, and the first question learns what a connection asks once
    answer_question(put(tenant), fake_services)
    command = put(tenant)
    commits: list[object] = []

    def commit(connection: object) -> None:
        commits.append(connection)

    engine = application_engine()
    event.listen(engine, "commit", commit)
    try:
        with statements() as seen:
            answer_question(command, fake_services)
    finally:
        event.remove(engine, "commit", commit)
    assert ended(tenant, command.run_id)[0].state == "answered"
    assert len(seen) <= MOST_STATEMENTS
    assert len(commits) <= MOST_COMMITS


@pytest.mark.usefixtures("bus")
def test_a_call_tried_again_gives_its_first_reservation_back(tenant: Principal) -> None:
    """The run's holder finds what its dead predecessor had reserved: one amount is reserved afterwards, not two."""
    command = put(tenant)
    call = Call(tenant.tenant_id, uuid4(), "fake", run_id=command.run_id)
    now, price = datetime.now(UTC), Price(Decimal(10), None)
    with operator_session() as session:
        set_price(session, "fake", price.input, now - timedelta(days=1))
    try:
        attempts = []
        for _ in range(2):
            with tenant_session(tenant.tenant_id) as session:
                attempts.append(reserve_alone(session, call, price, ["zwei Wörter"], "dev", now))
        with tenant_session(tenant.tenant_id) as session:
            reserved = {b.period: b.reserved for b in read_budgets(session, tenant.tenant_id, now)}
            standing = standing_of(session, tenant.tenant_id, command.run_id, "fake", now)
    finally:
        with operator_session() as session:
            session.execute(
                text("delete from core.prices where model = 'fake' and valid_from = :at"),
                {"at": now - timedelta(days=1)},
            )
    assert [attempt.attempt for attempt in attempts] == [1, 2]
    assert reserved["day"] == attempts[1].amount > 0
    assert (standing.closed_until, standing.price, standing.spent.calls) == (None, price, 1)


@pytest.mark.usefixtures("bus")
def test_events_are_refused_together_with_the_lease(tenant: Principal) -> None:
    """Lease and events are one statement: who has lost the run writes none, who holds it writes all in order."""
    command = put(tenant)
    with tenant_session(tenant.tenant_id) as session:
        lease = take_lease(session, tenant.tenant_id, command.run_id)
    told = [RunEvent(lease.next_seq + n, "step", {"name": f"„{n}“"}) for n in range(3)]
    with tenant_session(tenant.tenant_id) as session:
        hold(session, lease, told)
    with tenant_session(tenant.tenant_id) as session:
        session.execute(
            text("update core.runs set epoch = epoch + 1 where tenant_id = :t and run_id = :r"),
            {"t": tenant.tenant_id, "r": command.run_id},
        )
    late = [RunEvent(told[-1].seq + 1, "step", {"name": "late"})]
    with pytest.raises(Superseded), tenant_session(tenant.tenant_id) as session:
        hold(session, lease, late)
    _, events = ended(tenant, command.run_id)
    assert [e.data for e in events] == [{"name": f"„{n}“"} for n in range(3)]
