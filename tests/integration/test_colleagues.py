"""Members of one tenant: row-level security lets them touch the same rows, so each question keeps to its asker."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import text

from shared.conversations.feedback import give_feedback
from shared.conversations.history import recent_conversations
from shared.conversations.runs import (
    RunEvent,
    ask,
    conversation_runs,
    events_after,
    hold,
    read_run,
    recent_runs,
    take_lease,
)
from shared.conversations.waiting import cancel
from shared.database import tenant_session
from shared.errors import PermanentError
from shared.fakes import FakeBus
from shared.tenants.directory import Principal, add_member, memberships


@pytest.fixture
def colleague(tenant: Principal) -> Principal:
    """Another member of the same tenant, with as many rights."""
    email = f"colleague@{tenant.tenant_slug}.example"
    with tenant_session(tenant.tenant_id) as session:
        add_member(session, tenant.tenant_id, email, name="Colleague", role="admin")
    (found,) = memberships(email)
    return found


def asked(who: Principal, key: str = "") -> UUID:
    """A question of a member."""
    with tenant_session(who.tenant_id) as session:
        return ask(session, who, "How many days of leave?", idempotency_key=key)


def state(who: Principal, run_id: UUID) -> str:
    """How a run stands."""
    with tenant_session(who.tenant_id) as session:
        found: str = session.execute(
            text("select state from core.runs where run_id = :run"), {"run": run_id}
        ).scalar_one()
    return found


def test_a_colleague_cannot_stop_a_question(tenant: Principal, colleague: Principal, bus: FakeBus) -> None:
    """As if there were none; the run goes on, and its asker can still stop it."""
    run_id = asked(tenant)
    with pytest.raises(LookupError), tenant_session(tenant.tenant_id) as session:
        cancel(session, colleague, run_id)
    assert state(tenant, run_id) == "queued"
    with tenant_session(tenant.tenant_id) as session:
        assert cancel(session, tenant, run_id)
    with pytest.raises(LookupError), tenant_session(tenant.tenant_id) as session:
        cancel(session, colleague, run_id)


def test_a_colleague_cannot_read_over_ones_shoulder(tenant: Principal, colleague: Principal, bus: FakeBus) -> None:
    """Neither the run nor its events while it runs, nor the conversation, nor in any list."""
    run_id = asked(tenant)
    with tenant_session(tenant.tenant_id) as session:
        hold(session, take_lease(session, tenant.tenant_id, run_id), [RunEvent(1, "token", {"text": "30"})])
    looks: tuple[Callable[[Principal], object], ...] = (
        lambda who: read_run(session, who, run_id),
        lambda who: events_after(session, who, run_id, 0),
        lambda who: conversation_runs(session, who, conversation),
        lambda who: recent_runs(session, who),
        lambda who: recent_conversations(session, who),
    )
    with tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, run_id)
        assert run is not None
        conversation = run.conversation_id
        assert [bool(look(tenant)) for look in looks] == [True] * len(looks)
        assert [bool(look(colleague)) for look in looks] == [False] * len(looks)


def test_a_colleague_cannot_continue_a_conversation_or_judge_its_answers(
    tenant: Principal, colleague: Principal, bus: FakeBus
) -> None:
    """Both are refused as for what does not exist."""
    run_id = asked(tenant)
    with tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, run_id)
        assert run is not None
        with pytest.raises(PermanentError) as refused:
            ask(session, colleague, "And next year?", conversation_id=run.conversation_id)
        assert refused.value.reason == "unknown-conversation"
        with pytest.raises(LookupError):
            give_feedback(session, colleague, run_id, "down")


def test_two_members_may_use_the_same_idempotency_key(tenant: Principal, colleague: Principal, bus: FakeBus) -> None:
    """Clients count from one: each gets a run of their own, and neither is answered with the other's."""
    mine, theirs = asked(tenant, "1"), asked(colleague, "1")
    assert mine != theirs
    assert (asked(tenant, "1"), asked(colleague, "1")) == (mine, theirs)
    with tenant_session(tenant.tenant_id) as session:
        assert read_run(session, colleague, mine) is None
        assert read_run(session, colleague, theirs) is not None
