"""A run that cannot go on now: it waits for a person, a budget, a price or a provider, and holds nothing meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.conversations.ending import announce
from shared.conversations.runs import Lease, RunEvent, append_events, hold
from shared.database import array_literal
from shared.errors import Superseded
from shared.events import AnswerQuestion
from shared.messaging import publish
from shared.tenants.directory import Principal

Cause = Literal["approval", "budget", "price", "provider"]

LONGEST_WAIT = timedelta(days=7)
"""Nobody waits longer for an answer; a run that could not be paid for by then fails with a reason."""


def suspend(session: Session, lease: Lease, seq: int, cause: Cause, until: datetime | None = None) -> None:
    """Put a held run to `waiting` and give the lease back; `seq` numbers the event that tells readers.

    Whoever removes the cause queues it again: the decision of an approval, `wake_runs`, or the command at `until`.
    """
    hold(session, lease)
    session.execute(
        text(
            "update core.runs set state = 'waiting', waiting_for = :cause, waiting_until = :until, lease_until = null "
            "where tenant_id = :tenant and run_id = :run"
        ),
        {"tenant": lease.tenant_id, "run": lease.run_id, "cause": cause, "until": until},
    )
    kind = "approval-requested" if cause == "approval" else "waiting"
    data = {"for": cause, "until": until.isoformat() if until else None}
    append_events(session, lease, [RunEvent(seq, kind, data)])


def hand_over(session: Session, lease: Lease) -> None:
    """Give a held run back unfinished and command a fresh invocation to go on with it."""
    hold(session, lease)
    session.execute(
        text("update core.runs set state = 'queued', lease_until = null where tenant_id = :tenant and run_id = :run"),
        {"tenant": lease.tenant_id, "run": lease.run_id},
    )
    _command(session, lease.tenant_id, lease.run_id, f"turn:{lease.epoch}", lease.traceparent)


def wake_runs(session: Session, tenant_id: UUID, causes: Sequence[Cause]) -> int:
    """Queue a tenant's runs that wait for one of the causes; returns how many.

    After a budget was raised or a price entered. The command that was postponed comes too, later, and finds nothing
    to do; whoever still may not go on waits again.
    """
    rows = session.execute(
        text(
            "update core.runs set state = 'queued', waiting_for = null, waiting_until = null "
            "where tenant_id = :tenant and state = 'waiting' and waiting_for = any(cast(:causes as text[])) "
            "returning run_id, epoch, traceparent"
        ),
        {"tenant": tenant_id, "causes": array_literal(causes)},
    ).all()
    for row in rows:
        _command(session, tenant_id, row.run_id, f"wake:{row.epoch}", row.traceparent)
    return len(rows)


def cancel(session: Session, principal: Principal, run_id: UUID) -> bool:
    """End a member's own run before it is answered; False when it has ended already. LookupError: not theirs.

    The epoch moves on, so a worker in the middle of it is refused at its next write and stops.
    """
    ids = {"tenant": principal.tenant_id, "run": run_id, "member": principal.member_id}
    row = session.execute(
        text(
            "update core.runs set state = 'cancelled', epoch = epoch + 1, lease_until = null, waiting_for = null, "
            "waiting_until = null, finished_at = now() where tenant_id = :tenant and run_id = :run "
            "and member_id = :member and state in ('queued', 'running', 'waiting') "
            "returning conversation_id, traceparent"
        ),
        ids,
    ).first()
    if row is None:
        known = session.execute(
            text("select 1 from core.runs where tenant_id = :tenant and run_id = :run and member_id = :member"), ids
        ).scalar()
        if not known:
            raise LookupError("there is no such run")
        return False
    session.execute(
        text(
            "insert into core.run_events (tenant_id, run_id, seq, kind, data) "
            "select :tenant, :run, coalesce(max(seq), 0) + 1, 'cancelled', '{}' "
            "from core.run_events where tenant_id = :tenant and run_id = :run"
        ),
        ids,
    )
    announce(session, principal.tenant_id, run_id, row.conversation_id, "cancelled", row.traceparent)
    return True


def still_wanted(session: Session, lease: Lease) -> None:
    """Look, without writing, whether the run is still this worker's. Raises Superseded when it is not."""
    found = session.execute(
        text(
            "select 1 from core.runs where tenant_id = :tenant and run_id = :run and epoch = :epoch "
            "and state = 'running'"
        ),
        {"tenant": lease.tenant_id, "run": lease.run_id, "epoch": lease.epoch},
    ).scalar()
    if not found:
        raise Superseded("the run was taken over or cancelled")


def waited_since(session: Session, lease: Lease, now: datetime) -> bool:
    """Whether the run has been open for longer than anybody waits."""
    created: datetime = session.execute(
        text("select created_at from core.runs where tenant_id = :tenant and run_id = :run"),
        {"tenant": lease.tenant_id, "run": lease.run_id},
    ).scalar_one()
    return now - created > LONGEST_WAIT


def _command(session: Session, tenant_id: UUID, run_id: UUID, name: str, traceparent: str) -> None:
    publish(
        session,
        AnswerQuestion(event_id=uuid5(run_id, name), tenant_id=tenant_id, run_id=run_id, traceparent=traceparent),
    )
