"""The crash sweep: SIGKILL at every statement, commit, HTTP call, publish and acknowledgement of an ingestion."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from schema.roles import APPLICATION, IDLE_SECONDS
from tests.chaos.crash_points import Point
from tests.chaos.ingestion_work import AGED
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.sweeping import Case, Stage, at_all
from tests.conftest import Database

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
TOLD: list[str] = []
"""Figures for the closing note."""


@pytest.fixture(scope="module", autouse=True)
def _figures(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Print what was swept when all is done."""
    yield
    print("\n" + "\n".join(TOLD))


def printed(scenario: str, points: list[Point]) -> None:
    """The list of points, where `pytest -s` or a failure shows it."""
    print(f"\n{scenario}: {len(points)} points")
    for point in points:
        print(point)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_death_at_any_point_loses_repeats_and_pays_nothing(stage: Stage, name: str) -> None:
    """0 lost, 0 duplicate chunks, 0 orphan vectors, 0 half-visible versions, nothing finished embedded again."""
    scenario = SCENARIOS[name]
    points, expected = stage.record(scenario)
    printed(name, points)
    wrong = at_all(points, lambda point: stage.killed(scenario, point, expected))
    TOLD.append(f"killed at {len(points):4d} points, {len(wrong)} violations: {name}")
    assert wrong == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_zombie_that_goes_on_late_changes_nothing(stage: Stage, name: str) -> None:
    """SIGSTOP between any two transactions, the work done by another, SIGCONT: what it still writes is refused."""
    scenario = SCENARIOS[name]
    points, expected = stage.record(scenario)
    # Not where it would hold a lock that its successor waits for: of the database, or (renaming) of the blob's folder.
    # After one operation is before the next, except around calls, whose answers come late.
    points = [
        point
        for point in points
        if not point.in_transaction and point.kind != "file" and (point.when == "before" or point.kind == "http")
    ]
    wrong = at_all(points, lambda point: stage.stopped(scenario, point, expected))
    TOLD.append(f"stopped at {len(points):4d} points, {len(wrong)} violations: {name}")
    assert wrong == []


def test_a_sweep_that_dies_is_followed_by_one_that_mends(stage: Stage) -> None:
    """The minute sweep, at work on a committed but never published document, is killed at every point of its own."""
    scenario = SCENARIOS["a new document"]
    points, expected = stage.record(scenario)
    crash = next(point for point in points if point.kind == "publish")

    def wrecked() -> Case:
        with stage.forks() as forks:
            case = stage.case(forks, scenario)
            forks.kill(case.job(stage.provider), crash)
        for statement in AGED:
            stage.database.change(statement, t=case.tenant)
        # The sweep that died at the point before left a row, and the next one would find it on its way.
        stage.database.change("delete from core.job_runs")
        return case

    case = wrecked()
    with stage.mending, stage.forks() as forks:
        own = forks.record(case.job(stage.provider, sweep=True))
    assert stage.differences(case, expected) == []
    printed("a sweep", own)
    wrong = []
    for point in own:
        case = wrecked()
        with stage.forks() as forks:
            with stage.mending:
                forks.kill(case.job(stage.provider, sweep=True), point)
            wrong += [f"a sweep, {point}: {what}" for what in stage.after_death(forks, case, expected)]
    TOLD.append(f"killed at {len(own):4d} points, {len(wrong)} violations: a sweep")
    assert wrong == []


def test_a_zombie_that_holds_locks_loses_them(stage: Stage, database: Database) -> None:
    """SIGSTOP inside a transaction: the server ends it after a while, another does the work, the rest is refused."""
    scenario = SCENARIOS["a new document"]
    points, expected = stage.record(scenario)
    held = [point for point in points if point.in_transaction][7::12]
    engine = create_engine(database.admin_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    setting = f"alter role {APPLICATION} set idle_in_transaction_session_timeout"
    with engine.connect() as admin:
        admin.exec_driver_sql(f"{setting} = '1s'")  # as long as the machine needs between two statements, and more
        try:
            wrong = at_all(held, lambda point: stage.stopped(scenario, point, expected))
        finally:
            admin.exec_driver_sql(f"{setting} = '{IDLE_SECONDS}s'")
    engine.dispose()
    TOLD.append(f"stopped at {len(held):4d} points inside transactions, {len(wrong)} violations")
    assert wrong == []


def test_a_run_that_differs_from_the_recorded_one_is_noticed(stage: Stage, tmp_path: Path) -> None:
    """A point that is another than was recorded fails the sweep instead of proving nothing."""
    scenario = SCENARIOS["a withdrawal"]
    points, _ = stage.record(scenario)
    with stage.forks() as forks:
        case = stage.case(forks, scenario)
        other = Point(points[3].number, "sql", "select something else", "before", True)
        with pytest.raises(AssertionError, match="not the one that was recorded"):
            forks.kill(case.job(stage.provider), other)
        stage.mend(forks, case)
