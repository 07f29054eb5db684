"""One run of a job for each slot: the row is the lease, and a second delivery finds it taken or done."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.errors import Superseded

LEASE = timedelta(minutes=10)
"""Longer than the service's timeout of 540 s: a job that is still running keeps its slot."""


def take_slot(operator: Session, job: str, slot: datetime) -> None:
    """Take a slot of a job. Raises Superseded when it is done, or when any slot of the job is being worked on."""
    operator.execute(text("select pg_advisory_xact_lock(hashtext('job:' || :job))"), {"job": job})
    busy = operator.execute(
        text("select 1 from core.job_runs where job = :job and state = 'running' and lease_until > now()"), {"job": job}
    ).scalar()
    if busy:
        raise Superseded("the job is running already")
    taken = operator.execute(
        text(
            "insert into core.job_runs (job, slot, state, lease_until) values (:job, :slot, 'running', now() + :lease) "
            "on conflict (job, slot) do update set lease_until = excluded.lease_until, started_at = now() "
            "where core.job_runs.state = 'running'"
        ),
        {"job": job, "slot": slot, "lease": LEASE},
    ).rowcount  # type: ignore[attr-defined]
    if taken == 0:
        raise Superseded("this slot of the job is done")


def finish_slot(operator: Session, job: str, slot: datetime, result: dict[str, Any]) -> None:
    """Mark a slot done with its result, and forget slots older than a week."""
    operator.execute(
        text(
            "update core.job_runs set state = 'done', finished_at = now(), result = cast(:result as jsonb) "
            "where job = :job and slot = :slot"
        ),
        {"job": job, "slot": slot, "result": json.dumps(result)},
    )
    operator.execute(
        text("delete from core.job_runs where job = :job and state = 'done' and slot < now() - interval '7 days'"),
        {"job": job},
    )


def release_slot(operator: Session, job: str, slot: datetime) -> None:
    """Give a slot back that could not be worked on, so that the redelivery may take it."""
    operator.execute(
        text("update core.job_runs set lease_until = now() where job = :job and slot = :slot and state = 'running'"),
        {"job": job, "slot": slot},
    )
