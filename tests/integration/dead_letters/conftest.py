"""Every test of dead letters begins without any."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from shared.database import operator_session


@pytest.fixture(autouse=True)
def _no_letters(database: object) -> None:
    """Letters belong to no tenant: every test begins without any."""
    with operator_session() as session:
        session.execute(text("delete from core.dead_letters"))
        session.execute(text("delete from core.job_runs"))
        session.execute(text("delete from core.outbox"))
