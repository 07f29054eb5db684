"""The five-minute check replays what a healthy platform can handle, three times; the rest is for people."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from functions.maintenance.archiving import MAX_AUTOMATIC, archive_exhausted
from functions.maintenance.running import run_job
from shared.conversations.runs import ask
from shared.database import operator_session, platform_session, tenant_session
from shared.dead_letters.archive import DeadLetter, archive
from shared.errors import PermanentError
from shared.events import Message, RunJob
from shared.fakes import FakeBus, FakeClock, FakeModels
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.dead_letters.letter_material import (
    command_of,
    document,
    exhausted,
    letters,
    received,
    send_again,
    submission,
)


def check(services: Services, *, after: str = "6 minutes") -> dict[str, Any]:
    """Let time pass for the open letters and run the five-minute job."""
    earlier = text(
        "update core.dead_letters set archived_at = archived_at - cast(:by as interval) where replayed_at is null"
    )
    with operator_session() as session:
        session.execute(earlier, {"by": after})
    clock = services.clock
    counts = run_job(RunJob(job="dead-letter-check", slot=clock.now()), services)
    assert isinstance(clock, FakeClock)
    clock.advance(timedelta(minutes=5))
    assert counts is not None
    return dict(counts)


@pytest.fixture
def checking(fake_services: Services) -> Services:
    fake_services.clock = FakeClock()
    return fake_services


def test_transient_letters_come_back_by_themselves_when_the_cause_is_healthy(
    tenant: Principal, bus: FakeBus, checking: Services
) -> None:
    """Not while the models do not answer, not before five minutes, then all of them."""
    event = submission(tenant)
    received(tenant, event)
    archive_exhausted(exhausted(event, "ingest-upstream"))
    bus.published.clear()
    assert isinstance(checking.models, FakeModels)
    assert check(checking, after="1 minute")["due"] == 0
    checking.models.failures.append(PermanentError("model-refused", "no"))
    assert check(checking) == {"open": 1, "due": 1, "replayed": 0, "unhealthy": 1}
    assert bus.published == []
    assert check(checking)["replayed"] == 1
    assert bus.names() == ["document-submitted"]
    assert document(tenant) == ("received", None, "received")


def test_nothing_is_replayed_while_the_bus_does_not_take_messages(
    tenant: Principal, bus: FakeBus, checking: Services
) -> None:
    """Old rows in the outbox say that the bus is down, whatever the models say."""
    archive_exhausted(exhausted(submission(tenant), "ingest-upstream"))
    bus.down = True
    received(tenant, submission(tenant, "x"))
    with tenant_session(tenant.tenant_id) as session:
        ask(session, tenant, "Wartet?")
    with operator_session() as session:
        session.execute(text("update core.outbox set created_at = now() - interval '10 minutes'"))
    assert check(checking)["unhealthy"] == 1


def test_a_message_comes_back_three_times_and_is_poison_then(
    tenant: Principal, bus: FakeBus, checking: Services
) -> None:
    """Each failure is a letter of its own that continues the count; the waits grow, and the fourth is for people."""
    message: Message = submission(tenant)
    received(tenant, submission(tenant))
    for number, wait in enumerate(("6 minutes", "31 minutes", "4 hours")):
        archive_exhausted(exhausted(message, "ingest-upstream"))
        bus.published.clear()
        if number:
            assert check(checking)["replayed"] == 0  # the wait grows
        assert check(checking, after=wait)["replayed"] == 1
        message = command_of(bus.published[0])
    archive_exhausted(exhausted(message, "ingest-upstream"))
    assert [letter[5] for letter in letters()] == ["transient"] * MAX_AUTOMATIC + ["poison"]
    assert check(checking, after="30 days")["replayed"] == 0
    assert document(tenant).state == "failed"
    # People may still try.
    (poison,) = letters(**{"class": "poison"})
    assert send_again(poison.letter_id).done


def test_permanent_and_poison_letters_wait_for_people(tenant: Principal, bus: FakeBus, checking: Services) -> None:
    """Trying again by itself cannot help them; the check only counts them."""
    event = submission(tenant)
    with platform_session() as session:
        archive(
            session,
            [
                DeadLetter("ingest-upstream", kind, event.data(), event.attributes(), kind, "x", "x")
                for kind in ("permanent", "poison", "budget")
            ],
        )
    assert check(checking, after="1 day") == {"open": 3, "due": 0, "replayed": 0, "unhealthy": 0}
