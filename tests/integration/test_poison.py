"""Poison in small doses, through real processes and the real bus; `make chaos` gives a hundred times as much."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.poisoning import LIMITS, raising, serve
from tests.chaos.processes import running_machines
from tests.conftest import Database


def test_every_kind_of_poison_is_archived_and_the_good_ones_are_served(database: Database, tmp_path: Path) -> None:
    """Undecodable, wrong schema, always raising, a parser that hangs, one that eats memory: each in its class."""
    patient = LIMITS | {"PARSE_SECONDS": "6"}  # other suites run beside this one
    with running_machines(tmp_path, database.owner_url, schedules=False, **patient) as machines, raising(machines):
        served = serve(machines, 30, 5)
    assert len(served.seconds) == 25
    assert sum(served.letters.values()) >= 3
    assert sum(served.failures.values()) == 3
