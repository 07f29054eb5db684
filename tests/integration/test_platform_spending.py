"""Model calls that are for no tenant: under the cap of the stage, booked there, and nothing is sent past it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from uuid import uuid4

import pytest
from click.testing import CliRunner
from sqlalchemy import text

import cli.spaces
from cli.main import noesis
from functions.maintenance.jobs import dead_letter_check
from shared.database import operator_session
from shared.embeddings import Embedded, UnusableVectors
from shared.errors import PermanentError, TransientError
from shared.fakes import FakeClock, FakeModels
from shared.money.budgets import STAGE_CAPS, OverBudget, start_of, take_for_platform
from shared.money.ledger import NoPrice
from shared.money.prices import set_price
from shared.retrieval.paying import Platform, pay
from shared.services import Services

NOW = datetime(2031, 5, 4, 12, 30, tzinfo=UTC)
"""A moment of our own: the counters of a stage are everybody's."""

STAGING = Platform("staging", NOW)
PRICE = Decimal(100_000)
"""EUR per million tokens: a tenth of a euro a token. `word`, four bytes, may be 1.20 EUR, and is one token."""


@pytest.fixture
def model(database: object) -> str:
    """A model that is paid for; the stage has spent nothing."""
    name = f"paid-{uuid4().hex}"
    with operator_session() as operator:
        operator.execute(text("delete from core.stage_spending where starts_at >= :now"), {"now": start_of("day", NOW)})
        set_price(operator, name, PRICE, NOW - timedelta(days=1))
    return name


def stage_spending() -> list[tuple[Decimal, Decimal]]:
    """What is reserved and spent on the day of these tests."""
    with operator_session() as operator:
        rows = operator.execute(
            text("select reserved_eur, spent_eur from core.stage_spending where starts_at >= :now"),
            {"now": start_of("day", NOW)},
        )
        return [(row.reserved_eur, row.spent_eur) for row in rows]


def embed(models: FakeModels, model: str, payer: Platform = STAGING) -> Embedded:
    """A vector of one word, at the platform's expense."""
    ask = partial(models.embed_counted, ["word"], model=model, dimension=8, input_type="query")
    return pay(payer, model, ["word"], ask)


def test_what_the_platform_asks_counts_for_the_cap_of_its_stage(model: str) -> None:
    """The tokens that the provider counted are spent, nothing stays reserved."""
    embed(FakeModels(), model)
    assert stage_spending() == [(Decimal(0), Decimal("0.1"))]


@pytest.mark.parametrize(
    ("failure", "spent"), [(TransientError("away"), Decimal(0)), (UnusableVectors("nan", 3), Decimal("0.3"))]
)
def test_a_failed_question_of_the_platform_costs_what_was_counted(
    model: str, failure: TransientError, spent: Decimal
) -> None:
    """No answer costs nothing, an unusable one what the provider counted; the reservation is given back."""
    with pytest.raises(type(failure)):
        embed(FakeModels(failures=[failure]), model)
    assert stage_spending() == [(Decimal(0), spent)]


def test_a_provider_that_does_not_count_costs_the_platform_the_most(model: str) -> None:
    """Never less than the truth."""
    pay(STAGING, model, ["word"], lambda: Embedded([[0.0]], 0))
    assert stage_spending() == [(Decimal(0), Decimal("1.2"))]


def test_the_platform_asks_nothing_past_the_cap_of_its_stage(model: str) -> None:
    """Refused before anything is sent, until the day is over; what is reserved by others counts."""
    with operator_session() as operator:
        take_for_platform(operator, "staging", STAGE_CAPS["staging"][1] - Decimal(1), NOW)
    models = FakeModels()
    with pytest.raises(OverBudget) as caught:
        embed(models, model)
    assert caught.value.until == datetime(2031, 5, 5, tzinfo=UTC)
    assert models.embedded == []


def test_a_model_without_a_price_is_not_asked_by_the_platform_either(database: object) -> None:
    """On a laptop it counts as free; elsewhere nobody could say what it would cost."""
    models, unpriced = FakeModels(), f"unpriced-{uuid4().hex}"
    with pytest.raises(NoPrice):
        embed(models, unpriced)
    assert models.embedded == []
    embed(models, unpriced, Platform("dev", NOW))
    assert models.embedded == ["word"]


def test_the_health_probe_of_dead_letters_is_paid_and_stops_at_the_cap(model: str, fake_services: Services) -> None:
    """A word's worth of a paid model counts; at the cap the models are not asked and letters wait."""
    models = fake_services.models
    assert isinstance(models, FakeModels)
    fake_services.clock = FakeClock(NOW)
    fake_services.settings = fake_services.settings.model_copy(
        update={"noesis_stage": "staging", "embeddings_model": model}
    )
    assert dead_letter_check._models_are_healthy(fake_services)
    assert (models.embedded, stage_spending()) == (["ready"], [(Decimal(0), Decimal("0.1"))])
    with operator_session() as operator:
        take_for_platform(operator, "staging", Decimal(4), NOW)
    assert not dead_letter_check._models_are_healthy(fake_services)
    assert models.embedded == ["ready"]


def test_a_space_is_tried_at_the_platforms_expense(
    model: str, fake_services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`noesis spaces add` counts what the trial cost, and says which price is missing before it asks."""
    fake_services.clock = FakeClock(NOW)
    fake_services.settings = fake_services.settings.model_copy(update={"noesis_stage": "staging"})
    monkeypatch.setattr(cli.spaces, "services", lambda: fake_services)
    monkeypatch.setattr(cli.spaces, "get_settings", lambda: fake_services.settings)
    with operator_session() as operator:
        set_price(operator, model, Decimal(10), NOW - timedelta(hours=1))
    done = CliRunner().invoke(noesis, ["spaces", "add", model, "24"], catch_exceptions=False)
    assert (done.exit_code, f"{model}-24" in done.output) == (0, True)
    models = fake_services.models
    assert isinstance(models, FakeModels)
    tokens = sum(len(sent.split()) for sent in models.embedded)
    assert stage_spending() == [(Decimal(0), tokens * Decimal("0.00001"))]
    refused = CliRunner().invoke(noesis, ["spaces", "add", f"unpriced-{uuid4().hex}", "24"])
    assert isinstance(refused.exception, PermanentError)
    assert refused.exception.reason == "no-price"
    assert len(models.embedded) == 9
