"""The right to work on a slot of a job: the row is the lease, its epoch the fence.

A slot may take several turns (a deadline, a crash); each turn has an epoch of its own and writes only while the epoch
is still its own. A process that was stopped and resumes late finds a newer epoch and changes nothing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from shared import audit
from shared.database import operator_session, patiently
from shared.errors import Superseded
from shared.events import RunJob

LEASE = timedelta(minutes=3)
"""Renewed by every slice; a slice must end well within it. Longer means that a crash is noticed later."""

SLICE_SECONDS = 150.0
"""How long a statement of a slice may take: it sees rows of all tenants, and must end within the lease."""

RENEW_SECONDS = 60.0
"""How often a lease is renewed beside a statement that nobody can cut: two may fail before it ends."""

MAX_FAILURES = 5
"""Turns that may end badly before a slot is given up: as many as Pub/Sub delivers (REQUIREMENTS section 3)."""

SCHEDULE = "schedule"
"""The actor of runs that nobody started by hand."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a slot is: `done` of `total` (None: not known), what was counted, and where the next turn goes on.

    `counts` and `cursor` are plain JSON and absolute, not the difference to the last slice.
    """

    done: int = 0
    total: int | None = None
    counts: Mapping[str, Any] = field(default_factory=dict)
    cursor: Any = None


@dataclass(frozen=True, slots=True)
class Lease:
    """One turn at a slot of a job. `before` is how far earlier turns came."""

    job: str
    slot: datetime
    epoch: int
    actor: str
    before: Progress


def take(operator: Session, job: str, slot: datetime, actor: str = SCHEDULE) -> Lease:
    """Take a slot. Raises Superseded when it has ended, or while any slot of the job is being worked on."""
    operator.execute(text("select pg_advisory_xact_lock(hashtext('job:' || :job))"), {"job": job})
    busy = operator.execute(
        text("select 1 from core.job_runs where job = :job and state = 'running' and lease_until > now()"), {"job": job}
    ).scalar()
    if busy:
        raise Superseded("the job is running already")
    row = operator.execute(
        text(
            "insert into core.job_runs (job, slot, state, lease_until, epoch, actor) "
            "values (:job, :slot, 'running', now() + :lease, 1, :actor) on conflict (job, slot) do update "
            "set state = 'running', lease_until = excluded.lease_until, epoch = core.job_runs.epoch + 1, "
            # Still 'running' with an expired lease: that turn died without a word.
            "failures = core.job_runs.failures + case core.job_runs.state when 'running' then 1 else 0 end "
            "where core.job_runs.state in ('queued', 'running') returning epoch, actor, done, total, result, cursor"
        ),
        {"job": job, "slot": slot, "lease": LEASE, "actor": actor},
    ).first()
    if row is None:
        raise Superseded("this slot of the job has ended")
    return Lease(job, slot, row.epoch, row.actor, Progress(row.done, row.total, row.result, row.cursor))


@contextmanager
def fenced(lease: Lease) -> Iterator[Session]:
    """An operator's transaction that commits only as long as the lease is ours; renews it.

    The row stays locked until the commit, so nobody takes the slot in between. Raises Superseded otherwise.
    """
    with operator_session() as session, patiently(session, SLICE_SECONDS):
        _update(session, lease, "lease_until = now() + :duration", duration=LEASE)
        yield session


@contextmanager
def kept(lease: Lease, every: float = RENEW_SECONDS) -> Iterator[None]:
    """Renew the lease every so many seconds, for work whose slices may outlast it: index builds, REINDEX, VACUUM.

    The thread that does it ends with the process, and with the lease: whoever was superseded learns it, as always, at
    the end of the slice.
    """
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(every):
            try:
                with operator_session() as session:
                    _update(session, lease, "lease_until = now() + :duration", duration=LEASE)
            except Superseded:
                return
            except SQLAlchemyError:
                continue  # the next time may be better

    thread = threading.Thread(target=renew, name=f"lease of {lease.job}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def record_progress(session: Session, lease: Lease, progress: Progress) -> None:
    """Write how far the slot is; `session` is a fenced one."""
    _update(
        session,
        lease,
        "done = :done, total = :total, result = cast(:result as jsonb), cursor = cast(:cursor as jsonb)",
        done=progress.done,
        total=progress.total,
        result=json.dumps(progress.counts),
        cursor=json.dumps(progress.cursor),
    )


def hand_over(session: Session, lease: Lease) -> None:
    """End this turn in good order; the next one goes on at the cursor."""
    _update(session, lease, "state = 'queued', lease_until = now()")


def finish(session: Session, lease: Lease) -> None:
    """Mark the slot done, with an audit record when it changed something or a person wanted it."""
    row = _update(session, lease, "state = 'done', finished_at = now(), error = null", "result, done, total")
    if lease.actor != SCHEDULE or any(row.result.values()):
        audit.record(
            session,
            actor=lease.actor,
            action="job-done",
            subject=lease.job,
            slot=lease.slot,
            turns=lease.epoch,
            done=row.done,
            total=row.total,
            result=row.result,
        )


def release(operator: Session, lease: Lease, error: str) -> None:
    """Give back a slot whose turn ended badly, so that the redelivery may take it. `error` is a kind, not a text."""
    operator.execute(
        text(
            "update core.job_runs set state = 'queued', lease_until = now(), failures = failures + 1, error = :error "
            "where job = :job and slot = :slot and epoch = :epoch and state = 'running'"
        ),
        {"job": lease.job, "slot": lease.slot, "epoch": lease.epoch, "error": error},
    )


def fail(operator: Session, job: str, slot: datetime, error: str) -> bool:
    """Give a slot up for good; whoever still works on it is fenced off. False when it has ended already."""
    row = operator.execute(
        text(
            "update core.job_runs set state = 'failed', epoch = epoch + 1, finished_at = now(), error = :error "
            "where job = :job and slot = :slot and state in ('queued', 'running') returning actor, failures, error"
        ),
        {"job": job, "slot": slot, "error": error},
    ).first()
    if row is None:
        return False
    audit.record(
        operator,
        actor=row.actor,
        action="job-failed",
        subject=job,
        slot=slot,
        failures=row.failures,
        error=error,
    )
    return True


def abandoned(operator: Session, patience: timedelta) -> list[tuple[str, datetime, int, int, str]]:
    """Slots that nobody works on any more, as (job, slot, epoch, failures, actor): message or worker was lost.

    `patience` is how long after the lease's end.
    """
    rows = operator.execute(
        text(
            "select job, slot, epoch, failures, actor from core.job_runs where state in ('queued', 'running') "
            "and lease_until < now() - cast(:patience as interval) order by slot limit 100"
        ),
        {"patience": patience},
    )
    return [(row.job, row.slot, row.epoch, row.failures, row.actor) for row in rows]


def next_turn(job: str, slot: datetime, epoch: int) -> RunJob:
    """The command for the turn after `epoch`; the same turn always has the same event id."""
    event_id = uuid5(NAMESPACE_URL, f"noesis2:run-job:{job}@{slot.isoformat()}:{epoch}")
    return RunJob(event_id=event_id, job=job, slot=slot)


def _update(session: Session, lease: Lease, assignments: str, returning: str = "epoch", **values: Any) -> Any:
    """Change the row of a lease that is still ours. Raises Superseded when it is not."""
    row = session.execute(
        text(
            f"update core.job_runs set {assignments} where job = :job and slot = :slot and epoch = :epoch "
            f"and state = 'running' returning {returning}"
        ),
        {"job": lease.job, "slot": lease.slot, "epoch": lease.epoch, **values},
    ).first()
    if row is None:
        raise Superseded("the slot of the job was taken over")
    return row
