"""How a run ends: answered with its citations, or failed with a reason; announced once, in the same transaction."""

from __future__ import annotations

import json
from dataclasses import asdict
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.conversations.runs import Answer, Lease
from shared.database import often
from shared.errors import PermanentError, Superseded
from shared.events import AnswerReady
from shared.messaging import publish

_FINISH = often("""
    with done as (
        update core.runs set state = 'answered', answer = :answer, no_evidence = :no_evidence, model = :model,
            input_tokens = :input, output_tokens = :output, cost_eur = :cost, partial = :partial,
            language = :language, prompts = :prompts, space_id = :space, lease_until = null, finished_at = now()
        where tenant_id = :tenant and run_id = :run and epoch = :epoch and state = 'running' returning 1
    ), cited as (
        insert into core.citations (tenant_id, run_id, number, document_id, version_id, chunk_id, title,
            heading_path, page, quote, quote_start, quote_end)
        select :tenant, :run, c.* from done, jsonb_to_recordset(cast(:citations as jsonb)) as c(number integer,
            document_id uuid, version_id uuid, chunk_id uuid, title text, heading_path jsonb, page integer,
            quote text, quote_start integer, quote_end integer)
    )
    insert into core.run_events (tenant_id, run_id, seq, kind, data)
    select :tenant, :run, :seq, 'answer', cast(:told as jsonb) from done
""")


def finish(session: Session, lease: Lease, answer: Answer, seq: int) -> None:
    """Store answer, citations and the last event, and announce it; all of it or nothing, and once.

    Raises Superseded when the run was taken over or cancelled.
    """
    told = {"no_evidence": answer.no_evidence, "findings": list(answer.findings)}
    citations = [asdict(citation) for citation in answer.citations]
    stored = session.execute(
        _FINISH,
        {
            "tenant": lease.tenant_id,
            "run": lease.run_id,
            "epoch": lease.epoch,
            "answer": answer.text,
            "no_evidence": answer.no_evidence,
            "model": answer.model,
            "input": answer.input_tokens,
            "output": answer.output_tokens,
            "cost": answer.cost_eur,
            "partial": answer.partial,
            "language": answer.language,
            "prompts": answer.prompts,
            "space": answer.space_id,
            "citations": json.dumps(citations, ensure_ascii=False, default=str),  # ids
            "seq": seq,
            "told": json.dumps(told, ensure_ascii=False),
        },
    ).rowcount  # type: ignore[attr-defined]
    if stored == 0:
        raise Superseded("the run was taken over or cancelled")
    announce(session, lease.tenant_id, lease.run_id, lease.conversation_id, "answered", lease.traceparent)


def announce(
    session: Session, tenant_id: UUID, run_id: UUID, conversation_id: UUID, state: str, traceparent: str
) -> None:
    """Tell everybody how a run ended."""
    publish(
        session,
        AnswerReady(
            # A run that failed may be resumed and answered: those are two events.
            event_id=uuid5(run_id, f"ready:{state}"),
            tenant_id=tenant_id,
            traceparent=traceparent,
            run_id=run_id,
            conversation_id=conversation_id,
            state=state,
        ),
    )


def fail(session: Session, tenant_id: UUID, run_id: UUID, error: PermanentError) -> None:
    """End a run that cannot be answered, with the reason; does nothing when it has ended already."""
    ids = {"tenant": tenant_id, "run": run_id}
    row = session.execute(
        text(
            "update core.runs set state = 'failed', reason = :reason, message = :message, lease_until = null, "
            "waiting_for = null, waiting_until = null, finished_at = now() where tenant_id = :tenant and run_id = :run "
            "and state in ('queued', 'running', 'waiting') returning conversation_id, traceparent"
        ),
        ids | {"reason": error.reason, "message": f"{error.message} {error.next_action}".strip()},
    ).first()
    if row is None:
        return
    session.execute(
        text(
            "insert into core.run_events (tenant_id, run_id, seq, kind, data) "
            "select :tenant, :run, coalesce(max(seq), 0) + 1, 'failed', "
            "jsonb_build_object('reason', cast(:reason as text)) "
            "from core.run_events where tenant_id = :tenant and run_id = :run"
        ),
        ids | {"reason": error.reason},
    )
    announce(session, tenant_id, run_id, row.conversation_id, "failed", row.traceparent)
