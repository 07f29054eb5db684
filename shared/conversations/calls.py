"""Finished model calls of runs: stored with what they cost, found again under their key, never made twice."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.conversations.runs import Lease
from shared.database import often


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What a finished call gave: `reply` is JSON of whoever made it; `prompt` names prompt and version."""

    model: str
    prompt: str
    reply: dict[str, Any]
    input_tokens: int
    output_tokens: int
    cost_eur: Decimal


@dataclass(frozen=True, slots=True)
class Total:
    """All finished calls of a run together; `prompts` in the order of their first use."""

    input_tokens: int
    output_tokens: int
    cost_eur: Decimal
    prompts: tuple[str, ...]


def find_call(session: Session, lease: Lease, key: str) -> ModelCall | None:
    """The finished call of a run under its key, or None."""
    row = session.execute(
        text(
            "select model, prompt, reply, input_tokens, output_tokens, cost_eur from core.model_calls "
            "where tenant_id = :tenant and run_id = :run and call_key = :key"
        ),
        {"tenant": lease.tenant_id, "run": lease.run_id, "key": key},
    ).first()
    return ModelCall(**row._mapping) if row else None


def store_call(session: Session, lease: Lease, key: str, call: ModelCall) -> None:
    """Store a finished call; from here on it is never made again. The caller holds the run in this transaction."""
    session.execute(
        often(
            "insert into core.model_calls (tenant_id, run_id, call_key, model, prompt, reply, input_tokens, "
            "output_tokens, cost_eur) values (:tenant, :run, :key, :model, :prompt, cast(:reply as jsonb), :input, "
            ":output, :cost)"
        ),
        {
            "tenant": lease.tenant_id,
            "run": lease.run_id,
            "key": key,
            "model": call.model,
            "prompt": call.prompt,
            "reply": json.dumps(call.reply, ensure_ascii=False),
            "input": call.input_tokens,
            "output": call.output_tokens,
            "cost": call.cost_eur,
        },
    )


def total_of(session: Session, lease: Lease) -> Total:
    """What the finished calls of a run come to."""
    row = session.execute(
        often(
            "select coalesce(sum(input_tokens), 0) as input, coalesce(sum(output_tokens), 0) as output, "
            "coalesce(sum(cost_eur), 0) as cost, coalesce(array_agg(prompt order by created_at, call_key) "
            "filter (where prompt <> ''), '{}') as prompts "
            "from core.model_calls where tenant_id = :tenant and run_id = :run"
        ),
        {"tenant": lease.tenant_id, "run": lease.run_id},
    ).one()
    return Total(int(row.input), int(row.output), row.cost, tuple(dict.fromkeys(row.prompts)))
