"""What every campaign begins with: a clock, models that count, searchable documents and a space to go to."""

from __future__ import annotations

import pytest

from shared.fakes import FakeBus, FakeClock, FakeModels
from shared.retrieval.spaces import Space
from shared.services import Services
from shared.settings import Settings
from shared.tenants.directory import Principal
from tests.integration.campaign_material import SMALL, Pump, add, new_space, paid


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
