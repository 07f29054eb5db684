"""Models that refuse or are away during a campaign hold up no document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from functions.embed.embedding import embed_chunks
from shared.database import operator_session
from shared.embeddings import Embedded
from shared.errors import PermanentError, Postponed, TransientError
from shared.fakes import FakeClock, FakeModels
from shared.retrieval import campaigns, mending, switching
from shared.retrieval.filling import progress
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
    state,
    switch,
    vectors,
)


class Picky(FakeModels):
    """Refuses every text with a certain word, as a content filter does."""

    word = "topic 3"

    def embed_counted(self, texts: Sequence[str], *, model: str, **options: Any) -> Embedded:
        if model.startswith("other") and any(self.word in text for text in texts):
            raise PermanentError("model-refused", "The model refused the request (HTTP 400).", "Check the model.")
        return super().embed_counted(texts, model=model, **options)


def test_a_refused_chunk_is_recorded_and_holds_nothing_up(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """Batches are halved until the chunk to blame stands alone; documents with it stay searchable; the switch asks."""
    working = replace(working, _models=Picky())
    pump.services = working
    begin(tenant, target, slots=2)
    add(tenant, "arrives", ["fresh and harmless", "fresh with topic 3"])
    pump.run()
    job(working)
    campaign = state(tenant)
    assert campaign.state == "ready"
    bad = [t for t in corpus if "topic 3" in t]
    with operator_session() as operator:
        refused = mending.failures(operator, tenant.tenant_id, target.space_id)
        counted = progress(operator, campaign.filling)
    assert len(refused) == len(bad) + 1
    assert all(row.reason == "model-refused" and row.next_action for row in refused)
    assert (counted.total, counted.failed, counted.left) == (32, len(bad) + 1, 0)
    assert "fresh with topic 3" in found(tenant, answering(tenant), "fresh with topic 3", working)
    with pytest.raises(PermanentError, match="refused") as error:
        switch(tenant, clock)
    assert error.value.reason == "chunks-failed"
    switch(tenant, clock, tolerate=len(refused))
    assert answering(tenant) == target


def test_a_model_that_refuses_nearly_everything_ends_the_campaign(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services
) -> None:
    """Going on would only waste money: it fails with a reason, and new documents wait for its space no longer."""
    picky = Picky()
    picky.word = "paragraph"
    working = replace(working, _models=picky)
    pump.services = working
    begin(tenant, target, slots=2)
    pump.run()
    campaign = state(tenant)
    assert (campaign.state, campaign.reason) == ("failed", "too-many-failures")
    assert campaign.next_action
    add(tenant, "later", ["paragraph of a later document"])
    pump.run()
    assert "paragraph of a later document" in found(tenant, answering(tenant), "paragraph of a later document", working)
    picky.word = "nothing at all"  # mended
    fill(tenant, target, pump, working)
    assert vectors(tenant, target) == 31


def test_a_new_model_that_is_away_pauses_its_campaign_and_nothing_else(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """Its batches wait instead of being refused (that slows everybody down); after some tries documents go on alone."""
    away = Away()
    working = replace(working, _models=away)
    pump.services = working
    begin(tenant, target, slots=1)
    add(tenant, "arrives", ["arrives while the new model is away"])
    pump.run()
    assert len(pump.postponed) == 2
    for _ in range(4):
        clock.advance(timedelta(minutes=20))
        pump.repeat_postponed()
    campaign = state(tenant)
    assert (campaign.state, campaign.reason) == ("paused", "model-unavailable")
    away.away = False
    text = "arrives while the new model is away"
    assert text in found(tenant, answering(tenant), text, working)
    with operator_session() as operator:
        campaigns.resume(operator, tenant.tenant_id, small=SMALL, large=LARGE, actor=ACTOR)
    pump.run()
    job(working)
    assert state(tenant).state == "ready"


def test_an_old_model_that_is_away_during_the_grace_period_loses_no_document(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """New versions wait for both spaces, visibly; nothing is a dead letter; ending the grace period frees them."""
    fill(tenant, target, pump, working)
    switch(tenant, clock)
    working = replace(working, _models=Away(model="fake"))
    pump.services = working
    arrived = add(tenant, "arrives", ["arrives while the old model is away"])
    pump.run()
    for _ in range(6):
        clock.advance(timedelta(hours=1))
        again, pump.postponed = pump.postponed, []
        for command in again:
            with pytest.raises(Postponed):
                embed_chunks(command, working)
            pump.postponed.append(command)
    with operator_session() as operator:
        waiting = operator.execute(
            text("select state, waiting from rag.versions where version_id = :v"), {"v": arrived.version_id}
        ).one()
        assert (waiting.state, waiting.waiting) == ("ingested", "provider")
        switching.complete(operator, tenant.tenant_id, now=clock.now(), actor=ACTOR)
    assert campaigns.finish_held_versions(tenant.tenant_id, 32) == 1
    text_ = "arrives while the old model is away"
    assert text_ in found(tenant, target, text_, working)


class Away(FakeModels):
    """Models of which one cannot be reached; the new one by default."""

    def __init__(self, model: str = "other") -> None:
        super().__init__()
        self.model, self.away = model, True

    def embed_counted(self, texts: Sequence[str], *, model: str, **options: Any) -> Embedded:
        if model.startswith(self.model) and self.away:
            raise TransientError("the model proxy answers HTTP 401")
        return super().embed_counted(texts, model=model, **options)


def test_a_refusal_that_comes_after_the_pause_costs_no_document(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services
) -> None:
    """A model that is only being tried is asked, the campaign pauses, the model refuses: nothing fails."""

    class Pausing(FakeModels):
        def embed_counted(self, texts: Sequence[str], *, model: str, **options: Any) -> Embedded:
            if not model.startswith("other"):
                return super().embed_counted(texts, model=model, **options)
            with operator_session() as operator:
                if campaigns.latest(operator, tenant.tenant_id).state == "filling":
                    campaigns.pause(operator, tenant.tenant_id, reason="operator", message="m", next_action="n")
            raise PermanentError("model-refused", "The model refused the request (HTTP 400).", "Check the model.")

    begin(tenant, target, slots=1)
    pump.place = len(pump.bus.published)
    arrived = add(tenant, "arrives", ["arrives just before the pause"])
    pump.services = replace(working, _models=Pausing())
    pump.run()
    with operator_session() as operator:
        version = operator.execute(
            text("select state, waiting from rag.versions where version_id = :v"), {"v": arrived.version_id}
        ).one()
    assert (version.state, version.waiting) == ("searchable", None)
