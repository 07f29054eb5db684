"""Calls of tools and what came of them: a finished one is told again and never done again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.conversations.runs import Lease, hold
from shared.database import write_one


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call came to. `reason` is a code when it did not do what was asked; `passages` are plain JSON."""

    ok: bool
    text: str
    reason: str | None = None
    passages: tuple[dict[str, Any], ...] = ()


def finished_call(session: Session, tenant_id: UUID, run_id: UUID, key: str) -> Outcome | None:
    """The stored outcome of a call, or None."""
    row = session.execute(
        text(
            "select ok, reason, result from core.tool_calls where tenant_id = :tenant and run_id = :run "
            "and call_key = :key and state = 'finished'"
        ),
        {"tenant": tenant_id, "run": run_id, "key": key},
    ).first()
    if row is None:
        return None
    if row.result is None:
        # A document it had read was deleted for good, and what it said with it (shared.conversations.redaction).
        return Outcome(False, "The result was erased together with a document.", "result-erased")
    return Outcome(row.ok, row.result["text"], row.reason, tuple(row.result["passages"]))


def reserve(session: Session, lease: Lease, key: str, name: str, arguments: dict[str, Any]) -> bool:
    """Note that an effect outside is about to happen; False when an earlier attempt noted it and never came back.

    Raises Superseded for who has lost the run.
    """
    hold(session, lease)
    attempts = session.execute(
        text(
            "insert into core.tool_calls as c (tenant_id, run_id, call_key, name, state, arguments) "
            "values (:tenant, :run, :key, :name, 'reserved', cast(:arguments as jsonb)) "
            "on conflict (tenant_id, run_id, call_key) do update set attempts = c.attempts + 1 returning attempts"
        ),
        _values(lease, key) | {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
    ).scalar_one()
    return bool(attempts == 1)


def store(session: Session, lease: Lease, key: str, name: str, arguments: dict[str, Any], outcome: Outcome) -> None:
    """Store the outcome of a call, in the transaction of its effect where the effect is ours.

    Raises Superseded for who has lost the run, and LostWrite when the call has been finished meanwhile.
    """
    hold(session, lease)
    result = {"text": outcome.text, "passages": list(outcome.passages)}
    write_one(
        session,
        "insert into core.tool_calls as c (tenant_id, run_id, call_key, name, state, arguments, ok, reason, result, "
        "finished_at) values (:tenant, :run, :key, :name, 'finished', cast(:arguments as jsonb), :ok, :reason, "
        "cast(:result as jsonb), now()) on conflict (tenant_id, run_id, call_key) do update set state = 'finished', "
        "ok = excluded.ok, reason = excluded.reason, result = excluded.result, finished_at = now() "
        "where c.state = 'reserved'",
        _values(lease, key)
        | {
            "name": name,
            "arguments": json.dumps(arguments, ensure_ascii=False),
            "ok": outcome.ok,
            "reason": outcome.reason,
            "result": json.dumps(result, ensure_ascii=False),
        },
    )


def tools_used(session: Session, tenant_id: UUID, run_id: UUID) -> set[str]:
    """The names of the tools that this run has used: what they gave back is in its context."""
    rows = session.execute(
        text("select distinct name from core.tool_calls where tenant_id = :tenant and run_id = :run"),
        {"tenant": tenant_id, "run": run_id},
    )
    return {row.name for row in rows}


def _values(lease: Lease, key: str) -> dict[str, Any]:
    return {"tenant": lease.tenant_id, "run": lease.run_id, "key": key}
