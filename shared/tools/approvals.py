"""A person's word about a tool call: asked for, decided once, expired by itself; nothing is held while it waits.

`pending → approved | edited | refused | expired | cancelled`. Asking and putting the run to `waiting` are one
transaction of the agent; deciding, queueing the run again and commanding its work are one transaction here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID, uuid5

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from shared.audit import record
from shared.completions import ToolCall
from shared.containment import contained
from shared.conversations.runs import Lease
from shared.database import array_literal, operator_session, tenant_session
from shared.errors import PermanentError
from shared.events import AnswerQuestion
from shared.messaging import publish, storable
from shared.tenants.directory import Principal
from shared.tools.arguments import read_arguments
from shared.tools.catalogue import find_tool
from shared.tools.registry import ASKER, grants

Kind = Literal["approved", "refused", "edited"]
NOTE_LIMIT = 1_000
SLICE = 100

OPEN_RUNS = "('queued', 'running', 'waiting')"


@dataclass(frozen=True, slots=True)
class Decision:
    """How it ended. `arguments` are what may be performed: those asked about, or the edited ones; None: nothing."""

    kind: Literal["approved", "refused", "edited", "expired"]
    arguments: dict[str, Any] | None
    by: UUID | None
    note: str
    tool: str


@dataclass(frozen=True, slots=True)
class Approval:
    """An approval as those who may decide it see it."""

    approval_id: UUID
    run_id: UUID
    tool: str
    arguments: dict[str, Any]
    question: str
    asked_for: str
    """E-mail of the member whose question it is."""
    approvers: tuple[str, ...]
    four_eyes: bool
    state: str
    edited: dict[str, Any] | None
    note: str
    created_at: datetime
    expires_at: datetime
    decided_at: datetime | None


def approval_id_of(run_id: UUID, key: str) -> UUID:
    """The id of the approval of a call: asking again asks nothing new."""
    return uuid5(run_id, f"approval:{key}")


def request_approval(session: Session, lease: Lease, call: ToolCall, key: str) -> UUID:
    """Ask for a person's word about this call; returns the approval's id. Under the same key it is asked once.

    Call it in the transaction that puts the run to `waiting` (which holds the lease): a decision then finds either
    nothing or a run that waits. Raises PermanentError `unknown-tool`, `bad-arguments`.
    """
    tool = find_tool(call.name)
    arguments = read_arguments(tool.arguments, call.arguments).model_dump(mode="json")
    grant = grants(session, lease.tenant_id)[tool.name]
    approval_id = approval_id_of(lease.run_id, key)
    session.execute(
        text(
            "insert into core.approvals as a (tenant_id, approval_id, run_id, call_key, tool, arguments, asked_for, "
            "approvers, four_eyes, expires_at) values (:tenant, :approval, :run, :key, :tool, "
            "cast(:arguments as jsonb), :member, cast(:approvers as text[]), :four_eyes, now() + :patience) "
            # One that was cancelled because its run had to begin anew is asked anew.
            "on conflict (tenant_id, approval_id) do update set state = 'pending', tool = excluded.tool, "
            "arguments = excluded.arguments, approvers = excluded.approvers, four_eyes = excluded.four_eyes, "
            "created_at = now(), expires_at = excluded.expires_at, decided_at = null where a.state = 'cancelled'"
        ),
        {
            "tenant": lease.tenant_id,
            "approval": approval_id,
            "run": lease.run_id,
            "key": key,
            "tool": tool.name,
            "arguments": json.dumps(arguments, ensure_ascii=False),
            "member": lease.member_id,
            "approvers": array_literal(grant.approvers),
            "four_eyes": grant.four_eyes,
            "patience": grant.patience,
        },
    )
    return approval_id


def decision_of(session: Session, tenant_id: UUID, run_id: UUID, key: str) -> Decision | None:
    """What was decided about a call; None while it is pending or when nobody was asked."""
    row = session.execute(
        text(
            "select state, tool, arguments, edited, decided_by, note from core.approvals "
            "where tenant_id = :tenant and run_id = :run and call_key = :key"
        ),
        {"tenant": tenant_id, "run": run_id, "key": key},
    ).first()
    if row is None or row.state in ("pending", "cancelled"):
        return None
    may = {"approved": row.arguments, "edited": row.edited}.get(row.state)
    return Decision(row.state, may, row.decided_by, row.note, row.tool)


def decide(
    session: Session,
    principal: Principal,
    approval_id: UUID,
    kind: Kind,
    arguments: dict[str, Any] | None = None,
    note: str = "",
) -> None:
    """Decide, queue the waiting run again and command its work. The same decision by the same person twice is once.

    Raises PermanentError `unknown-approval`, `not-an-approver`, `own-request`, `already-decided`,
    `approval-expired`, `run-ended`, `bad-arguments`.
    """
    ids = {"tenant": principal.tenant_id, "approval": approval_id}
    row = _locked(session, ids)
    if row is None or not _may_see(principal, row):
        # The same for another tenant's, for none, and for who may not even see it.
        raise PermanentError("unknown-approval", "There is no such approval.", "See `noesis approvals list`.")
    _check_right(principal, row)
    edited = _edited(row.tool, kind, arguments)
    note = storable(note).strip()[:NOTE_LIMIT]
    if row.state == kind and row.decided_by == principal.member_id and row.edited == edited:
        return
    if row.state in ("approved", "edited", "refused"):
        raise PermanentError("already-decided", f"This was decided already: {row.state}.", "Nothing is to be done.")
    if row.run_state not in ("queued", "running", "waiting") or row.state == "cancelled":
        raise PermanentError("run-ended", "The question behind this approval has ended.", "Nothing is to be done.")
    if row.state == "expired" or row.over:
        raise PermanentError("approval-expired", "The time for this approval is over.", "Ask the question again.")
    session.execute(
        text(
            "update core.approvals set state = :kind, edited = cast(:edited as jsonb), note = :note, "
            "decided_by = :member, decided_at = now() where tenant_id = :tenant and approval_id = :approval"
        ),
        ids
        | {
            "kind": kind,
            "edited": None if edited is None else json.dumps(edited, ensure_ascii=False),
            "note": note,
            "member": principal.member_id,
        },
    )
    _go_on(session, principal.tenant_id, row, kind)


def _locked(session: Session, ids: dict[str, Any]) -> Row[Any] | None:
    """The approval, locked after its run: the order in which a run's own writes lock (run first)."""
    run_id = session.execute(
        text("select run_id from core.approvals where tenant_id = :tenant and approval_id = :approval"), ids
    ).scalar()
    session.execute(
        text("select 1 from core.runs where tenant_id = :tenant and run_id = :run for update"), ids | {"run": run_id}
    )
    return session.execute(
        text(
            "select a.approval_id, a.run_id, a.tool, a.state, a.edited, a.asked_for, a.approvers, a.four_eyes, "
            "a.decided_by, a.expires_at <= now() as over, r.state as run_state, r.traceparent "
            "from core.approvals a join core.runs r on r.tenant_id = a.tenant_id and r.run_id = a.run_id "
            "where a.tenant_id = :tenant and a.approval_id = :approval for update of a"
        ),
        ids,
    ).first()


def _may_see(principal: Principal, row: Row[Any]) -> bool:
    return principal.role in row.approvers or principal.member_id == row.asked_for


def _check_right(principal: Principal, row: Row[Any]) -> None:
    own = principal.member_id == row.asked_for
    if own and row.four_eyes:
        raise PermanentError(
            "own-request", "Somebody else must decide about a question of yours.", "Ask one of the approvers."
        )
    if principal.role not in row.approvers and not (own and ASKER in row.approvers):
        raise PermanentError("not-an-approver", "Your role may not decide about this.", "Ask one of the approvers.")


def _edited(tool: str, kind: Kind, arguments: dict[str, Any] | None) -> dict[str, Any] | None:
    if kind != "edited":
        return None
    return read_arguments(find_tool(tool).arguments, arguments or {}).model_dump(mode="json")


def _go_on(session: Session, tenant_id: UUID, row: Row[Any], kind: str) -> None:
    """Tell the run's readers, and set the run going unless another approval of it is still pending."""
    ids = {"tenant": tenant_id, "run": row.run_id}
    told = {"approval_id": str(row.approval_id), "tool": row.tool, "decision": kind}
    session.execute(
        text(
            # Nobody holds a waiting run, and its row is locked: the next number is free.
            "insert into core.run_events (tenant_id, run_id, seq, kind, data) "
            "select :tenant, :run, coalesce(max(seq), 0) + 1, 'approval-decided', cast(:data as jsonb) "
            "from core.run_events where tenant_id = :tenant and run_id = :run"
        ),
        ids | {"data": json.dumps(told)},
    )
    queued = session.execute(
        text(
            "update core.runs r set state = 'queued', lease_until = null, waiting_for = null, waiting_until = null "
            "where r.tenant_id = :tenant and r.run_id = :run and r.state = 'waiting' "
            "and not exists (select 1 from core.approvals a where a.tenant_id = :tenant and a.run_id = :run "
            "and a.state = 'pending')"
        ),
        ids,
    ).rowcount  # type: ignore[attr-defined]
    if queued:
        publish(
            session,
            AnswerQuestion(
                event_id=uuid5(row.approval_id, f"decided:{kind}"),
                tenant_id=tenant_id,
                run_id=row.run_id,
                traceparent=row.traceparent,
            ),
        )


def expire(session: Session, tenant_id: UUID, approval_id: UUID) -> bool:
    """End one approval whose time is over or whose run has ended; False when somebody was faster."""
    ids = {"tenant": tenant_id, "approval": approval_id}
    row = _locked(session, ids)
    if row is None or row.state != "pending":
        return False
    ended = row.run_state not in ("queued", "running", "waiting")
    if not ended and not row.over:
        return False
    state = "cancelled" if ended else "expired"
    session.execute(
        text(
            "update core.approvals set state = :state, decided_at = now() "
            "where tenant_id = :tenant and approval_id = :approval"
        ),
        ids | {"state": state},
    )
    if not ended:
        _go_on(session, tenant_id, row, state)
    return True


def expire_due() -> int:
    """Expire what has waited too long, and cancel what waits for a run that has ended; returns how many. For the sweep.

    An expired run goes on: the model is told that nobody agreed, and answers without.
    """
    with operator_session() as operator:
        due = operator.execute(
            text(
                "select a.tenant_id, a.approval_id, a.tool from core.approvals a join core.runs r "
                "on r.tenant_id = a.tenant_id and r.run_id = a.run_id where a.state = 'pending' "
                f"and (a.expires_at <= now() or r.state not in {OPEN_RUNS}) order by a.expires_at limit :limit"
            ),
            {"limit": SLICE},
        ).all()
    expired = []
    for tenant_id, approval_id, tool in due:
        with contained(tenant_id, "approval not expired"), tenant_session(tenant_id) as session:
            if expire(session, tenant_id, approval_id):
                expired.append((tenant_id, approval_id, tool))
    if expired:
        with operator_session() as operator:
            for tenant_id, approval_id, tool in expired:
                record(
                    operator,
                    actor="sweep",
                    action="approval-expired",
                    subject=str(approval_id),
                    tenant_id=tenant_id,
                    tool=tool,
                )
    return len(expired)


_READ = (
    "select a.approval_id, a.run_id, a.tool, a.arguments, r.question, m.email as asked_for, a.approvers, a.four_eyes, "
    "a.state, a.edited, a.note, a.created_at, a.expires_at, a.decided_at from core.approvals a "
    "join core.runs r on r.tenant_id = a.tenant_id and r.run_id = a.run_id "
    "join core.members m on m.tenant_id = a.tenant_id and m.member_id = a.asked_for "
    "where a.tenant_id = :tenant and (:role = any(a.approvers) or a.asked_for = :member)"
)


def pending_approvals(session: Session, principal: Principal, limit: int = 100) -> Sequence[Approval]:
    """What waits for a decision that this member may see: as an approver, or about an own question; oldest first."""
    rows = session.execute(
        text(
            f"{_READ} and a.state = 'pending' and a.expires_at > now() and r.state in {OPEN_RUNS} "
            "order by a.created_at, a.approval_id limit :limit"
        ),
        _who(principal) | {"limit": limit},
    )
    return [_approval(row) for row in rows]


def read_approval(session: Session, principal: Principal, approval_id: UUID) -> Approval | None:
    """One approval, whatever its state, if this member may see it."""
    row = session.execute(
        text(f"{_READ} and a.approval_id = :approval"), _who(principal) | {"approval": approval_id}
    ).first()
    return _approval(row) if row else None


def _who(principal: Principal) -> dict[str, Any]:
    return {"tenant": principal.tenant_id, "role": principal.role, "member": principal.member_id}


def _approval(row: Row[Any]) -> Approval:
    return Approval(**{**row._mapping, "approvers": tuple(row.approvers)})
