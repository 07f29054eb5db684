"""What waits in the outbox leaves in its turn, and one message that cannot leave holds up nobody."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from shared.database import operator_session, tenant_session
from shared.errors import TransientError
from shared.events import AnswerQuestion, DocumentWithdrawn
from shared.fakes import FakeBus
from shared.messaging import flush_stale, publish
from shared.tenants.directory import Principal

GONE = "documents-a-source-that-was-removed"


@pytest.fixture(autouse=True)
def _empty_outbox(database: object) -> None:
    """The sweep is for all tenants: nothing of other tests waits before it."""
    with operator_session() as session:
        session.execute(text("delete from core.outbox"))


def _left_behind(tenant_id: UUID, bus: FakeBus, *topics: str) -> None:
    """Messages whose process died before it flushed them, a minute ago, in this order."""
    bus.down = True
    for age, topic in enumerate(topics):
        message = DocumentWithdrawn(tenant_id=tenant_id, external_id=f"{topic} {age}")
        with tenant_session(tenant_id) as session:
            publish(session, message, topic=topic)
        with tenant_session(tenant_id) as session:
            session.execute(
                text(
                    "update core.outbox set created_at = now() - interval '10 minutes' + make_interval(secs => :age) "
                    "where tenant_id = :tenant and event_id = :id"
                ),
                {"age": age, "tenant": tenant_id, "id": message.event_id},
            )
    bus.down = False


def _waiting(tenant_id: UUID) -> list[tuple[str, bool]]:
    with tenant_session(tenant_id) as session:
        rows = session.execute(
            text(
                "select topic, created_at > now() - interval '1 minute' as moved from core.outbox "
                "where tenant_id = :tenant order by created_at"
            ),
            {"tenant": tenant_id},
        )
        return [(row.topic, row.moved) for row in rows]


def test_a_message_whose_topic_is_gone_holds_up_nobody(make_tenant: Callable[..., Principal], bus: FakeBus) -> None:
    """The topic of a source was removed while messages waited for it: every other message of every tenant leaves."""
    first, second = make_tenant().tenant_id, make_tenant().tenant_id
    _left_behind(first, bus, GONE, "documents-upstream", GONE)
    _left_behind(second, bus, "documents-web")
    bus.gone.add(GONE)

    assert flush_stale() == 2
    assert sorted(message.topic for message in bus.published) == ["documents-upstream", "documents-web"]
    # It is kept, behind all others: the topic may come back.
    assert _waiting(first) == [(GONE, True)] * 2
    assert _waiting(second) == []


def test_messages_that_cannot_leave_do_not_fill_every_turn_of_the_sweep(
    make_tenant: Callable[..., Principal], bus: FakeBus
) -> None:
    """More of them than a turn takes: the next turn is for the others."""
    tenant_id = make_tenant().tenant_id
    _left_behind(tenant_id, bus, GONE, GONE, "documents-upstream")
    bus.gone.add(GONE)
    assert [flush_stale(limit=2), flush_stale(limit=2)] == [0, 1]


def test_what_could_not_leave_leaves_when_its_topic_is_back(
    make_tenant: Callable[..., Principal], bus: FakeBus
) -> None:
    """Nothing is lost by waiting."""
    tenant_id = make_tenant().tenant_id
    _left_behind(tenant_id, bus, GONE)
    bus.gone.add(GONE)
    assert flush_stale() == 0
    bus.gone.clear()
    with tenant_session(tenant_id) as session:
        session.execute(
            text("update core.outbox set created_at = now() - interval '1 minute' where tenant_id = :tenant"),
            {"tenant": tenant_id},
        )
    assert flush_stale() == 1
    assert _waiting(tenant_id) == []


def test_a_bus_that_takes_nothing_is_no_message_s_fault(make_tenant: Callable[..., Principal], bus: FakeBus) -> None:
    """Then nothing changes its place, and the sweep says so."""
    tenant_id = make_tenant().tenant_id
    _left_behind(tenant_id, bus, "documents-upstream")
    bus.down = True
    with pytest.raises(TransientError, match="the bus"):
        flush_stale()
    assert _waiting(tenant_id) == [("documents-upstream", False)]


def test_the_same_event_waits_once(make_tenant: Callable[..., Principal], bus: FakeBus) -> None:
    """Recovery may announce again what already waits."""
    tenant_id, run_id = make_tenant().tenant_id, uuid4()
    bus.down = True
    for _ in range(2):
        with tenant_session(tenant_id) as session:
            publish(session, AnswerQuestion(event_id=run_id, tenant_id=tenant_id, run_id=run_id))
    assert _waiting(tenant_id) == [("answer-question", True)]
