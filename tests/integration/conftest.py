"""What the tests of one file leave for those of the next one in the same database: nothing that is everybody's."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from shared.database import operator_session
from tests.conftest import Database

# Of no tenant, so a tenant of its own does not keep a test clear of them. The prices that migrations set stay.
_EVERYBODYS = (
    "delete from core.job_runs",
    "delete from core.provider_gates",
    "delete from core.stage_spending",
    "delete from core.prices where valid_from <> '2026-01-01 00:00+00'",
)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_of_other_files(database: Database) -> None:
    """Job runs, closed gates, what the stage has spent and prices of other files are gone."""
    with operator_session() as session:
        for statement in _EVERYBODYS:
            session.execute(text(statement))
