"""A real receiver of traces, and doors whose traces go there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from functions.agent import main as agent
from functions.embed import main as embed
from functions.ingest import main as ingest
from shared import doors, tracing
from shared.privacy.policies import forget_policies
from shared.services import Services
from shared.settings import Settings, load_settings
from shared.tracing.export import configure_tracing
from tests.otlp_receiver import Receiver, receiving
from tests.pushes import Open


@pytest.fixture
def collector() -> Iterator[Receiver]:
    """A real OTLP receiver on loopback."""
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def traced(collector: Receiver, fake_services: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The doors with the twins of storage and models, and traces that go to the receiver."""
    for function in (ingest, embed, agent):
        monkeypatch.setattr(function, "services", lambda: fake_services)
    monkeypatch.setattr(doors, "_verifier", Open)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    settings = load_settings()
    configure_tracing(settings, "noesis2-test")
    forget_policies()
    yield settings
    tracing.use_sink(None)
