"""Planning, comparing and everything a person may get wrong about a campaign."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner
from sqlalchemy import Connection, text

from cli.campaigns import campaigns as command
from cli.spaces import spaces as spaces_command
from shared.database import operator_session, tenant_session
from shared.embeddings import Embedded, UnusableVectors
from shared.errors import PermanentError, TooSlow
from shared.fakes import FakeBus, FakeClock, FakeModels
from shared.money.prices import set_price
from shared.retrieval import campaigns, comparing, estimating, indexes, switching, tending
from shared.retrieval.golden import Question, Relevant
from shared.retrieval.paying import Payer, Platform
from shared.retrieval.spaces import Chunker, Space, ensure_space
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
    spaces,
    state,
    vectors,
)

ACTOR = "operator:test"


@pytest.fixture
def clock() -> FakeClock:
    """A clock that is moved by hand."""
    return FakeClock(datetime.now(UTC))


@pytest.fixture
def working(settings: Settings, bus: FakeBus, clock: FakeClock) -> Services:
    """Services with that clock and models that count."""
    return Services(settings, clock, _models=FakeModels())


@pytest.fixture
def pump(bus: FakeBus, working: Services) -> Pump:
    """The bus's hand."""
    return Pump(bus, working)


@pytest.fixture
def filled(tenant: Principal, pump: Pump) -> Principal:
    """A tenant with two searchable documents, one of them in a second version."""
    add(tenant, "doc-0", [f"paragraph {n} of the first" for n in range(6)])
    add(tenant, "doc-1", ["the old wording", "what stays"])
    pump.run()
    add(tenant, "doc-1", ["the new wording", "what stays"], version=2)
    pump.run()
    return tenant


def refused(reason: str, call: Callable[[Any], object]) -> PermanentError:
    """The call, in an operator's session, is refused for this reason."""
    with pytest.raises(PermanentError) as error, operator_session() as operator:
        call(operator)
    assert error.value.reason == reason
    assert error.value.message
    return error.value


def plan(tenant: Principal, target: Space, **options: Any) -> Callable[[Any], object]:
    """A call that plans."""
    given: dict[str, Any] = {"budget": None, "history": True, "estimate": {}, "actor": ACTOR} | options
    return lambda operator: campaigns.plan(operator, tenant.tenant_id, target, **given)


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_planned_is_refused_with_a_reason(
    filled: Principal, make_tenant: Callable[..., Principal], pump: Pump
) -> None:
    """The same space again, chunks cut otherwise, no chunks, a budget of nothing, a paid model without a budget."""
    refused("same-space", plan(filled, answering(filled)))
    with operator_session() as operator:
        otherwise = ensure_space(operator, f"other-{uuid4().hex}", 16, Chunker(400, 40))
    refused("other-chunker", plan(filled, otherwise))
    refused("nothing-to-fill", plan(make_tenant(), new_space()))
    for budget in (Decimal(0), Decimal(-1), Decimal("NaN"), Decimal("Infinity")):
        refused("bad-budget", plan(filled, new_space(), budget=budget))
    refused("budget-needed", plan(filled, new_space(), estimate={"eur": "0.5"}))


def test_a_tenant_has_one_campaign_at_a_time(filled: Principal, pump: Pump) -> None:
    """A plan replaces a plan; from the start on another campaign is refused until this one has ended."""
    first, second = new_space(), new_space()
    with operator_session() as operator:
        plan(filled, first)(operator)
        plan(filled, second)(operator)
    assert state(filled).target == second
    with operator_session() as operator:
        campaigns.start(operator, filled.tenant_id, slots=1, small=SMALL, large=LARGE, actor=ACTOR)
    refused("campaign-under-way", plan(filled, first))


def test_steps_out_of_order_are_refused(
    filled: Principal, make_tenant: Callable[..., Principal], pump: Pump, working: Services, clock: FakeClock
) -> None:
    """No campaign, a switch before it is ready, a rollback before the switch, a start of what runs, a bad grace."""
    stranger = make_tenant()

    def switch(operator: Any, tenant: Principal = filled, **options: Any) -> object:
        return switching.switch(operator, tenant.tenant_id, now=clock.now(), actor=ACTOR, **options)

    def start(operator: Any) -> object:
        return campaigns.start(operator, filled.tenant_id, slots=1, small=SMALL, large=LARGE, actor=ACTOR)

    refused("no-campaign", lambda operator: switch(operator, stranger))
    begin(filled, new_space())
    refused("campaign-state", switch)
    refused("campaign-state", start)
    refused("campaign-state", lambda o: switching.rollback(o, filled.tenant_id, now=clock.now(), actor=ACTOR))
    pump.run()
    job(working)
    for grace in (timedelta(0), timedelta(minutes=14), timedelta(days=365)):
        refused("bad-grace", partial(switch, grace=grace))
    with operator_session() as operator:
        switch(operator)
    refused("campaign-state", switch)


def test_a_plan_is_outdated_when_another_space_answers(filled: Principal, clock: FakeClock) -> None:
    """What was estimated for one space must not start for another."""
    target, third = new_space(), new_space()
    old = answering(filled).space_id
    with operator_session() as operator:
        plan(filled, target)(operator)
        operator.execute(
            text("update rag.tenant_spaces set state = 'paused' where tenant_id = :t and space_id = :s"),
            {"t": filled.tenant_id, "s": old},
        )
        operator.execute(
            text("insert into rag.tenant_spaces (tenant_id, space_id, state) values (:t, :s, 'active')"),
            {"t": filled.tenant_id, "s": third.space_id},
        )
    refused(
        "plan-outdated",
        lambda o: campaigns.start(o, filled.tenant_id, slots=1, small=SMALL, large=LARGE, actor=ACTOR),
    )


def test_a_model_is_tried_before_anything_is_planned(database: Database) -> None:
    """Who the proxy does not know, and whose vectors have another length, is named; nothing of a tenant is sent."""
    space, trial = new_space(8), Platform("dev", FakeClock().now())
    models = FakeModels(failures=[PermanentError("model-refused", "m", "n")])
    with pytest.raises(PermanentError) as unknown:
        estimating.try_model(models, space, trial)
    assert unknown.value.reason == "unknown-model"
    models = FakeModels(failures=[UnusableVectors("dimension 384 instead of 8", 3)])
    with pytest.raises(PermanentError, match="384 instead of 8") as wrong:
        estimating.try_model(models, space, trial)
    assert wrong.value.reason == "wrong-dimension"
    good = FakeModels()
    assert estimating.try_model(good, space, trial, tokens=50) > 0
    assert all("Vertragsparteien" in sent for sent in good.embedded)


# ---- estimate --------------------------------------------------------------------------------------------------------


def test_the_dry_run_counts_what_will_be_sent(
    filled: Principal, pump: Pump, working: Services, clock: FakeClock
) -> None:
    """Chunks, tokens, cost by the price table, time by the measured rate; what is there already costs nothing."""
    target = new_space()
    source = answering(filled)
    with operator_session() as operator:
        set_price(operator, target.model, Decimal(2), clock.now() - timedelta(days=1))
        load = estimating.load_of(operator, filled.tenant_id, source, target, history=True)
        found = estimating.estimate(operator, load, target, 4.0, "prod", clock.now())
        without = estimating.load_of(operator, filled.tenant_id, source, target, history=False)
    assert (load.chunks, load.history, load.there) == (10, 2, 0)
    assert (without.chunks, without.history) == (8, 0)
    assert found.eur == Decimal(load.tokens) * 2 / 1_000_000
    assert found.seconds == 2.5
    begin(filled, target, budget=Decimal(1))
    pump.step()
    with operator_session() as operator:
        load = estimating.load_of(operator, filled.tenant_id, source, target, history=True)
    assert 0 < load.there == vectors(filled, target)
    assert load.chunks == 10 - load.there


def test_a_model_without_a_price_is_refused_where_a_cap_must_hold(filled: Principal, clock: FakeClock) -> None:
    """Nobody could say what it costs."""
    target = new_space()
    with operator_session() as operator:
        load = estimating.load_of(operator, filled.tenant_id, answering(filled), target, history=True)
        assert estimating.estimate(operator, load, target, 1.0, "dev", clock.now()).eur is None
    refused("no-price", lambda o: estimating.estimate(o, load, target, 1.0, "prod", clock.now()))


# ---- comparison ------------------------------------------------------------------------------------------------------


def ask(tenant: Principal, *questions: str) -> None:
    """Questions that were asked."""
    with tenant_session(tenant.tenant_id) as session:
        for question in questions:
            ids = {"t": tenant.tenant_id, "c": uuid4(), "r": uuid4(), "m": tenant.member_id, "q": question}
            session.execute(
                text(
                    "insert into core.conversations (tenant_id, conversation_id, member_id, title) "
                    "values (:t, :c, :m, 'x')"
                ),
                ids,
            )
            session.execute(
                text(
                    "insert into core.runs (tenant_id, run_id, conversation_id, member_id, question, state, "
                    "traceparent) values (:t, :r, :c, :m, :q, 'answered', '')"
                ),
                ids,
            )


class Slow(FakeModels):
    """The new model is not done with more than one text in the time a request may take."""

    def __init__(self, slow: str) -> None:
        super().__init__()
        self.slow, self.sizes = slow, list[int]()

    def embed_counted(self, texts: Sequence[str], *, model: str, **options: Any) -> Embedded:
        """Vectors for one text, or for any number by another model."""
        if model == self.slow:
            self.sizes.append(len(texts))
            if len(texts) > 1:
                raise TooSlow("the model did not answer in time")
        return super().embed_counted(texts, model=model, **options)


def test_a_campaign_learns_how_much_a_slow_model_manages(
    tenant: Principal, pump: Pump, working: Services, clock: FakeClock
) -> None:
    """A batch that is twice not done in time is halved, and what is sent afterwards is no larger."""
    add(tenant, "long", [f"paragraph {n}" for n in range(9)])
    pump.run()
    target = new_space(48)
    models = Slow(target.model)
    pump.services = working = replace(working, _models=models)
    begin(tenant, target, slots=1)
    for _ in range(20):
        pump.run()
        clock.advance(timedelta(hours=1))
        pump.repeat_postponed()
        if not pump.waiting() and not pump.postponed:
            break
    job(working)
    assert (state(tenant).state, state(tenant).batch) == ("ready", 1)
    assert Counter(models.sizes) == {4: 2, 2: 4, 1: vectors(tenant, target)}


def payer_of(tenant: Principal) -> Payer:
    """The tenant pays for what is compared."""
    return Payer(tenant.tenant_id, "dev", datetime.now(UTC))


def test_the_shadow_comparison_asks_the_tenants_own_questions_in_both_spaces(
    filled: Principal, pump: Pump, working: Services
) -> None:
    """Each text once, as who asked it; overlap, evidence and judged measures with intervals; nothing is switched."""
    old, target = answering(filled), new_space(48)
    begin(filled, target)
    pump.run()
    ask(filled, "paragraph 3 of the first", "paragraph 3 of the first", "what stays", "\x01")
    with tenant_session(filled.tenant_id) as session:
        asked = comparing.recent_questions(session, filled.tenant_id)
    assert sorted(a.question for a in asked) == ["\x01", "paragraph 3 of the first", "what stays"]
    found = comparing.compare(payer_of(filled), asked, old, target, working.models)
    assert found.questions == 2
    assert 0 < found.overlap.low <= found.overlap.mean <= found.overlap.high <= 1
    assert found.calibrated_new is False
    assert found.evidence_new.mean == 1.0
    judged = [
        Question(id="1", question="the new wording", relevant=(Relevant(document="doc-1", passage="new wording"),))
    ]
    before, after, gaps = comparing.compare_judged(filled, payer_of(filled), judged, old, target, working.models)
    assert before.summary()["ndcg@10"].mean == 1.0
    assert gaps["ndcg@10"].mean == after.summary()["ndcg@10"].mean - 1.0
    assert answering(filled) == old


def test_a_comparison_without_questions_says_so(filled: Principal, working: Services) -> None:
    """A golden set is the way then."""
    with pytest.raises(PermanentError) as error:
        comparing.compare(payer_of(filled), [], answering(filled), new_space(), working.models)
    assert error.value.reason == "no-questions"


# ---- index and shares ------------------------------------------------------------------------------------------------


def test_a_large_space_is_ready_only_with_its_index(
    filled: Principal, pump: Pump, working: Services, monkeypatch: pytest.MonkeyPatch, owner: Connection
) -> None:
    """Recall never drops: the index is built first; where nobody may build it, the campaign says what it waits for."""
    monkeypatch.setattr(switching, "BUILD_FROM", 5)
    target = new_space()
    begin(filled, target)
    pump.run()
    poor = replace(working, settings=working.settings.model_copy(update={"migration_database_url": None}))
    job(poor)
    campaign = state(filled)
    assert (campaign.state, campaign.reason) == ("filling", "index")
    assert campaign.next_action
    job(working)
    assert (state(filled).state, state(filled).reason) == ("ready", None)
    assert _valid_index(filled, target)


def _valid_index(tenant: Principal, space: Space) -> bool:
    with operator_session() as operator:
        return any(
            c.indexed
            for c in indexes.corpora(operator)
            if (c.tenant_id, c.space_id) == (tenant.tenant_id, space.space_id)
        )


def test_an_index_is_built_by_one_at_a_time(filled: Principal, database: Database, owner: Connection) -> None:
    """A second turn of the job leaves a build alone that is under way."""
    space = answering(filled)
    corpus = indexes.Corpus(filled.tenant_id, space.space_id, space.dimension, 10, indexed=False)
    with indexes.owner_connection(database.owner_url) as other:
        name = {"name": f"index:{corpus.index}"}
        other.execute(text("select pg_advisory_lock(hashtextextended(:name, 0))"), name)
        assert indexes.build_once(owner, corpus) is False
        other.execute(text("select pg_advisory_unlock(hashtextextended(:name, 0))"), name)
    assert indexes.build_once(owner, corpus) is True


def test_campaigns_share_what_may_be_under_way(
    make_tenant: Callable[..., Principal], pump: Pump, working: Services
) -> None:
    """A fleet that changes models at once has no more batches in the line than one tenant alone, or one each."""
    target = new_space()
    fleet = [make_tenant() for _ in range(3)]
    for tenant in fleet:
        add(tenant, "doc", [f"text {n}" for n in range(3)])
    pump.run()
    with operator_session() as operator:
        operator.execute(text("update rag.campaigns set state = 'cancelled' where state = 'filling'"))
    for tenant in fleet:
        begin(tenant, target)
    with operator_session() as operator:
        assert tending.share_slots(operator, 7) == 3
    assert [state(tenant).slots for tenant in fleet] == [2, 2, 2]
    with operator_session() as operator:
        tending.share_slots(operator, 2)
    assert [state(tenant).slots for tenant in fleet] == [1, 1, 1]


# ---- command line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def noesis(working: Services, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command of `noesis campaigns` or `noesis spaces`; returns what it printed."""
    monkeypatch.setenv("COLUMNS", "200")
    for module in ("cli.campaigns", "cli.spaces"):
        monkeypatch.setattr(f"{module}.services", lambda: working)

    def run(group: Any, *arguments: str) -> str:
        done = CliRunner().invoke(group, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return run


def booked(tenant: Principal, model: str) -> list[str]:
    """The states of the calls of a model that the tenant pays for."""
    with tenant_session(tenant.tenant_id) as session:
        rows = session.execute(
            text("select state from core.ledger where tenant_id = :t and model = :m"),
            {"t": tenant.tenant_id, "m": model},
        )
        return list(rows.scalars())


def test_a_person_takes_a_tenant_to_another_space_and_back(
    filled: Principal, pump: Pump, working: Services, noesis: Callable[..., str], tmp_path: Path
) -> None:
    """Add a space, plan, start, watch, compare, switch, roll back: every command says what happened."""
    slug = filled.tenant_slug
    model = f"other-{uuid4().hex[:8]}"
    assert f"{model}-24" in noesis(spaces_command, "add", model, "24")
    assert "is there already" in noesis(spaces_command, "add", model, "24")
    assert model in noesis(spaces_command, "list")
    planned = noesis(command, "plan", f"{model}-24", "-t", slug)
    assert "chunks   10 (2 of earlier versions, 0 there already)" in planned
    assert "no evidence floor" in planned
    assert booked(filled, model) == ["settled", "settled"]  # the tenant's campaign is tried at the tenant's expense
    noesis(command, "start", "-t", slug)
    pump.step()
    noesis(command, "pause", "-t", slug)
    assert "paused" in noesis(command, "status", "-t", slug)
    noesis(command, "resume", "-t", slug)
    pump.run()
    job(working)
    report = json.loads(noesis(command, "status", "-t", slug, "--json"))
    assert (report["state"], report["done"], report["total"]) == ("ready", 10, 10)
    golden = tmp_path / "golden.jsonl"
    golden.write_text('{"id": "1", "question": "the new wording", "relevant": [{"document": "doc-1"}]}\n')
    ask(filled, "what stays")
    compared = noesis(command, "compare", "-t", slug, "--golden", str(golden))
    assert "overlap" in compared
    assert "ndcg@10" in compared
    assert "evidence not calibrated" in compared
    assert "not calibrated" in noesis(command, "switch", "-t", slug)
    assert answering(filled).name == f"{model}-24"
    assert f"{model}-24" in noesis(command, "list")
    assert "compared on 1 questions" in noesis(command, "status", "-t", slug)
    noesis(command, "rollback", "-t", slug)
    assert answering(filled).name != f"{model}-24"
    assert spaces(filled)[state(filled).target.space_id] == "paused"
