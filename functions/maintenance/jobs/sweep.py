"""Every minute: what is stuck in a state is set going again. Only messages are sent, and twice is harmless."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.containment import contained
from shared.database import operator_session, tenant_session
from shared.documents.completion import finish_version
from shared.documents.storing import Batch, missing_chunks, split
from shared.documents.turns import sweep_turns
from shared.events import AnswerQuestion, EmbedChunks
from shared.jobs.leases import MAX_FAILURES, SCHEDULE, Lease, Progress, abandoned, fail, fenced, next_turn
from shared.messaging import flush_stale, publish, send_command
from shared.money.ledger import release_expired
from shared.retrieval.spaces import live_spaces
from shared.services import Services
from shared.tools.approvals import expire_due

STUCK_RUN = "2 minutes"
"""A queued run older than this lost its message: a delivery takes seconds, a first retry 30."""

STUCK_VERSION = "15 minutes"
"""A version without progress for this long lost a batch: five deliveries take at most 13 minutes."""

STUCK_JOB = timedelta(minutes=5)
"""A slot of a job without a lease for this long lost its message; a redelivery comes after 300 s at the latest."""

LIMIT = 200
SLICE = 20
FLUSH, FLUSH_SLICE = 500, 100
"""Messages of a run and of a transaction: making a task for each later one takes the bus 20 to 100 ms, and a
transaction that waits for 60 s without a statement is ended."""


def run(lease: Lease, services: Services) -> Iterator[Progress]:
    """Flush the outbox; dispatch runs and jobs without a worker, embedding batches that are missing.

    Also gives back what dead workers had reserved, and turns that nobody passed on; approvals that nobody gave in
    their time expire, so that their runs go on without.

    Raises TransientError when the bus does not take the outbox.
    """
    counts = {"flushed": _flush(), "runs": 0, "jobs": 0, "versions": 0}
    with operator_session() as session:
        counts["reservations"] = release_expired(session, services.settings.noesis_stage, services.clock.now())
    counts["turns"] = sweep_turns(services.settings.documents_in_progress)
    counts["approvals"] = expire_due()
    yield Progress(1, 4, counts)
    with operator_session() as session:
        runs = _runs_without_worker(session)
    for tenant_id, run_id, epoch, traceparent in runs:
        with contained(tenant_id, "run not dispatched", counts):
            _dispatch(tenant_id, run_id, epoch, traceparent)
            counts["runs"] += 1
    yield Progress(2, 4, counts)
    counts["jobs"] = _restart_jobs(lease)
    yield Progress(3, 4, counts)
    batch = Batch(services.settings.batch_size, services.settings.batch_tokens)
    while counts["versions"] < LIMIT:
        with fenced(lease) as session:
            versions = _stuck_versions(session, SLICE)
        for tenant_id, version_id, document_id, traceparent in versions:
            with contained(tenant_id, "version not set going", counts):
                _republish(tenant_id, version_id, document_id, traceparent, batch)
        counts["versions"] += len(versions)
        if len(versions) < SLICE:
            break
        yield Progress(3, 4, counts)
    yield Progress(4, 4, counts)


def _flush() -> int:
    """Send what is left in the outbox: a transaction waits for the bus for the messages of one slice, not for all."""
    flushed = 0
    while flushed < FLUSH and (sent := flush_stale(FLUSH_SLICE)):
        flushed += sent
    return flushed


def _runs_without_worker(session: Session) -> list[tuple[UUID, UUID, int, str]]:
    rows = session.execute(
        text(
            "select tenant_id, run_id, epoch, traceparent from core.runs "
            "where (state = 'running' and lease_until < now()) "
            "or (state = 'queued' and created_at < now() - cast(:age as interval)) "
            # What waits for a time has a message of its own that comes then; this one is for those that were lost.
            "or (state = 'waiting' and waiting_for <> 'approval' and waiting_until < now() - cast(:age as interval)) "
            "order by created_at limit :limit"
        ),
        {"age": STUCK_RUN, "limit": LIMIT},
    )
    return [(row.tenant_id, row.run_id, row.epoch, row.traceparent) for row in rows]


def _dispatch(tenant_id: UUID, run_id: UUID, epoch: int, traceparent: str) -> None:
    command = AnswerQuestion(
        event_id=uuid5(run_id, f"sweep:{epoch}"), tenant_id=tenant_id, run_id=run_id, traceparent=traceparent
    )
    with tenant_session(tenant_id) as session:
        publish(session, command)


def _restart_jobs(lease: Lease) -> int:
    """Send the command again for slots that lost theirs; give up those that failed often or nobody may restart."""
    with fenced(lease) as session:
        found = abandoned(session, STUCK_JOB)
        restartable = []
        for job, slot, epoch, failures, actor in found:
            if (job, slot) == (lease.job, lease.slot):
                continue
            # A sweep is followed by the next one, and what a person started is theirs to start again.
            if failures >= MAX_FAILURES or job == lease.job or actor != SCHEDULE:
                fail(session, job, slot, "attempts-exhausted" if failures >= MAX_FAILURES else "abandoned")
            else:
                restartable.append((job, slot, epoch))
    for job, slot, epoch in restartable:
        send_command(next_turn(job, slot, epoch))
    return len(found)


def _stuck_versions(session: Session, limit: int) -> list[tuple[UUID, UUID, UUID, str]]:
    """Versions that wait for vectors, longest first; each is marked so that it is not looked at every minute."""
    rows = session.execute(
        text(
            "update rag.versions v set updated_at = now() from (select tenant_id, version_id from rag.versions "
            "where state = 'ingested' and updated_at < now() - cast(:age as interval) "
            # What waits for a budget or a provider has a message of its own that comes then.
            "and (waiting_until is null or waiting_until < now() - cast(:age as interval)) "
            "order by updated_at limit :limit for update skip locked) stuck "
            "where v.tenant_id = stuck.tenant_id and v.version_id = stuck.version_id "
            "returning v.tenant_id, v.version_id, v.document_id, v.traceparent"
        ),
        {"age": STUCK_VERSION, "limit": limit},
    )
    return [tuple(row) for row in rows]


def _republish(tenant_id: UUID, version_id: UUID, document_id: UUID, traceparent: str, batch: Batch) -> None:
    with tenant_session(tenant_id) as session:
        if finish_version(session, tenant_id, version_id):
            return
        for space in live_spaces(session, tenant_id):
            missing = missing_chunks(session, tenant_id, version_id, space.space_id)
            for group in split(missing, batch):
                publish(
                    session,
                    EmbedChunks(
                        tenant_id=tenant_id,
                        traceparent=traceparent,
                        document_id=document_id,
                        version_id=version_id,
                        space_id=space.space_id,
                        chunk_ids=tuple(group),
                    ),
                )
