"""A sample of the crash sweep of runs; the whole sweep is `make chaos` (tests/chaos/test_run_crashes.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.run_sweeping import STORIES, RunStage, running_runs, sampled
from tests.chaos.sweeping import at_all
from tests.conftest import Database

EVERY = 37
"""A prime, so that the sample meets statements, commits, calls and acknowledgements in every story."""


@pytest.fixture(scope="module")
def runs(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunStage]:
    """Two fork servers for the agent, a model, the database of the session."""
    with running_runs(tmp_path_factory.mktemp("runs"), database.owner_url) as made:
        yield made


@pytest.mark.parametrize("name", STORIES)
def test_a_death_at_a_point_answers_once_and_pays_nothing_twice(runs: RunStage, name: str) -> None:
    """SIGKILL at every 37th point of a run, repaired by redelivery and sweep: answered once, paid once."""
    story = STORIES[name]
    points, expected = runs.record(story)
    sample = sampled(points, 5 * list(STORIES).index(name), EVERY)
    assert at_all(sample, lambda point: runs.killed(story, point, expected)) == []


def test_a_zombie_that_goes_on_late_changes_nothing(runs: RunStage) -> None:
    """SIGSTOP around paying and telling, the run ended by another, SIGCONT: what it still writes is refused."""
    story = STORIES["a question"]
    points, expected = runs.record(story)
    sample = [p for p in points if p.kind in ("http", "publish") and not p.in_transaction]
    assert len(sample) >= 5
    assert at_all(sample, lambda point: runs.stopped(story, point, expected)) == []
