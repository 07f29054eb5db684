"""The crash sweep of runs: SIGKILL and SIGSTOP at every statement, commit, HTTP call, publish and acknowledgement."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.run_sweeping import STORIES, RunStage, running_runs
from tests.chaos.sweeping import at_all
from tests.conftest import Database

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
TOLD: list[str] = []
"""Figures for the closing note."""


@pytest.fixture(scope="module")
def runs(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunStage]:
    """Two fork servers for the agent, a model, the database of the session."""
    with running_runs(tmp_path_factory.mktemp("runs"), database.owner_url) as made:
        yield made
    print("\n" + "\n".join(TOLD))


@pytest.mark.parametrize("name", STORIES)
def test_a_death_at_any_point_answers_once_and_pays_nothing_twice(runs: RunStage, name: str) -> None:
    """Answered exactly once, 0 repeated finished calls, 0 lost or doubled events, the ledger is the bill."""
    story = STORIES[name]
    points, expected = runs.record(story)
    print(f"\n{name}: {len(points)} points")
    wrong = at_all(points, lambda point: runs.killed(story, point, expected))
    TOLD.append(f"killed at {len(points):4d} points, {len(wrong)} violations: {name}")
    assert wrong == []


@pytest.mark.parametrize("name", STORIES)
def test_a_zombie_that_goes_on_late_changes_nothing(runs: RunStage, name: str) -> None:
    """SIGSTOP between any two transactions, the run ended by another, SIGCONT: what it still writes is refused."""
    story = STORIES[name]
    points, expected = runs.record(story)
    points = [p for p in points if not p.in_transaction and (p.when == "before" or p.kind == "http")]
    wrong = at_all(points, lambda point: runs.stopped(story, point, expected))
    TOLD.append(f"stopped at {len(points):4d} points, {len(wrong)} violations: {name}")
    assert wrong == []
