"""Campaigns: another vector space is filled while the old one answers, each vector paid once, switched and back."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from functions.embed.embedding import embed_chunks
from functions.ingest.ingestion import ingest_document
from shared.database import operator_session, tenant_session
from shared.documents.completion import finish_version
from shared.embeddings import Embedded
from shared.errors import PermanentError, Postponed, TransientError
from shared.events import DocumentSubmitted
from shared.fakes import FakeBus, FakeClock, FakeModels, FakeStorage
from shared.money.prices import set_price
from shared.retrieval import campaigns, filling, mending, switching
from shared.retrieval.filling import progress
from shared.retrieval.search import search
from shared.retrieval.spaces import Chunker, Space, change_spaces, ensure_space, hold_spaces
from shared.services import Services
from shared.settings import Settings
from shared.tenants.directory import Principal
from tests.conftest import Database
from tests.integration.campaign_material import (
    LARGE,
    SMALL,
    Pump,
    add,
    answering,
    begin,
    job,
    new_space,
    paid,
    spaces,
    state,
    vectors,
)

ACTOR = "operator:test"


@pytest.fixture
def clock() -> FakeClock:
    """A clock that is moved by hand."""
    return FakeClock()


@pytest.fixture
def working(settings: Settings, bus: FakeBus, clock: FakeClock) -> Services:
    """Services with that clock and models that count."""
    small = settings.model_copy(update={"campaign_batch_size": SMALL.chunks, "campaign_batches": 2})
    return Services(small, clock, _models=FakeModels())


@pytest.fixture
def pump(bus: FakeBus, working: Services) -> Pump:
    """The bus's hand."""
    return Pump(bus, working)


@pytest.fixture
def corpus(tenant: Principal, pump: Pump, working: Services) -> list[str]:
    """Three searchable documents of ten chunks; their texts."""
    texts = [f"paragraph {n} about topic {n % 7}" for n in range(30)]
    for n in range(3):
        add(tenant, f"doc-{n}", texts[n * 10 : n * 10 + 10])
    pump.run()
    paid(working).clear()
    return texts


@pytest.fixture
def target(database: object) -> Space:
    """The space to go to."""
    return new_space()


def fill(tenant: Principal, target: Space, pump: Pump, working: Services) -> None:
    """A campaign until it is ready."""
    begin(tenant, target)
    pump.run()
    job(working)
    assert state(tenant).state == "ready"


def switch(tenant: Principal, clock: FakeClock, **options: object) -> None:
    """Switch now."""
    with operator_session() as operator:
        switching.switch(operator, tenant.tenant_id, now=clock.now(), actor=ACTOR, **options)  # type: ignore[arg-type]


def found(tenant: Principal, space: Space, question: str, working: Services) -> list[str]:
    """Texts that a search in a space finds."""
    vector = working.models.embed([question], model=space.model, dimension=space.dimension, input_type="query")[0]
    with tenant_session(tenant.tenant_id) as session:
        passages = search(session, tenant.tenant_id, tenant.member_id, space, question, vector, top_k=5)
    return [passage.text for passage in passages]


# ---- profiles --------------------------------------------------------------------------------------------------------


def test_a_profile_is_one_space_and_never_changes(database: object) -> None:
    """The same profile again is the same space; another chunker or prefix is another; no update gets through."""
    with operator_session() as operator:
        one = ensure_space(operator, "model-p", 8)
        assert ensure_space(operator, "model-p", 8) == one
        other = ensure_space(operator, "model-p", 8, Chunker(400, 40), "query: ", "passage: ")
    assert other.space_id != one.space_id
    assert (other.as_query("a"), other.as_passage("b")) == ("query: a", "passage: b")
    assert Chunker.parse(other.chunker) == Chunker(400, 40)


def test_the_database_refuses_another_profile_under_the_same_space(database: Database) -> None:
    """Not even the owner of the tables changes what its vectors were made by."""
    with operator_session() as operator:
        one = ensure_space(operator, "model-i", 8)
    engine = create_engine(database.owner_url, poolclass=NullPool)
    for change in ("model = 'x'", "dimension = 9", "chunker = 'x/1/1'", "query_prefix = 'x'", "passage_prefix = 'x'"):
        with engine.connect() as connection, pytest.raises(DBAPIError, match="never changes"):
            connection.execute(text(f"update rag.vector_spaces set {change} where space_id = :s"), {"s": one.space_id})
    with engine.begin() as connection:
        connection.execute(
            text("update rag.vector_spaces set evidence_floor = 0.5 where space_id = :s"), {"s": one.space_id}
        )
    engine.dispose()


def test_the_model_sees_the_prefix_of_the_space(
    tenant: Principal, pump: Pump, corpus: list[str], working: Services
) -> None:
    """Chunks are embedded with the passage prefix of the profile they are embedded for."""
    with operator_session() as operator:
        prefixed = ensure_space(operator, "model-prefixed", 16, query_prefix="query: ", passage_prefix="passage: ")
    begin(tenant, prefixed)
    pump.run()
    assert set(paid(working)) == {f"passage: {t}" for t in corpus}


def test_documents_are_cut_as_the_space_that_answers_says(tenant: Principal, working: Services) -> None:
    """CHUNK_SIZE describes new tenants' spaces; a tenant's chunks are all cut alike until its space changes."""
    with operator_session() as operator:
        fine = ensure_space(operator, "model-fine", 16, Chunker(60, 0))
        operator.execute(
            text("update rag.tenant_spaces set space_id = :s where tenant_id = :t"),
            {"s": fine.space_id, "t": tenant.tenant_id},
        )
    body = "".join(f"Absatz {n} handelt von der Wartung der Pumpe Nummer {n}.\n\n" for n in range(40)).encode()
    event = DocumentSubmitted(
        tenant_id=tenant.tenant_id,
        external_id="long.txt",
        file_name="long.txt",
        source_version=1,
        content=base64.b64encode(body).decode(),
    )
    ingest_document(event, "upstream", replace(working, _storage=FakeStorage()))
    with tenant_session(tenant.tenant_id) as session:
        tokens = session.scalars(text("select tokens from rag.chunks")).all()
    assert len(tokens) > 3
    assert max(tokens) <= 90  # the size, and half of it where a sentence ends later


# ---- filling ---------------------------------------------------------------------------------------------------------


def test_a_campaign_fills_the_new_space_and_pays_each_chunk_once(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services
) -> None:
    """Every chunk gets its vector from the stored text, in bounded batches; nothing twice; then it is ready."""
    assert begin(tenant, target, slots=2) == 2
    most = 0
    while pump.step():
        most = max(most, len(pump.waiting()))
    assert most <= 2
    assert sorted(paid(working)) == sorted(corpus)
    assert vectors(tenant, target) == 30
    job(working)
    assert state(tenant).state == "ready"
    assert answering(tenant).space_id != target.space_id


def test_documents_and_questions_go_on_while_a_space_is_filled(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services
) -> None:
    """A document that comes meanwhile is searchable with vectors in both spaces; questions are answered by the old."""
    begin(tenant, target, slots=1)
    pump.step()
    old = answering(tenant)
    add(tenant, "new", ["an entirely fresh matter", "and a second one"])
    assert found(tenant, old, "paragraph 3 about topic 3", working)
    pump.run()
    assert "an entirely fresh matter" in found(tenant, old, "an entirely fresh matter", working)
    job(working)
    assert vectors(tenant, target) == vectors(tenant, old) == 32
    assert paid(working).count("an entirely fresh matter") == 2 + 1  # two spaces, and the question


def test_unchanged_chunks_of_a_new_version_keep_their_vectors_in_both_spaces(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """Reuse works for every live space: only the changed chunk is paid, once a space."""
    fill(tenant, target, pump, working)
    switch(tenant, clock)
    paid(working).clear()
    add(tenant, "doc-0", [*corpus[:9], "the changed one"], version=2)
    pump.run()
    assert paid(working) == ["the changed one"] * 2


def test_a_version_stored_before_the_start_gets_vectors_in_both_spaces(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str]
) -> None:
    """What was being ingested when the campaign began waits for the new space too and is commanded for it."""
    pending = add(tenant, "pending", ["stored before", "the campaign"])
    first = pump.waiting()
    begin(tenant, target, slots=1)
    for command in first:
        embed_chunks(command, pump.services)
    with tenant_session(tenant.tenant_id) as session:
        assert not finish_version(session, tenant.tenant_id, pending.version_id)
    pump.run()
    with operator_session() as operator:
        found_state = operator.execute(
            text("select state from rag.versions where version_id = :v"), {"v": pending.version_id}
        ).scalar_one()
    assert found_state == "searchable"


def test_earlier_versions_are_carried_over_unless_told_otherwise(
    make_tenant: Callable[..., Principal], pump: Pump, working: Services
) -> None:
    """Search as of a time and rollback of a document need their vectors; `history` False saves the money."""
    for history, expected in ((True, 3), (False, 2)):
        tenant, target = make_tenant(), new_space()
        add(tenant, "doc", ["kept", "replaced"])
        pump.run()
        add(tenant, "doc", ["kept", "its successor"], version=2)
        pump.run()
        begin(tenant, target, history=history)
        paid(working).clear()
        pump.run()
        job(working)
        assert len(set(paid(working))) == expected
        assert state(tenant).state == "ready"


def test_a_killed_worker_pays_no_vector_twice(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services
) -> None:
    """Redeliveries at every point, also after the vectors were stored and before the next batch was sent."""
    begin(tenant, target, slots=2)
    for _ in range(100):
        waiting = pump.waiting()
        if not waiting:
            break
        embed_chunks(waiting[0], working)  # handled, and the acknowledgement lost
        pump.step()
        embed_chunks(waiting[0], working)
    assert sorted(paid(working)) == sorted(corpus)
    job(working)
    assert state(tenant).state == "ready"


def test_lost_messages_are_sent_again(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services
) -> None:
    """A batch without a word for longer than any delivery takes is commanded anew; the campaign comes to its end."""
    begin(tenant, target, slots=2)
    pump.place = len(pump.bus.published)  # both batches are lost
    job(working)
    assert pump.waiting() == []
    _age(tenant, minutes=16)
    job(working)
    assert len(pump.waiting()) == 2
    pump.run()
    job(working)
    assert state(tenant).state == "ready"
    assert sorted(paid(working)) == sorted(corpus)


def test_a_batch_that_never_comes_back_ends_as_failed_chunks(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services
) -> None:
    """After five times its chunks are recorded with a reason, and the rest is filled."""
    begin(tenant, target, slots=1)
    lost = pump.waiting()[0]
    for _ in range(filling.MOST_ATTEMPTS):
        pump.place = len(pump.bus.published)
        _age(tenant, minutes=16)
        job(working)
    pump.run()
    job(working)
    with operator_session() as operator:
        refused = mending.failures(operator, tenant.tenant_id, target.space_id)
    assert {row.chunk_id for row in refused} == set(lost.chunk_ids)
    assert {row.reason for row in refused} == {"attempts-exhausted"}
    assert state(tenant).state == "ready"


def _age(tenant: Principal, minutes: int) -> None:
    with operator_session() as operator:
        operator.execute(
            text("update rag.campaign_batches set sent_at = sent_at - make_interval(mins => :m) where tenant_id = :t"),
            {"m": minutes, "t": tenant.tenant_id},
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


# ---- pause, budget, cancel -------------------------------------------------------------------------------------------


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


# ---- switch, rollback, end -------------------------------------------------------------------------------------------


def test_switch_and_rollback_are_at_once_and_lose_nothing(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """New versions get vectors in both until the grace period ends, so the way back finds them too."""
    old = answering(tenant)
    fill(tenant, target, pump, working)
    switch(tenant, clock)
    assert answering(tenant) == target
    add(tenant, "after", ["came after the switch"])
    pump.run()
    assert "came after the switch" in found(tenant, target, "came after the switch", working)
    # A run that read the old space before the switch ends in it.
    assert "paragraph 3 about topic 3" in found(tenant, old, "paragraph 3 about topic 3", working)
    with operator_session() as operator:
        switching.rollback(operator, tenant.tenant_id, now=clock.now(), actor=ACTOR)
    assert answering(tenant) == old
    assert "came after the switch" in found(tenant, old, "came after the switch", working)
    assert state(tenant).state == "rolled-back"
    job(working)
    assert vectors(tenant, target) == 31
    paid(working).clear()
    fill(tenant, target, pump, working)
    assert paid(working) == []  # what a campaign paid, the next one has


def test_the_old_space_goes_when_the_grace_period_is_over(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """Vectors, index and row; afterwards there is no way back but a campaign; who still reads it finds nothing."""
    old = answering(tenant)
    fill(tenant, target, pump, working)
    switch(tenant, clock, grace=timedelta(hours=1))
    clock.advance(timedelta(minutes=59))
    job(working)
    assert spaces(tenant) == {old.space_id: "filling", target.space_id: "active"}
    clock.advance(timedelta(minutes=2))
    with operator_session() as operator, pytest.raises(PermanentError, match="grace"):
        switching.rollback(operator, tenant.tenant_id, now=clock.now(), actor=ACTOR)
    counts = job(working)
    assert counts["completed"] >= 1
    assert counts["dropped_vectors"] >= 30
    assert counts["dropped_spaces"] >= 1
    assert spaces(tenant) == {target.space_id: "active"}
    assert (state(tenant).state, vectors(tenant, old), vectors(tenant, target)) == ("completed", 0, 30)
    dropped = state(tenant).dropped_at
    job(working)
    assert dropped is not None
    assert state(tenant).dropped_at == dropped


def test_the_switch_finds_no_version_between_two_truths(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """Two connections: whoever completes a version holds the spaces; the switch waits, and sees what was committed."""
    fill(tenant, target, pump, working)
    refused: list[str] = []

    def other() -> None:
        try:
            switch(tenant, clock)
        except PermanentError as error:
            refused.append(error.reason)

    thread = threading.Thread(target=other)
    with tenant_session(tenant.tenant_id) as session:
        hold_spaces(session, tenant.tenant_id)
        thread.start()
        _somebody_waits()
        # What a version that was completed for the old space alone would leave behind.
        session.execute(
            text(
                "delete from rag.embeddings where tenant_id = :t and space_id = :s "
                "and chunk_id = (select chunk_id from rag.chunks where tenant_id = :t order by chunk_id limit 1)"
            ),
            {"t": tenant.tenant_id, "s": target.space_id},
        )
    thread.join(20)
    assert refused == ["campaign-not-ready"]
    job(working)  # it is not ready any more
    assert state(tenant).state == "filling"
    job(working)
    pump.run()
    job(working)
    switch(tenant, clock)
    assert answering(tenant) == target


def test_a_version_completed_during_a_switch_has_vectors_in_both_spaces(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """The other way round: completion waits until the switch has committed and then asks for what is live now."""
    fill(tenant, target, pump, working)
    pending = add(tenant, "pending", ["completed during the switch"])
    for command in pump.waiting():
        if command.version_id == pending.version_id and command.space_id == target.space_id:
            embed_chunks(command, working)
    finished: list[bool] = []

    def other() -> None:
        with tenant_session(tenant.tenant_id) as session:
            finished.append(finish_version(session, tenant.tenant_id, pending.version_id))

    thread = threading.Thread(target=other)
    with operator_session() as operator:
        change_spaces(operator, tenant.tenant_id)
        thread.start()
        _somebody_waits()
        operator.execute(
            text("update rag.tenant_spaces set state = 'paused' where tenant_id = :t and state = 'active'"),
            {"t": tenant.tenant_id},
        )
    thread.join(20)
    assert finished == [True]  # the space it lacked a vector in is live no longer, and it saw that


def _somebody_waits() -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with operator_session() as operator:
            waiting = operator.execute(
                text("select count(*) from pg_locks where locktype = 'advisory' and not granted")
            ).scalar_one()
        if waiting:
            return
        time.sleep(0.02)
    raise AssertionError("nobody waits for the lock")
