"""Campaigns beside what else happens: plans that are given up, tenants that are closed, others that fail."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import operator_session
from shared.documents.storing import Batch
from shared.errors import PermanentError
from shared.fakes import FakeBus, FakeClock
from shared.retrieval import campaigns, switching, tending
from shared.retrieval.comparing import Asked, compare
from shared.retrieval.filling import Progress
from shared.retrieval.paying import Payer
from shared.retrieval.spaces import Space
from shared.services import Services
from shared.tenants.directory import Principal
from shared.tenants.erasure import close_tenant
from tests.integration.campaign_material import (
    ACTOR,
    Pump,
    add,
    answering,
    begin,
    fill,
    job,
    new_space,
    paid,
    state,
    switch,
    vectors,
)


def test_a_plan_that_is_given_up_leaves_what_was_paid(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """What a rolled-back campaign left is kept for the next one, also when a plan in between was cancelled."""
    fill(tenant, target, pump, working)
    switch(tenant, clock)
    with operator_session() as operator:
        switching.rollback(operator, tenant.tenant_id, now=clock.now(), actor=ACTOR)
    with operator_session() as operator:
        campaigns.plan(operator, tenant.tenant_id, target, budget=None, history=True, estimate={}, actor=ACTOR)
    with operator_session() as operator:
        campaigns.cancel(operator, tenant.tenant_id, now=clock.now(), actor=ACTOR)
    assert state(tenant).state == "cancelled"
    job(working)
    assert vectors(tenant, target) == 30
    paid(working).clear()
    fill(tenant, target, pump, working)
    assert paid(working) == []
    with operator_session() as operator:
        campaigns.cancel(operator, tenant.tenant_id, now=clock.now(), actor=ACTOR)
    job(working)
    assert vectors(tenant, target) == 0, "what began is dropped when it is cancelled"


def test_a_tenant_that_is_closed_pays_for_no_more_vectors(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services
) -> None:
    """A campaign goes on by itself, minute by minute: closing its tenant ends it, whatever is still on its way."""
    begin(tenant, target, slots=1)
    pump.step()
    paid(working).clear()
    with operator_session() as operator:
        close_tenant(operator, tenant.tenant_id, tenant.tenant_slug, ACTOR)
    pump.run()
    job(working)
    pump.run()
    assert paid(working) == []
    assert state(tenant).state == "cancelled"


def test_a_campaign_that_fails_keeps_no_other_waiting(
    make_tenant: Callable[..., Principal], bus: FakeBus, working: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest comes first each minute: what the database refuses it must not stop those behind it."""
    first, second = make_tenant(), make_tenant()
    pump = Pump(bus, working)
    for one in (first, second):
        add(one, "doc", ["eins", "zwei"])
        pump.run()
        begin(one, new_space())
        pump.run()
    tend = tending.tend

    def too_long_for_one(session: Session, tenant_id: UUID, space_id: UUID, small: Batch) -> Progress | None:
        if tenant_id == first.tenant_id:
            session.execute(text("set local statement_timeout = 20"))
            session.execute(text("select pg_sleep(5)"))
        return tend(session, tenant_id, space_id, small)

    monkeypatch.setattr(tending, "tend", too_long_for_one)
    job(working)
    assert (state(first).state, state(second).state) == ("filling", "ready")
    monkeypatch.undo()
    job(working)
    assert state(first).state == "ready"


def test_a_space_that_was_dropped_is_not_compared(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """Nothing is found where nothing is: the other space would look better than it is."""
    payer = Payer(tenant.tenant_id, "dev", clock.now())
    asked = [Asked("topic 3", tenant.member_id)]
    old = answering(tenant)
    with pytest.raises(PermanentError, match="no vectors in other"):
        compare(payer, asked, old, target, working.models)
    fill(tenant, target, pump, working)
    assert compare(payer, asked, old, target, working.models).questions == 1
    switch(tenant, clock)
    with operator_session() as operator:
        switching.complete(operator, tenant.tenant_id, now=clock.now(), actor=ACTOR)
    clock.advance(switching.RUNS + timedelta(minutes=1))
    job(working)
    with pytest.raises(PermanentError, match="no vectors in fake-64"):
        compare(payer, asked, old, target, working.models)
