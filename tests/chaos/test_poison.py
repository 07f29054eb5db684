"""A thousand messages, one in ten poison, through real processes and the real bus."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.poisoning import LIMITS, raising, serve
from tests.chaos.processes import running_machines
from tests.conftest import Database


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_poison_is_archived_and_keeps_nobody_waiting(database: Database, tmp_path: Path) -> None:
    """Each poison ends in its class and reason; the good ones are served at most twice as late as without any.

    All are published at once, so that the last of a healthy run, too, is served after about twice its median; a
    parser that hangs or eats takes a whole processor until its limit, of two.
    """
    with running_machines(tmp_path, database.owner_url, schedules=False, **LIMITS) as machines, raising(machines):
        serve(machines, 50, 0)  # warm: first connections, first parser processes
        without = serve(machines, 1000, 0)
        with_poison = serve(machines, 1000, 100)
        print(f"\nwithout poison: {without}\nwith poison: {with_poison}\n{with_poison.letters} {with_poison.failures}")
    assert len(with_poison.seconds) == 900
    assert with_poison.median <= 2 * without.median
    assert max(with_poison.seconds) <= 2 * max(without.seconds)
