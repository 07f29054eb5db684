"""Asking and answering: a question becomes a run, a run has a lease, events, an answer with citations.

Whoever works on a run holds its lease under an epoch. Every write of the worker goes through `hold`, which locks the
run's row and fails when the epoch has moved on: a zombie that wakes up late changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared import tracing
from shared.conversations.withholding import ANSWER, CITATIONS, EVENT_DATA
from shared.database import array_literal, often
from shared.errors import PermanentError, Superseded
from shared.events import AnswerQuestion, new_traceparent
from shared.messaging import publish
from shared.tenants.directory import Principal

LEASE = timedelta(seconds=150)
"""Longer than the longest node (120 s, REQUIREMENTS section 2), so that only a dead worker loses it."""

CLOCK_SLACK = timedelta(seconds=5)
"""How much earlier than its time a postponed command may come: the queue's clock is not the database's."""

QUESTION_LIMIT = 4_000
"""Characters; a question, not a document."""

# NUL and half characters cannot be stored; the others move the cursor of whoever reads the question at a terminal.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a run until somebody takes a later epoch."""

    tenant_id: UUID
    run_id: UUID
    conversation_id: UUID
    member_id: UUID
    question: str
    traceparent: str
    epoch: int
    crashes: int
    """How often a worker died with the run in its hands: its lease ran out instead of being given back."""
    next_seq: int


@dataclass(frozen=True, slots=True)
class Citation:
    """The proof of a claim: the quoted passage and where it stands.

    `quote_start` and `quote_end` are character offsets into the chunk's text.
    """

    number: int
    document_id: UUID
    version_id: UUID
    chunk_id: UUID
    title: str
    heading_path: tuple[str, ...]
    page: int | None
    quote: str
    quote_start: int
    quote_end: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run ends with. `no_evidence`: nothing in the corpus answers the question, and `text` says so."""

    text: str
    no_evidence: bool
    citations: tuple[Citation, ...]
    model: str
    input_tokens: int
    output_tokens: int
    cost_eur: Decimal = Decimal(0)
    partial: bool = False
    """Answered from what there was when the run's steps were used up."""
    language: str = ""
    prompts: str = ""
    """Names and versions of the prompts that were used."""
    space_id: UUID | None = None
    findings: tuple[str, ...] = ()
    """Why something of the draft was labelled, taken out or dropped; see `Run`."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run as people see it. `waiting_for`: approval, budget, price or provider, while the state is `waiting`.

    `findings` say why, in the order of the text: what verification labelled (invented, altered-number, mixed-sources,
    wrong-number, unsupported, unmarked), then what was taken out (prompt-withheld, address-removed). With
    `no_evidence`: nothing of the draft was proven, so it was dropped.
    """

    run_id: UUID
    conversation_id: UUID
    question: str
    state: str
    answer: str | None
    no_evidence: bool | None
    model: str | None
    reason: str | None
    message: str | None
    created_at: Any
    finished_at: Any
    citations: tuple[Citation, ...]
    partial: bool = False
    cost_eur: Decimal = Decimal(0)
    waiting_for: str | None = None
    waiting_until: Any = None
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunEvent:
    """A step or a piece of the answer: `kind` is step, token, draft-restarted, waiting, answer, failed or cancelled."""

    seq: int
    kind: str
    data: dict[str, Any]


def ask(
    session: Session,
    principal: Principal,
    question: str,
    *,
    conversation_id: UUID | None = None,
    idempotency_key: str = "",
) -> UUID:
    """Store a question and command its answer; returns the run id. The same idempotency key is the same run.

    Raises PermanentError `empty-question`, `question-too-long`, `unknown-conversation`, and `key-used-already` for the
    same key with another question or conversation.
    """
    question = _checked(question)
    tenant_id = principal.tenant_id
    run_id = uuid5(tenant_id, f"run:{principal.member_id}:{idempotency_key}") if idempotency_key else uuid4()
    ids = {"tenant": tenant_id, "member": principal.member_id, "run": run_id}
    if idempotency_key and _known(session, ids, question, conversation_id):
        return run_id
    wanted = conversation_id
    if conversation_id is None:
        conversation_id = uuid5(run_id, "conversation")
        session.execute(
            often(
                "insert into core.conversations (tenant_id, conversation_id, member_id, title) "
                "values (:tenant, :conversation, :member, :title) on conflict do nothing"
            ),
            ids | {"conversation": conversation_id, "title": question[:120]},
        )
    elif not session.execute(
        text(
            "select 1 from core.conversations where tenant_id = :tenant and conversation_id = :conversation "
            "and member_id = :member"
        ),
        ids | {"conversation": conversation_id},
    ).scalar():
        raise PermanentError("unknown-conversation", "There is no such conversation.", "Start a new one.")
    traceparent = tracing.current_traceparent(new_traceparent())
    made = session.execute(
        often(
            "insert into core.runs (tenant_id, run_id, conversation_id, member_id, question, state, traceparent) "
            "values (:tenant, :run, :conversation, :member, :question, 'queued', :traceparent) on conflict do nothing"
        ),
        ids | {"conversation": conversation_id, "question": question, "traceparent": traceparent},
    ).rowcount  # type: ignore[attr-defined]
    if not made:  # the same key at the same moment: the insert has waited for the other one
        _known(session, ids, question, wanted)
        return run_id
    publish(
        session,
        AnswerQuestion(event_id=uuid5(run_id, "answer"), tenant_id=tenant_id, run_id=run_id, traceparent=traceparent),
    )
    return run_id


def _known(session: Session, ids: dict[str, UUID], question: str, conversation_id: UUID | None) -> bool:
    """Whether the run is there already. Raises PermanentError `key-used-already` when it is another question's."""
    row = session.execute(
        text("select question, conversation_id from core.runs where tenant_id = :tenant and run_id = :run"), ids
    ).first()
    if row is not None and (row.question, row.conversation_id) != (question, conversation_id or row.conversation_id):
        raise PermanentError(
            "key-used-already",
            "Another question was asked with this idempotency key.",
            "Give every question a key of its own.",
        )
    return row is not None


def _checked(question: str) -> str:
    question = _CONTROL.sub("", question).strip()
    if not any(c.isalnum() for c in question):
        raise PermanentError("empty-question", "The question is empty.", "Write what you want to know.")
    if len(question) > QUESTION_LIMIT:
        raise PermanentError(
            "question-too-long",
            f"The question is longer than {QUESTION_LIMIT} characters.",
            "Ask shorter, and submit long texts as a document.",
        )
    return question


def take_lease(session: Session, tenant_id: UUID, run_id: UUID) -> Lease:
    """Take the run for this process. Raises Superseded when it ended, is cancelled, or somebody holds it."""
    row = session.execute(
        often(
            "update core.runs set state = 'running', epoch = epoch + 1, lease_until = now() + :lease, "
            "crashes = crashes + case when lease_until is null then 0 else 1 end, "
            "waiting_for = null, waiting_until = null "
            "where tenant_id = :tenant and run_id = :run and (state in ('queued', 'running') "
            # What waits for a person has no time at which it goes on.
            "or (state = 'waiting' and waiting_for <> 'approval' and waiting_until < now() + :slack)) "
            "and (lease_until is null or lease_until < now()) "
            "returning conversation_id, member_id, question, traceparent, epoch, crashes"
        ),
        {"tenant": tenant_id, "run": run_id, "lease": LEASE, "slack": CLOCK_SLACK},
    ).first()
    if row is None:
        raise Superseded("the run has ended, waits, or somebody else works on it")
    last = session.execute(
        often("select coalesce(max(seq), 0) from core.run_events where tenant_id = :tenant and run_id = :run"),
        {"tenant": tenant_id, "run": run_id},
    ).scalar_one()
    return Lease(
        tenant_id,
        run_id,
        row.conversation_id,
        row.member_id,
        row.question,
        row.traceparent,
        row.epoch,
        row.crashes,
        last + 1,
    )


_HOLD = often(
    "update core.runs set lease_until = now() + :lease where tenant_id = :tenant and run_id = :run "
    "and epoch = :epoch and state = 'running'"
)
_HOLD_AND_TELL = often(
    "with held as (update core.runs set lease_until = now() + :lease where tenant_id = :tenant and run_id = :run "
    "and epoch = :epoch and state = 'running' returning 1) "
    "insert into core.run_events (tenant_id, run_id, seq, kind, data) select :tenant, :run, e.seq, e.kind, e.data "
    "from held, jsonb_to_recordset(cast(:events as jsonb)) as e(seq bigint, kind text, data jsonb)"
)


def hold(session: Session, lease: Lease, events: Sequence[RunEvent] = ()) -> None:
    """Renew the lease, lock the run for this transaction, and write events. Raises Superseded when the epoch moved on.

    One statement: it is part of every transaction of a run.
    """
    values = {"tenant": lease.tenant_id, "run": lease.run_id, "epoch": lease.epoch, "lease": LEASE}
    if events:
        told = [{"seq": event.seq, "kind": event.kind, "data": event.data} for event in events]
        values["events"] = json.dumps(told, ensure_ascii=False)
    written = session.execute(_HOLD_AND_TELL if events else _HOLD, values).rowcount  # type: ignore[attr-defined]
    if written == 0:
        raise Superseded("the run was taken over or cancelled")


def release(session: Session, lease: Lease) -> None:
    """Give the run back unfinished: a redelivery may take it at once."""
    session.execute(
        text(
            "update core.runs set lease_until = null, state = 'queued' where tenant_id = :tenant and run_id = :run "
            "and epoch = :epoch and state = 'running'"
        ),
        {"tenant": lease.tenant_id, "run": lease.run_id, "epoch": lease.epoch},
    )


def append_events(session: Session, lease: Lease, events: Sequence[RunEvent]) -> None:
    """Store events of a held run; keyed (run, seq), written by the lease holder only."""
    for event in events:
        session.execute(
            text(
                "insert into core.run_events (tenant_id, run_id, seq, kind, data) "
                "values (:tenant, :run, :seq, :kind, cast(:data as jsonb))"
            ),
            {
                "tenant": lease.tenant_id,
                "run": lease.run_id,
                "seq": event.seq,
                "kind": event.kind,
                "data": json.dumps(event.data, ensure_ascii=False),
            },
        )


_SHOWN = (
    f"run_id, conversation_id, question, state, {ANSWER}, no_evidence, model, reason, message, created_at, "
    "finished_at, partial, cost_eur, waiting_for, waiting_until"
)

_FINDINGS = """
case when r.state = 'answered' then
    (select e.data -> 'findings' from core.run_events e where e.tenant_id = r.tenant_id and e.run_id = r.run_id
        and e.kind = 'answer' order by e.seq desc limit 1)
end as findings
"""


def read_run(session: Session, principal: Principal, run_id: UUID) -> Run | None:
    """A run of this member with its citations, or None (also for somebody else's: no existence oracle)."""
    ids = {"tenant": principal.tenant_id, "member": principal.member_id, "run": run_id}
    row = session.execute(
        text(
            f"select {_SHOWN}, {_FINDINGS} from core.runs r "  # constants
            "where tenant_id = :tenant and run_id = :run and member_id = :member"
        ),
        ids,
    ).first()
    if row is None:
        return None
    shown = {**row._mapping, "findings": tuple(row.findings or ())}
    return Run(**shown, citations=_citations(session, principal.tenant_id, [run_id]).get(run_id, ()))


def _citations(session: Session, tenant_id: UUID, runs: Sequence[UUID]) -> dict[UUID, tuple[Citation, ...]]:
    rows = session.execute(text(CITATIONS), {"tenant": tenant_id, "runs": array_literal(runs)})
    found: dict[UUID, tuple[Citation, ...]] = {}
    for row in rows:
        shown = {**row._mapping, "heading_path": tuple(row.heading_path)}
        run_id = shown.pop("run_id")
        found[run_id] = (*found.get(run_id, ()), Citation(**shown))
    return found


def conversation_runs(session: Session, principal: Principal, conversation_id: UUID, limit: int = 50) -> list[Run]:
    """The last runs of a conversation of this member, oldest first, with citations; none for somebody else's."""
    rows = session.execute(
        text(
            f"select {_SHOWN}, {_FINDINGS} from core.runs r "  # constants
            "where tenant_id = :tenant and conversation_id = :conversation and member_id = :member "
            "order by created_at desc limit :limit"
        ),
        {
            "tenant": principal.tenant_id,
            "conversation": conversation_id,
            "member": principal.member_id,
            "limit": limit,
        },
    ).all()
    cited = _citations(session, principal.tenant_id, [row.run_id for row in rows])
    shown = [{**row._mapping, "findings": tuple(row.findings or ())} for row in reversed(rows)]
    return [Run(**one, citations=cited.get(one["run_id"], ())) for one in shown]


def events_after(session: Session, principal: Principal, run_id: UUID, seq: int, limit: int = 500) -> list[RunEvent]:
    """Events of a member's own run after `seq`, in order."""
    rows = session.execute(
        text(
            f"select e.seq, e.kind, {EVENT_DATA} as data from core.run_events e join core.runs r "
            "on r.tenant_id = e.tenant_id and r.run_id = e.run_id "
            "where e.tenant_id = :tenant and e.run_id = :run and e.seq > :seq and r.member_id = :member "
            "order by e.seq limit :limit"
        ),
        {
            "tenant": principal.tenant_id,
            "run": run_id,
            "seq": seq,
            "member": principal.member_id,
            "limit": limit,
        },
    )
    return [RunEvent(*row) for row in rows]


def recent_runs(session: Session, principal: Principal, limit: int = 20) -> list[Run]:
    """The member's last runs, newest first, without citations."""
    rows = session.execute(
        text(
            f"select {_SHOWN} from core.runs r where tenant_id = :tenant and member_id = :member "
            "order by created_at desc limit :limit"
        ),
        {"tenant": principal.tenant_id, "member": principal.member_id, "limit": limit},
    )
    return [Run(**row._mapping, citations=()) for row in rows]
