"""Attachments of a document (a mail) are documents of their own, submitted by ingest on behalf of the same source.

They follow their parent: what a new version no longer carries, and everything when the parent is withdrawn, is
withdrawn too. `metadata.attachment_of` names the parent; access and collection are the parent's.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.documents.intake import RESERVED, Reception
from shared.documents.storing import StoredAttachment
from shared.events import DocumentSubmitted, DocumentWithdrawn
from shared.messaging import publish

PARENT, DEPTH = RESERVED

DEEPEST = 3
"""A mail in a mail in a mail is read; what is nested deeper is left where it is."""

MOST = 50
"""Attachments of one document; mails with more are archives in disguise."""

_LONGEST_ID = 512
_MOST_METADATA = 64
"""As in `shared.events.DocumentSubmitted`."""


def depth_of(event: DocumentSubmitted) -> int:
    """How many parents a submission has, as ingest itself noted; upstream's own value can only lower what is read."""
    noted = event.metadata.get(DEPTH, "0")
    return int(noted) if noted.isdecimal() and len(noted) < 3 else 0


def submit_attachments(
    session: Session, reception: Reception, event: DocumentSubmitted, attachments: Sequence[StoredAttachment]
) -> None:
    """Submit what the version carries and withdraw what it no longer does, in the transaction that stores it."""
    kept = []
    own = {name: value for name, value in event.metadata.items() if name not in RESERVED}
    # The parent's metadata may fill all places that a message has; two of them are needed here.
    inherited = dict(list(own.items())[: _MOST_METADATA - len(RESERVED)])
    for number, attachment in enumerate(attachments[:MOST]):
        external_id = f"{event.external_id}#{number + 1}/{attachment.name or 'attachment'}"
        if len(external_id) > _LONGEST_ID:
            external_id = f"{uuid5(reception.document_id, external_id)}"
        kept.append(external_id)
        child = DocumentSubmitted(
            event_id=uuid5(reception.version_id, f"attachment:{external_id}"),
            tenant_id=event.tenant_id,
            traceparent=event.traceparent,
            external_id=external_id,
            source_version=reception.source_version,
            file_name=attachment.name[:_LONGEST_ID],
            media_type=attachment.media_type[:255],
            collection=event.collection,
            uri=attachment.uri,
            metadata={**inherited, PARENT: event.external_id, DEPTH: str(depth_of(event) + 1)},
            access=event.access,
        )
        publish(session, child, topic=f"documents-{reception.source}")
    withdraw_attachments(session, event, reception.source, reception.source_version, except_for=kept)


def withdraw_attachments(
    session: Session,
    event: DocumentSubmitted | DocumentWithdrawn,
    source: str,
    source_version: int,
    *,
    except_for: Sequence[str] = (),
) -> None:
    """Withdraw the attachments of a document at this version, but for those named."""
    rows = session.execute(
        text(
            "select external_id from rag.documents where tenant_id = :tenant and source = :source "
            "and metadata ->> 'attachment_of' = :parent and state <> 'deleted'"
        ),
        {"tenant": event.tenant_id, "source": source, "parent": event.external_id},
    ).scalars()
    for external_id in rows:
        if external_id not in except_for:
            gone = DocumentWithdrawn(
                event_id=uuid5(event.tenant_id, f"attachment-gone:{source}:{external_id}:{source_version}"),
                tenant_id=event.tenant_id,
                traceparent=event.traceparent,
                external_id=external_id,
                source_version=source_version,
            )
            publish(session, gone, topic=f"documents-{source}")
