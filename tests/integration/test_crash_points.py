"""A sample of the crash sweep; all points are killed by `make chaos` (tests/chaos/test_crash_sweep.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.scenarios import SCENARIOS
from tests.chaos.sweeping import Stage, at_all, running_stage
from tests.conftest import Database

EVERY = 37
"""A prime, so that the sample meets statements, commits, calls and acknowledgements in every story."""


@pytest.fixture(scope="module")
def stage(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Two fork servers for ingestion, a provider, the database of the session."""
    folder = tmp_path_factory.mktemp("stage")
    with running_stage(folder, database.owner_url, "tests.chaos.ingestion_work:work") as made:
        yield made


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_death_at_a_point_loses_repeats_and_pays_nothing(stage: Stage, name: str) -> None:
    """SIGKILL at every 37th point of a document's story, repaired by redelivery and sweep: nothing is missing."""
    scenario = SCENARIOS[name]
    points, expected = stage.record(scenario)
    sample = points[list(SCENARIOS).index(name) % len(points) :: EVERY]
    assert at_all(sample, lambda point: stage.killed(scenario, point, expected)) == []


def test_a_zombie_that_goes_on_late_changes_nothing(stage: Stage) -> None:
    """SIGSTOP around parsing and paying, the work done by another, SIGCONT: what it still writes is refused."""
    scenario = SCENARIOS["a new document"]
    points, expected = stage.record(scenario)
    seen: dict[tuple[str, str, str], int] = {}
    for point in points:
        if point.kind in ("parse", "http", "publish") and not point.in_transaction:
            seen.setdefault((point.kind, point.what, point.when), point.number)
    sample = [points[number] for number in seen.values()]
    assert len(sample) >= 8
    assert at_all(sample, lambda point: stage.stopped(scenario, point, expected)) == []
