"""Documents for the tests of their life after ingestion: stored, embedded, looked at, deleted and brought back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from functions.embed.embedding import embed_chunks
from shared.database import operator_session, platform_session, tenant_session
from shared.documents.acting import Actor, as_curator
from shared.documents.attachments import DEPTH, PARENT
from shared.documents.deletion import delete_document
from shared.documents.history import roll_back
from shared.documents.intake import Reception, document_id_of, receive, skip_unchanged
from shared.documents.restoring import restore_document
from shared.documents.storing import Batch, Content, NewChunk, store
from shared.documents.vectors import text_hash
from shared.events import DocumentSubmitted, EmbedChunks, Message, decode
from shared.fakes import FakeBus
from shared.retrieval.search import search
from shared.retrieval.spaces import active_space
from shared.services import Services
from shared.tenants.directory import Principal

BATCH = Batch(8, 1000)


def submission(
    tenant: Principal, version: int, external_id: str = "doc", parent: str = "", occurred_at: datetime | None = None
) -> DocumentSubmitted:
    """An event for a version, sent now."""
    return DocumentSubmitted(
        tenant_id=tenant.tenant_id,
        external_id=external_id,
        source_version=version,
        content="",
        occurred_at=occurred_at or datetime.now(UTC),
        metadata={PARENT: parent, DEPTH: "1"} if parent else {},
    )


def take(tenant: Principal, event: DocumentSubmitted, *texts: str, blob: str = "") -> Reception:
    """Receive and store a version of these chunks. Raises what ingestion raises."""
    with tenant_session(tenant.tenant_id) as session:
        reception = receive(session, event, "upstream")
    content = Content(
        f"hash-{texts}",
        blob,
        len("".join(texts)),
        "text/plain",
        "en",
        "",
        [NewChunk(t, text_hash((), t), 0, len(t), len(t.split()), "en", (), {}) for t in texts],
    )
    with tenant_session(tenant.tenant_id) as session:
        if not skip_unchanged(session, reception, content.content_hash, event.traceparent):
            store(session, reception, content, event.traceparent, BATCH)
    return reception


def embed_all(services: Services, bus: FakeBus) -> None:
    """Handle every embedding command that was published until now."""
    messages, bus.published[:] = list(bus.published), []
    for message in messages:
        decoded = decode(message.data.encode(), message.attributes)
        if isinstance(decoded, EmbedChunks):
            embed_chunks(decoded, services)
        else:
            bus.published.append(message)


def make(
    services: Services,
    bus: FakeBus,
    tenant: Principal,
    version: int,
    *texts: str,
    external_id: str = "doc",
    **more: Any,
) -> Reception:
    """A version that was ingested and embedded."""
    reception = take(tenant, submission(tenant, version, external_id, **more), *texts)
    embed_all(services, bus)
    return reception


def document_id(tenant: Principal, external_id: str = "doc") -> UUID:
    """The id of a document from upstream."""
    return document_id_of(tenant.tenant_id, "upstream", external_id)


def look(tenant: Principal, external_id: str = "doc") -> Any:
    """State, reason, deletion and answering source version of a document; None when there is no row."""
    with operator_session() as session:
        return session.execute(
            text(
                "select d.state, d.reason, d.deleted_by, d.deleted_at, v.source_version as current, "
                "d.current_version_id from rag.documents d "
                "left join rag.versions v on v.tenant_id = d.tenant_id and v.version_id = d.current_version_id "
                "where d.tenant_id = :t and d.document_id = :d"
            ),
            {"t": tenant.tenant_id, "d": document_id(tenant, external_id)},
        ).first()


def found(services: Services, tenant: Principal, question: str) -> list[str]:
    """The texts that a search finds for the question."""
    with tenant_session(tenant.tenant_id) as session:
        space = active_space(session, tenant.tenant_id)
        vector = services.models.embed([question], model=space.model, dimension=space.dimension, input_type="query")[0]
        passages = search(session, tenant.tenant_id, tenant.member_id, space, question, vector)
    return [passage.text for passage in passages]


def age(tenant: Principal, table: str, column: str, interval: str, condition: str = "true") -> None:
    """Move a time of a tenant's rows into the past."""
    with operator_session() as session:
        session.execute(
            text(
                f"update {table} set {column} = {column} - cast(:interval as interval) "
                f"where tenant_id = :tenant and {condition}"
            ),
            {"tenant": tenant.tenant_id, "interval": interval},
        )


def count(tenant: Principal, table: str, condition: str = "true") -> int:
    """How many rows a tenant has in a table."""
    with operator_session() as session:
        rows: int = session.execute(
            text(f"select count(*) from {table} where tenant_id = :tenant and {condition}"),
            {"tenant": tenant.tenant_id},
        ).scalar_one()
    return rows


def acts(tenant: Principal) -> list[tuple[str, str]]:
    """What the audit record says of a tenant, as (actor, action), in order."""
    with operator_session() as session:
        rows = session.execute(
            text("select actor, action from core.audit where tenant_id = :tenant order by at"),
            {"tenant": tenant.tenant_id},
        )
        return [(row.actor, row.action) for row in rows]


def events(bus: FakeBus, kind: type[Message]) -> list[Message]:
    """What was published of a kind."""
    messages = [decode(m.data.encode(), m.attributes) for m in bus.published]
    return [message for message in messages if isinstance(message, kind)]


def delete(tenant: Principal, external_id: str = "doc", actor: Actor | None = None) -> int:
    """Delete a document as its tenant's administrator."""
    with tenant_session(tenant.tenant_id) as session:
        return delete_document(session, actor or as_curator(tenant), document_id(tenant, external_id))


def restore(tenant: Principal, external_id: str = "doc", actor: Actor | None = None) -> str:
    """Restore a document as its tenant's administrator."""
    with tenant_session(tenant.tenant_id) as session:
        return restore_document(session, actor or as_curator(tenant), document_id(tenant, external_id), BATCH)


def back_to(tenant: Principal, version: UUID) -> None:
    """Roll a document back as its tenant's administrator."""
    with tenant_session(tenant.tenant_id) as session:
        roll_back(session, as_curator(tenant), document_id(tenant), version)


def until_somebody_waits(session_of: Callable[[], AbstractContextManager[Session]] = platform_session) -> None:
    """Return when another connection of this role waits for a lock of ours."""
    deadline = datetime.now(UTC) + timedelta(seconds=20)
    while datetime.now(UTC) < deadline:
        with session_of() as session:
            waiting = session.execute(
                text("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and usename = current_user")
            ).scalar_one()
        if waiting:
            return
    raise AssertionError("nobody waits")
