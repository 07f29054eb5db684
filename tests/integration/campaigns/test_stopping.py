"""A campaign is paused, stops at its budget and is cancelled, and documents and money stay right."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import text

from functions.embed.embedding import embed_chunks
from shared.database import operator_session
from shared.embeddings import Embedded
from shared.fakes import FakeClock, FakeModels
from shared.money.prices import set_price
from shared.retrieval import campaigns, filling
from shared.retrieval.spaces import Space
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.campaign_material import (
    ACTOR,
    LARGE,
    SMALL,
    Pump,
    add,
    answering,
    begin,
    fill,
    found,
    job,
    new_space,
    paid,
    spaces,
    state,
    vectors,
)


def test_a_paused_campaign_embeds_nothing_and_holds_up_no_document(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services
) -> None:
    """Batches under way find nothing to do; versions that waited for the space are searchable; resume catches up."""
    begin(tenant, target, slots=1)
    waits = add(tenant, "waits", ["waits for both spaces"])
    old_only = [c for c in pump.waiting() if c.version_id == waits.version_id and c.space_id != target.space_id]
    for command in old_only:
        embed_chunks(command, working)
    with operator_session() as operator:
        campaigns.pause(operator, tenant.tenant_id, reason="operator", message="m", next_action="n")
    assert campaigns.finish_held_versions(tenant.tenant_id, 32) == 1
    paid(working).clear()
    pump.run()
    add(tenant, "during", ["came during the pause"])
    pump.run()
    assert paid(working) == ["came during the pause"]
    with operator_session() as operator:
        campaigns.resume(operator, tenant.tenant_id, small=SMALL, large=LARGE, actor=ACTOR)
    pump.run()
    job(working)
    assert state(tenant).state == "ready"
    assert vectors(tenant, target) == 32


def test_the_budget_is_a_hard_stop(
    tenant: Principal, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """The campaign pauses with the reason before it spends more; new documents are not held up; resume goes on."""
    dear = new_space()
    with operator_session() as operator:
        set_price(operator, dear.model, Decimal(1_000_000), clock.now() - timedelta(days=1))  # 1 EUR a token
    begin(tenant, dear, budget=Decimal(200), slots=2)
    pump.run()
    campaign = state(tenant)
    assert (campaign.state, campaign.reason) == ("paused", "budget")
    with operator_session() as operator:
        spent = filling.spent(operator, campaign.filling)
    assert 0 < spent <= 200
    assert 0 < vectors(tenant, dear) < 30
    add(tenant, "during", ["came during the pause"])
    pump.run()
    assert "came during the pause" in found(tenant, answering(tenant), "came during the pause", working)
    with operator_session() as operator:
        campaigns.resume(operator, tenant.tenant_id, budget=Decimal(100_000), small=SMALL, large=LARGE, actor=ACTOR)
    pump.run()
    job(working)
    campaign = state(tenant)
    assert campaign.state == "ready"
    with operator_session() as operator:
        assert filling.spent(operator, campaign.filling) == campaign.spent == _ledger(tenant, dear)


class Slow(FakeModels):
    """Answers the new space's first batch when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_for, self.go = threading.Event(), threading.Event()

    def embed_counted(self, texts: Sequence[str], *, model: str, **options: Any) -> Embedded:
        if model.startswith("other"):
            self.asked_for.set()
            assert self.go.wait(20)
        return super().embed_counted(texts, model=model, **options)


def test_two_workers_never_spend_the_same_rest_of_a_budget(
    tenant: Principal, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """What one has reserved is gone for the other, whatever it will cost in the end; the first one's vectors stay."""
    slow = Slow()
    working = replace(working, _models=slow)
    dear = new_space()
    with operator_session() as operator:
        set_price(operator, dear.model, Decimal(1_000_000), clock.now() - timedelta(days=1))
    begin(tenant, dear, budget=Decimal(200), slots=2)  # one batch can cost 132 EUR at most
    first, second = pump.waiting()
    worker = threading.Thread(target=embed_chunks, args=(first, working))
    worker.start()
    assert slow.asked_for.wait(20)
    embed_chunks(second, working)
    assert (state(tenant).state, state(tenant).reason) == ("paused", "budget")
    slow.go.set()
    worker.join(20)
    assert vectors(tenant, dear) == len(first.chunk_ids)
    with operator_session() as operator:
        assert filling.spent(operator, state(tenant).filling) == _ledger(tenant, dear) <= 200


def _ledger(tenant: Principal, space: Space) -> Decimal:
    with operator_session() as operator:
        total: Decimal = operator.execute(
            text("select sum(cost_eur) from core.ledger where tenant_id = :t and model = :m"),
            {"t": tenant.tenant_id, "m": space.model},
        ).scalar_one()
        return total


def test_a_later_campaign_does_not_pay_for_an_earlier_one(
    tenant: Principal, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """The same batches again, after a cancellation: only what is spent now counts against the new budget."""
    dear = new_space()
    with operator_session() as operator:
        set_price(operator, dear.model, Decimal(1_000_000), clock.now() - timedelta(days=1))
    begin(tenant, dear, budget=Decimal(10_000))
    pump.run()
    once = _ledger(tenant, dear)
    with operator_session() as operator:
        campaigns.cancel(operator, tenant.tenant_id, now=clock.now(), actor=ACTOR)
    job(working)
    assert vectors(tenant, dear) == 0
    begin(tenant, dear, budget=Decimal(10_000))
    pump.run()
    job(working)
    assert _ledger(tenant, dear) == 2 * once
    assert state(tenant).spent == once


def test_cancelling_drops_what_was_filled_and_nothing_else(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """The old space answers on; commands that are still about find nothing to do; the same space may be tried again."""
    begin(tenant, target, slots=1)
    pump.step()
    with operator_session() as operator:
        campaigns.cancel(operator, tenant.tenant_id, now=clock.now(), actor=ACTOR)
    job(working)
    paid(working).clear()
    pump.run()
    assert paid(working) == []
    assert vectors(tenant, target) == 0
    assert target.space_id not in spaces(tenant)
    assert vectors(tenant, answering(tenant)) == 30
    fill(tenant, target, pump, working)
