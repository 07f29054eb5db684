"""What every integration test begins with: nothing of everybody's that other files left, and the owner's connection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, text

from shared.database import operator_session
from shared.retrieval import indexes
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


@pytest.fixture
def owner(database: Database) -> Iterator[Connection]:
    """The owner's connection; whatever index a test leaves is dropped."""
    with indexes.owner_connection(database.owner_url) as connection:
        yield connection
        indexes.remove_orphans(connection, [])
