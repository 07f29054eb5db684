"""At least once, in any order, late: the effects are exactly once."""

from __future__ import annotations

import pytest

from tests.chaos.deliveries import exactly_once
from tests.chaos.sweeping import Stage


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_ten_thousand_messages_have_their_effect_once(carriers: Stage) -> None:
    """Each delivered 1-5 times in random order to two processes, a tenth after everything else."""
    exactly_once(carriers, 10_000)
