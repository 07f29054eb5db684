"""What every test of tools begins with: a model that calls them, and a web service they may reach."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.fakes import FakeModels
from shared.llm import Abilities
from shared.services import Services
from tests.integration.tool_material import Web, web_service


@pytest.fixture
def able(fake_services: Services) -> Services:
    """Services whose model calls tools."""
    assert isinstance(fake_services.models, FakeModels)
    fake_services.models.able = Abilities(writes=True, tools=True)
    return fake_services


@pytest.fixture
def web() -> Iterator[Web]:
    """A web service."""
    with web_service() as service:
        yield service
