"""What other tests left in the database of the session: the sweep works for every tenant, and would work for theirs."""

from __future__ import annotations

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

STATEMENTS = (
    "delete from core.job_runs",
    "delete from core.outbox",
    "delete from core.waiting_messages",
    "update core.runs set state = 'cancelled', lease_until = null where state in ('queued', 'running', 'waiting')",
    "update rag.versions set state = 'failed', waiting = null, waiting_until = null "
    "where state in ('received', 'ingested')",
)


def end_leftovers(owner_url: str) -> None:
    """End everything that is under way, so that what a sweep finds afterwards is a stage's own."""
    engine = create_engine(owner_url, poolclass=NullPool)
    with engine.begin() as owner:
        for statement in STATEMENTS:
            owner.execute(text(statement))
    engine.dispose()
