"""What waits in the outbox leaves in its turn, and one message that cannot leave holds up nobody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import pytest
from google.api_core.exceptions import BadRequest, NotFound, PermissionDenied
from google.cloud.pubsub_v1.publisher.exceptions import MessageTooLargeError
from sqlalchemy import text

from shared.database import operator_session, tenant_session
from shared.errors import TransientError
from shared.events import AnswerQuestion, DocumentWithdrawn
from shared.fakes import FakeBus
from shared.messaging import Outgoing, flush_stale, publish, use_bus
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


@dataclass
class RefusingBus(FakeBus):
    """Refuses everything with one topic in it, for a reason of its own."""

    refusal: Exception = field(default_factory=lambda: NotFound("no such topic"))

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """Take all messages, or none."""
        if any(message.topic == GONE for message in messages):
            raise self.refusal
        super().publish(messages)


@pytest.mark.parametrize(
    "refusal",
    [NotFound("topic"), PermissionDenied("publisher"), BadRequest("attribute"), MessageTooLargeError("10 MB")],
    ids=lambda error: type(error).__name__,
)
def test_a_message_that_the_bus_does_not_allow_holds_up_nobody(
    make_tenant: Callable[..., Principal], bus: FakeBus, refusal: Exception
) -> None:
    """No such topic, no right to it, an attribute that is none, too many bytes: each is the message's own fault."""
    tenant_id = make_tenant().tenant_id
    _left_behind(tenant_id, bus, GONE, "documents-upstream")
    refusing = RefusingBus(refusal=refusal)
    use_bus(refusing)
    assert flush_stale() == 1
    assert [message.topic for message in refusing.published] == ["documents-upstream"]
    assert _waiting(tenant_id) == [(GONE, True)]


def test_what_was_rolled_back_does_not_leave_with_what_is_committed(
    make_tenant: Callable[..., Principal], bus: FakeBus
) -> None:
    """A session may go on after a rollback: only what its next transaction announces is true."""
    tenant_id = make_tenant().tenant_id
    with tenant_session(tenant_id) as session:
        publish(session, DocumentWithdrawn(tenant_id=tenant_id, external_id="never happened"))
        session.rollback()
        publish(session, DocumentWithdrawn(tenant_id=tenant_id, external_id="happened"))
    assert ["never happened" in message.data for message in bus.published] == [False]
    assert _waiting(tenant_id) == []


def test_two_sweeps_at_once_send_each_message_once(make_tenant: Callable[..., Principal], bus: FakeBus) -> None:
    """The second passes over what the first has in its hands, instead of sending it too or waiting for it."""
    tenant_id = make_tenant().tenant_id
    _left_behind(tenant_id, bus, "documents-upstream", "documents-web")
    beside: list[int] = []

    class Meanwhile(FakeBus):
        def publish(self, messages: Sequence[Outgoing]) -> None:
            if not beside:
                beside.append(-1)
                beside[0] = flush_stale()
            super().publish(messages)

    meanwhile = Meanwhile()
    use_bus(meanwhile)
    assert (flush_stale(), beside) == (2, [0])
    assert len(meanwhile.published) == 2
