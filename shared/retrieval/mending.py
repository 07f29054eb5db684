"""What goes wrong while a space is filled: a batch waits, loses its message, or the model refuses its texts.

None of it holds anything up for ever: a refused batch is halved until the chunk to blame stands alone and is recorded
with reason and next action, and neither its document nor the campaign waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal
from shared.errors import PermanentError
from shared.events import EmbedChunks
from shared.messaging import publish
from shared.retrieval.filling import LOST, MOST_ATTEMPTS, Filling, batch_key, close, enter, is_fill, lock_campaign

MOST_FAILURES = 20
SHARE_OF_FAILURES = 0.05
"""Refused chunks after which the model is to blame and not the chunks: twenty, or a twentieth of the corpus."""


def note_wait(session: Session, tenant_id: UUID, batch_id: UUID, cause: str, until: datetime) -> None:
    """Note what a campaign's batch waits for; `until` then its message comes again by itself."""
    session.execute(
        text(
            "update rag.campaign_batches set waiting = :cause, waiting_until = :until "
            "where tenant_id = :tenant and batch_id = :batch"
        ),
        {"tenant": tenant_id, "batch": batch_id, "cause": cause, "until": until},
    )


def refuse(session: Session, command: EmbedChunks, chunk_ids: Sequence[UUID], error: PermanentError) -> None:
    """The model of a filling space will not embed these chunks: try them in halves, or record the one there is.

    The chunks' rows may be gone by now; then nothing is recorded.
    """
    if len(chunk_ids) == 1:
        lock_campaign(session, command.tenant_id, command.space_id)
        record_failures(session, command.tenant_id, command.space_id, chunk_ids, error)
    else:
        halve(session, command, chunk_ids)


def lighten(session: Session, command: EmbedChunks, chunk_ids: Sequence[UUID]) -> None:
    """The model does not manage so many chunks in the time a request may take: halves, and no larger batches later."""
    halve(session, command, chunk_ids)
    session.execute(
        text(
            "update rag.campaigns set batch = least(batch, :half) "
            "where tenant_id = :tenant and target_space_id = :space and state in ('filling', 'ready')"
        ),
        {"tenant": command.tenant_id, "space": command.space_id, "half": len(chunk_ids) // 2},
    )


def halve(session: Session, command: EmbedChunks, chunk_ids: Sequence[UUID]) -> None:
    """Command these chunks of a batch, at least two, as two batches that take its place."""
    filling = lock_campaign(session, command.tenant_id, command.space_id)
    middle = len(chunk_ids) // 2
    fill = is_fill(session, command.tenant_id, batch_key(command.space_id, command.chunk_ids))
    for half in (chunk_ids[:middle], chunk_ids[middle:]):
        if filling is not None and fill:
            enter(session, filling, command.version_id, half)
        publish(
            session,
            EmbedChunks(
                tenant_id=command.tenant_id,
                traceparent=command.traceparent,
                document_id=command.document_id,
                version_id=command.version_id,
                space_id=command.space_id,
                chunk_ids=tuple(half),
            ),
        )


def record_failures(
    session: Session, tenant_id: UUID, space_id: UUID, chunk_ids: Sequence[UUID], error: PermanentError
) -> None:
    """Record chunks that will have no vector in a space, and why."""
    session.execute(
        text(
            "insert into rag.embedding_failures (tenant_id, space_id, chunk_id, reason, message, next_action) "
            "select c.tenant_id, t.space_id, c.chunk_id, :reason, :message, :next_action from rag.chunks c "
            "join rag.tenant_spaces t on t.tenant_id = c.tenant_id and t.space_id = :space "
            "where c.tenant_id = :tenant and c.chunk_id = any(cast(:chunks as uuid[])) "
            "and not exists (select from rag.embeddings e where e.tenant_id = :tenant and e.space_id = :space "
            "and e.chunk_id = c.chunk_id) on conflict do nothing"
        ),
        {
            "tenant": tenant_id,
            "space": space_id,
            "chunks": array_literal(chunk_ids),
            "reason": error.reason,
            "message": error.message,
            "next_action": error.next_action,
        },
    )


def forget_failures(session: Session, tenant_id: UUID, space_id: UUID) -> int:
    """Let refused chunks be tried again; returns how many."""
    gone = session.execute(
        text("delete from rag.embedding_failures where tenant_id = :tenant and space_id = :space"),
        {"tenant": tenant_id, "space": space_id},
    )
    count: int = gone.rowcount  # type: ignore[attr-defined]
    return count


def too_many_failures(session: Session, tenant_id: UUID, space_id: UUID) -> bool:
    """Whether so many chunks were refused that going on would only waste money."""
    row = session.execute(
        text(
            "select (select count(*) from rag.embedding_failures where tenant_id = :tenant and space_id = :space) "
            "as failed, (select count(*) from rag.embeddings where tenant_id = :tenant and space_id = :space) as done"
        ),
        {"tenant": tenant_id, "space": space_id},
    ).one()
    return bool(row.failed > max(MOST_FAILURES, SHARE_OF_FAILURES * row.done))


def failures(session: Session, tenant_id: UUID, space_id: UUID, limit: int = 20) -> list[Any]:
    """Refused chunks with document, place, reason and next action, latest first."""
    return list(
        session.execute(
            text(
                "select f.chunk_id, d.external_id, d.title, c.ordinal, f.reason, f.message, f.next_action, f.failed_at "
                "from rag.embedding_failures f "
                "join rag.chunks c on c.tenant_id = f.tenant_id and c.chunk_id = f.chunk_id "
                "join rag.documents d on d.tenant_id = c.tenant_id and d.document_id = c.document_id "
                "where f.tenant_id = :tenant and f.space_id = :space order by f.failed_at desc, f.chunk_id limit :limit"
            ),
            {"tenant": tenant_id, "space": space_id, "limit": limit},
        )
    )


def waits(session: Session, filling: Filling) -> list[Any]:
    """What batches under way wait for: cause, how many, until when at the latest."""
    return list(
        session.execute(
            text(
                "select waiting, count(*) as batches, max(waiting_until) as until from rag.campaign_batches "
                "where tenant_id = :tenant and campaign_id = :campaign and waiting is not null group by waiting"
            ),
            filling.values(),
        )
    )


def resend_lost(session: Session, filling: Filling) -> int:
    """Send batches again that have been under way too long, and give up those that never come back; returns how many.

    The campaign's row is locked. What a delivery still carries is harmless: it finds its vectors there.
    """
    rows = session.execute(
        text(
            "select b.batch_id, b.version_id, b.attempts, b.arrival, v.document_id, v.traceparent, "
            "array(select u.chunk_id from unnest(b.chunk_ids) u(chunk_id) where not exists ("
            "select from rag.embeddings e where e.tenant_id = :tenant and e.space_id = :target "
            "and e.chunk_id = u.chunk_id)) as missing, b.chunk_ids from rag.campaign_batches b "
            "join rag.versions v on v.tenant_id = b.tenant_id and v.version_id = b.version_id "
            "where b.tenant_id = :tenant and b.campaign_id = :campaign "
            "and b.sent_at < now() - cast(:lost as interval) "
            "and (b.waiting_until is null or b.waiting_until < now() - cast(:lost as interval))"
        ),
        filling.values() | {"lost": LOST},
    ).all()
    for row in rows:
        # New documents' batches have the sweep to look after them.
        if row.arrival or not row.missing:
            close(session, filling, row.batch_id)
        elif row.attempts >= MOST_ATTEMPTS:
            error = PermanentError(
                "attempts-exhausted", "Every attempt to embed this chunk ended without an answer.", "See dead letters."
            )
            record_failures(session, filling.tenant_id, filling.target_space_id, row.missing, error)
            close(session, filling, row.batch_id)
        else:
            _resend(session, filling, row)
    return len(rows)


def _resend(session: Session, filling: Filling, row: Any) -> None:
    session.execute(
        text(
            "update rag.campaign_batches set attempts = attempts + 1, sent_at = now(), waiting = null, "
            "waiting_until = null where tenant_id = :tenant and campaign_id = :campaign and batch_id = :batch"
        ),
        filling.values() | {"batch": row.batch_id},
    )
    publish(
        session,
        EmbedChunks(
            tenant_id=filling.tenant_id,
            traceparent=row.traceparent,
            document_id=row.document_id,
            version_id=row.version_id,
            space_id=filling.target_space_id,
            # All of them, not only what is missing: the batch keeps its name, and with it its call in the ledger.
            chunk_ids=tuple(row.chunk_ids),
        ),
    )
