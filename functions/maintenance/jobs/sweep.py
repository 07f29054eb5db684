"""Every minute: what is stuck in a state is set going again. Only outbox rows are written, and twice is harmless."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import operator_session, tenant_session
from shared.documents.completion import finish_version
from shared.documents.intake import Batch, missing_chunks, split
from shared.events import AnswerQuestion, EmbedChunks
from shared.messaging import flush_stale, publish
from shared.retrieval.spaces import live_spaces
from shared.settings import get_settings

STUCK_RUN = "2 minutes"
"""A queued run older than this lost its message: a delivery takes seconds, a first retry 30."""

STUCK_VERSION = "15 minutes"
"""A version without progress for this long lost a batch: five deliveries take at most 13 minutes."""

LIMIT = 200


def run() -> dict[str, Any]:
    """Flush the outbox, re-dispatch runs without a worker, republish embedding batches that are missing."""
    flushed = flush_stale()
    with operator_session() as session:
        runs = _runs_without_worker(session)
        versions = _stuck_versions(session)
    for tenant_id, run_id, epoch, traceparent in runs:
        _dispatch(tenant_id, run_id, epoch, traceparent)
    for tenant_id, version_id, document_id, traceparent in versions:
        _republish(tenant_id, version_id, document_id, traceparent)
    return {"flushed": flushed, "runs": len(runs), "versions": len(versions)}


def _runs_without_worker(session: Session) -> list[tuple[UUID, UUID, int, str]]:
    rows = session.execute(
        text(
            "select tenant_id, run_id, epoch, traceparent from core.runs "
            "where (state = 'running' and lease_until < now()) "
            "or (state = 'queued' and created_at < now() - cast(:age as interval)) order by created_at limit :limit"
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


def _stuck_versions(session: Session) -> list[tuple[UUID, UUID, UUID, str]]:
    """Versions that wait for vectors, longest first; each is marked so that it is not looked at every minute."""
    rows = session.execute(
        text(
            "update rag.versions v set updated_at = now() from (select tenant_id, version_id from rag.versions "
            "where state = 'ingested' and updated_at < now() - cast(:age as interval) "
            "order by updated_at limit :limit for update skip locked) stuck "
            "where v.tenant_id = stuck.tenant_id and v.version_id = stuck.version_id "
            "returning v.tenant_id, v.version_id, v.document_id, v.traceparent"
        ),
        {"age": STUCK_VERSION, "limit": LIMIT},
    )
    return [tuple(row) for row in rows]


def _republish(tenant_id: UUID, version_id: UUID, document_id: UUID, traceparent: str) -> None:
    settings = get_settings()
    with tenant_session(tenant_id) as session:
        if finish_version(session, tenant_id, version_id):
            return
        for space in live_spaces(session, tenant_id):
            missing = missing_chunks(session, tenant_id, version_id, space.space_id)
            for group in split(missing, Batch(settings.batch_size, settings.batch_tokens)):
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
