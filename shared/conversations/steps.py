"""What the holder of a run writes most: events and steps, in one statement that is refused when the run was lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from shared.conversations.runs import LEASE, Lease, RunEvent
from shared.database import call_alone
from shared.errors import Superseded

_KEEP = (
    "select core.keep_step(%s::uuid, %s::uuid, %s::integer, %s::interval, %s::jsonb, %s::text, %s::text, %s::text, "
    "%s::text, %s::text, %s::bytea, %s::jsonb)"
)


@dataclass(frozen=True, slots=True)
class Step:
    """A checkpoint as it is stored; it takes the place of the thread's earlier ones."""

    thread: str
    namespace: str
    step: str
    parent: str | None
    format: str
    body: bytes
    about: str
    """JSON."""


def keep(lease: Lease, events: Sequence[RunEvent], step: Step | None = None) -> None:
    """Renew the lease, write events and a step, and commit. Raises Superseded when the run was taken or cancelled."""
    told = [{"seq": event.seq, "kind": event.kind, "data": event.data} for event in events]
    parts = (
        (step.thread, step.namespace, step.step, step.parent, step.format, step.body, step.about)
        if step
        else (None,) * 7
    )
    shown = json.dumps(told, ensure_ascii=False) if told else None
    run = (str(lease.tenant_id), str(lease.run_id), lease.epoch, f"{LEASE.total_seconds()} seconds")
    if not call_alone(_KEEP, (*run, shown, *parts)):
        raise Superseded("the run was taken over or cancelled")
