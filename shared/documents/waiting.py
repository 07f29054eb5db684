"""What a version in progress waits for: visible on the document, and woken when the cause is gone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal
from shared.documents.storing import Batch, missing_chunks, split
from shared.events import EmbedChunks
from shared.messaging import publish
from shared.retrieval.spaces import live_spaces

Cause = Literal["turn", "site", "provider", "budget", "price"]


def wait_for(session: Session, tenant_id: UUID, version_id: UUID, cause: Cause, until: datetime | None) -> None:
    """Note what a version waits for, and until when if that is known. Nothing happens to one that has ended."""
    session.execute(
        text(
            "update rag.versions set waiting = :cause, waiting_until = :until, updated_at = now() "
            "where tenant_id = :tenant and version_id = :version and state in ('received', 'ingested')"
        ),
        {"tenant": tenant_id, "version": version_id, "cause": cause, "until": until},
    )


def go_on(session: Session, tenant_id: UUID, version_id: UUID) -> None:
    """Note that a version waits no longer."""
    session.execute(
        text(
            "update rag.versions set waiting = null, waiting_until = null "
            "where tenant_id = :tenant and version_id = :version and waiting is not null"
        ),
        {"tenant": tenant_id, "version": version_id},
    )


def wake(session: Session, tenant_id: UUID, causes: Sequence[Cause], batch: Batch) -> int:
    """Command the missing batches of a tenant's versions that wait for one of the causes; returns how many versions.

    After a budget was raised or a price entered. The commands that were postponed come too, later, and find nothing
    to do; a second call is the same messages again.
    """
    versions = session.execute(
        text(
            "update rag.versions set waiting = null, waiting_until = null, updated_at = now() "
            "where tenant_id = :tenant and state = 'ingested' and waiting = any(cast(:causes as text[])) "
            "returning version_id"
        ),
        {"tenant": tenant_id, "causes": array_literal(causes)},
    ).all()
    for version in versions:
        command_missing(session, tenant_id, version.version_id, batch, "wake")
    return len(versions)


def command_missing(session: Session, tenant_id: UUID, version_id: UUID, batch: Batch, label: str) -> None:
    """Command the batches that a version lacks in its tenant's live spaces.

    `label` is why: the same label and the same gap are the same messages, so that a repeat is harmless.
    """
    version = session.execute(
        text("select document_id, traceparent from rag.versions where tenant_id = :tenant and version_id = :version"),
        {"tenant": tenant_id, "version": version_id},
    ).one()
    for space in live_spaces(session, tenant_id):
        for group in split(missing_chunks(session, tenant_id, version_id, space.space_id), batch):
            publish(
                session,
                EmbedChunks(
                    event_id=uuid5(version_id, f"{label}:{space.space_id}:{group[0]}"),
                    tenant_id=tenant_id,
                    traceparent=version.traceparent,
                    document_id=version.document_id,
                    version_id=version_id,
                    space_id=space.space_id,
                    chunk_ids=tuple(group),
                ),
            )
