"""A small flood of repeated, shuffled and late messages; ten thousand of them are delivered by `make chaos`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.deliveries import exactly_once
from tests.chaos.sweeping import Stage, running_stage
from tests.conftest import Database


@pytest.fixture
def carriers(database: Database, tmp_path: Path) -> Iterator[Stage]:
    """Two processes with the doors of ingest and embed."""
    with running_stage(tmp_path, database.owner_url, "tests.chaos.delivery_work:deliver_all") as made:
        yield made


def test_five_hundred_messages_have_their_effect_once(carriers: Stage) -> None:
    """Each delivered 1-5 times in random order to two processes, a tenth after everything else."""
    exactly_once(carriers, 500)
