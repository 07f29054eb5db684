"""Messages whose deliveries are used up, the letters they leave, and what becomes of their documents."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from shared.database import operator_session, tenant_session
from shared.dead_letters.replay import Outcome, replay
from shared.documents.intake import Reception, receive
from shared.documents.storing import Batch, Content, NewChunk, store
from shared.documents.vectors import text_hash
from shared.doors import Delivery
from shared.events import DocumentFailed, DocumentSubmitted, Message, decode
from shared.messaging import Outgoing
from shared.tenants.directory import Principal

TEXT = "Die Pumpe wird alle 2.000 Stunden geprüft."


def submission(tenant: Principal, external_id: str = "pumpe", version: int = 1) -> DocumentSubmitted:
    """A version of a document, as upstream submits it."""
    return DocumentSubmitted(
        tenant_id=tenant.tenant_id, external_id=external_id, source_version=version, content="UHVtcGU="
    )


def exhausted(message: Message, subscription: str, message_id: str = "") -> Delivery:
    """The message as the dead-letter topic delivers it after five deliveries."""
    attributes = message.attributes() | {
        "CloudPubSubDeadLetterSourceSubscription": subscription,
        "CloudPubSubDeadLetterSourceDeliveryCount": "5",
    }
    return Delivery(message_id or uuid4().hex, message.data(), attributes, "dead-letter-archive", "/dead-letters")


def letters(**where: object) -> list[Any]:
    """All letters, or those whose columns have these values, the oldest first."""
    condition = " and ".join(f"{name} = :{name}" for name in where) or "true"
    with operator_session() as session:
        return list(
            session.execute(text(f"select * from core.dead_letters where {condition} order by archived_at"), where)
        )


def only_letter() -> Any:
    """The one letter there is."""
    (letter,) = letters()
    return letter


def send_again(letter_id: UUID, **options: bool) -> Outcome:
    """Replay a letter as an operator does."""
    with operator_session() as session:
        return replay(session, letter_id, actor="test", **options)


def document(tenant: Principal, external_id: str = "pumpe") -> Any:
    """State and reason of a document, and the state of its newest version."""
    with tenant_session(tenant.tenant_id) as session:
        return session.execute(
            text(
                "select d.state, d.reason, v.state as version from rag.documents d left join rag.versions v "
                "on v.tenant_id = d.tenant_id and v.document_id = d.document_id "
                "where d.tenant_id = :t and d.external_id = :e order by v.source_version desc limit 1"
            ),
            {"t": tenant.tenant_id, "e": external_id},
        ).one()


def received(tenant: Principal, event: DocumentSubmitted) -> Reception:
    """The version is stored as received, as ingest begins."""
    with tenant_session(tenant.tenant_id) as session:
        return receive(session, event, "upstream")


def ingested(tenant: Principal, event: DocumentSubmitted) -> Reception:
    """The version is stored with a chunk that has no vector yet."""
    reception = received(tenant, event)
    chunk = NewChunk(TEXT, text_hash((), TEXT), 0, len(TEXT), 9, "de", (), {})
    content = Content(uuid4().hex, "", 1, "text/plain", "de", "", [chunk])
    with tenant_session(tenant.tenant_id) as session:
        store(session, reception, content, event.traceparent, Batch(9, 999))
    return reception


def told(row: Outgoing) -> tuple[str, int, str]:
    """Which document and version an outcome is about, and why it failed."""
    failed = decode(row.data.encode(), row.attributes)
    assert isinstance(failed, DocumentFailed)
    assert failed.next_action
    return failed.external_id, failed.source_version, failed.reason


def command_of(row: Outgoing) -> Any:
    """The message that was published."""
    return decode(row.data.encode(), row.attributes)
