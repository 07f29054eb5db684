"""The stages of the chaos tests, once a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.sweeping import Stage, running_stage
from tests.conftest import Database


@pytest.fixture(scope="module")
def stage(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Two fork servers for ingestion, a provider, the database of the session."""
    folder = tmp_path_factory.mktemp("stage")
    with running_stage(folder, database.owner_url, "tests.chaos.ingestion_work:work") as made:
        yield made


@pytest.fixture(scope="module")
def carriers(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Two processes with the doors of ingest and embed, for deliveries in any order."""
    folder = tmp_path_factory.mktemp("carriers")
    work = "tests.chaos.delivery_work:deliver_all"
    with running_stage(folder, database.owner_url, work, patience=600) as made:
        yield made
