"""What conversations keep of documents that are deleted for good is erased: answers, citations, drafts, checkpoints.

Who asked what stays, and what it cost. Lock order: the documents are locked by the caller, then runs by their id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.conversations.ending import fail
from shared.conversations.withholding import NOTICE
from shared.database import array_literal
from shared.errors import PermanentError
from shared.events import AnswerQuestion
from shared.messaging import publish

LOST_SOURCE = PermanentError(
    "source-deleted", "A document that this question had read was deleted for good.", "Ask it again."
)

# Checkpoints and their parts hold passages with the ids of their documents as plain text; what a run wrote is found by
# its thread.
_READ = """
with needles as (select cast(d as text) as id from unnest(cast(:documents as uuid[])) d),
threads as (
    select c.thread_id from core.checkpoints c where c.tenant_id = :tenant
       and exists (select from needles n where position(convert_to(n.id, 'UTF8') in c.checkpoint) > 0)
    union
    select w.thread_id from core.checkpoint_writes w where w.tenant_id = :tenant
       and exists (select from needles n where position(convert_to(n.id, 'UTF8') in w.value) > 0)
    union
    select p.thread_id from core.checkpoint_parts p where p.tenant_id = :tenant
       and exists (select from needles n where position(convert_to(n.id, 'UTF8') in p.value) > 0)
), readers as (
    select r.run_id from core.runs r where r.tenant_id = :tenant
       and cast(r.run_id as text) in (select thread_id from threads)
    union
    select c.run_id from core.citations c where c.tenant_id = :tenant
       and c.document_id = any(cast(:documents as uuid[]))
)
select r.run_id, r.state, r.epoch, r.traceparent,
       exists (select from core.tool_calls t where t.tenant_id = :tenant and t.run_id = r.run_id) as acted
from core.runs r where r.tenant_id = :tenant and (:all_running and r.state = 'running' or r.conversation_id in (
    -- What came later in a conversation was written with the earlier answers in mind.
    select o.conversation_id from core.runs o where o.tenant_id = :tenant and o.run_id in (select run_id from readers)))
order by r.run_id for update of r
"""

_CITING = """tenant_id = :tenant and run_id in (select c.run_id from core.citations c
    where c.tenant_id = :tenant and c.document_id = any(cast(:documents as uuid[])))"""

# In this order: the answer is found by its citations.
_ERASED = {
    "answers": f"update core.runs r set answer = {NOTICE} where {_CITING} and answer is not null",
    "citations": "delete from core.citations where tenant_id = :tenant "
    "and document_id = any(cast(:documents as uuid[]))",
    "checkpoint_writes": "delete from core.checkpoint_writes where tenant_id = :tenant and thread_id = any("
    "cast(:threads as text[]))",
    "checkpoint_parts": "delete from core.checkpoint_parts where tenant_id = :tenant and thread_id = any("
    "cast(:threads as text[]))",
    "checkpoints": "delete from core.checkpoints where tenant_id = :tenant "
    "and thread_id = any(cast(:threads as text[]))",
    "model_calls": "delete from core.model_calls where tenant_id = :tenant and run_id = any(cast(:runs as uuid[]))",
    "tool_results": "update core.tool_calls set result = null, arguments = '{}' where tenant_id = :tenant "
    "and run_id = any(cast(:runs as uuid[]))",
    "approvals": "update core.approvals set arguments = '{}', edited = null, state = case state when 'pending' "
    "then 'cancelled' else state end where tenant_id = :tenant and run_id = any(cast(:runs as uuid[]))",
    "feedback": "update core.feedback set citations = '[]' where tenant_id = :tenant "
    "and run_id = any(cast(:runs as uuid[])) and citations <> '[]'",
    "run_events": "delete from core.run_events where tenant_id = :tenant and run_id = any(cast(:ended as uuid[]))",
    # Readers of an open run count its events, so they stay, but for what they say.
    "drafts": "update core.run_events set data = case kind when 'token' then jsonb_build_object('text', '', 'attempt', "
    "data -> 'attempt') else jsonb_strip_nulls(jsonb_build_object('name', data -> 'name')) end "
    "where tenant_id = :tenant and run_id = any(cast(:open as uuid[]))",
}

_OPEN = ("queued", "running", "waiting")


@dataclass(frozen=True, slots=True)
class Redaction:
    """What was erased: rows by kind, how many runs begin anew, and how many had to end instead."""

    erased: dict[str, int]
    restarted: int
    ended: int


def erase_from_conversations(
    operator: Session, tenant_id: UUID, documents: Sequence[UUID], *, all_running: bool
) -> Redaction:
    """Erase what a tenant's runs keep of documents; runs in progress that read them begin anew under a new epoch.

    `all_running`: the documents were searchable a moment ago, so a worker may have passages in memory that it has not
    written down yet. A run that has already called a tool is not repeated, it ends as failed.
    """
    ids = {"tenant": tenant_id, "documents": array_literal(documents)}
    runs = operator.execute(text(_READ), ids | {"all_running": all_running}).all()
    values = ids | {
        "runs": array_literal(run.run_id for run in runs),
        "threads": array_literal(run.run_id for run in runs),
        "ended": array_literal(run.run_id for run in runs if run.state not in _OPEN),
        "open": array_literal(run.run_id for run in runs if run.state in _OPEN),
    }
    erased = {}
    for kind, statement in _ERASED.items():
        erased[kind] = operator.execute(text(statement), values).rowcount  # type: ignore[attr-defined]
    restarted = ended = 0
    for run in runs:
        if run.state not in _OPEN:
            continue
        if run.acted:
            fail(operator, tenant_id, run.run_id, LOST_SOURCE)
            ended += 1
        else:
            _restart(operator, tenant_id, run.run_id, run.epoch, run.traceparent)
            restarted += 1
    return Redaction(erased, restarted, ended)


def _restart(operator: Session, tenant_id: UUID, run_id: UUID, epoch: int, traceparent: str) -> None:
    """Queue a run as if nothing had happened yet; whoever works on it is fenced off by the epoch."""
    operator.execute(
        text(
            "update core.runs set state = 'queued', epoch = epoch + 1, lease_until = null, waiting_for = null, "
            "waiting_until = null where tenant_id = :tenant and run_id = :run"
        ),
        {"tenant": tenant_id, "run": run_id},
    )
    publish(
        operator,
        AnswerQuestion(
            event_id=uuid5(run_id, f"restart:{epoch}"), tenant_id=tenant_id, run_id=run_id, traceparent=traceparent
        ),
    )
