"""What the holder of a run writes most: events and steps, in one statement that is refused when the run was lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from shared.conversations.runs import LEASE, Lease, RunEvent
from shared.database import array_literal, call_alone
from shared.errors import Superseded

FUNCTION = "core.store_step"

STORE = (
    f"select {FUNCTION}(%s::uuid, %s::uuid, %s::integer, %s::interval, %s::jsonb, %s::text, %s::text, %s::text, "
    "%s::text, %s::text, %s::text, %s::bytea, %s::jsonb, %s::text[], %s::integer[], %s::text[], %s::integer[], "
    "%s::integer[], %s::bytea)"
)


@dataclass(frozen=True, slots=True)
class Part:
    """A large value of the state, or the items of a list from `first` on, stored beside its checkpoint."""

    channel: str
    first: int
    format: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Step:
    """A checkpoint as it is stored; it takes the place of the thread's earlier ones.

    `taken` names the only one there can be, when that is known. `parts` are those that are not stored yet.
    """

    thread: str
    namespace: str
    step: str
    parent: str | None
    format: str
    body: bytes
    about: str
    """JSON."""
    taken: str | None = None
    parts: tuple[Part, ...] = ()


def keep(lease: Lease, events: Sequence[RunEvent], step: Step | None = None) -> None:
    """Renew the lease, write events and a step, and commit. Raises Superseded when the run was taken or cancelled."""
    told = [{"seq": event.seq, "kind": event.kind, "data": event.data} for event in events]
    shown = json.dumps(told, ensure_ascii=False) if told else None
    run = (str(lease.tenant_id), str(lease.run_id), lease.epoch, f"{LEASE.total_seconds()} seconds")
    checkpoint: tuple[object, ...] = (None,) * 8
    if step:
        checkpoint = (step.thread, step.namespace, step.step, step.taken, step.parent)
        checkpoint += (step.format, step.body, step.about)
    if not call_alone(STORE, (*run, shown, *checkpoint, *_columns(step.parts if step else ()))):
        raise Superseded("the run was taken over or cancelled")


def _columns(parts: Sequence[Part]) -> tuple[object, ...]:
    """Parts as arrays of their columns, and their bytes in one piece with the places of each (from 1)."""
    if not parts:
        return (None,) * 6
    sizes = [len(part.body) for part in parts]
    starts = [1 + sum(sizes[:number]) for number in range(len(sizes))]
    columns: tuple[list[str] | list[int], ...] = (
        [part.channel for part in parts],
        [part.first for part in parts],
        [part.format for part in parts],
        starts,
        sizes,
    )
    return (*(array_literal(column) for column in columns), b"".join(part.body for part in parts))
