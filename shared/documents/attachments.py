"""Attachments of a document (a mail) are documents of their own, submitted by ingest on behalf of the same source.

They follow their parent: what a new version no longer carries, and everything when the parent is withdrawn, is
withdrawn too. `metadata.attachment_of` names the parent; access and collection are the parent's, also when it comes
again with the same bytes for others.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal
from shared.documents.access import AccessList
from shared.documents.attached import withdraw_attachments
from shared.documents.intake import RESERVED, Reception
from shared.documents.storing import StoredAttachment
from shared.events import DocumentSubmitted
from shared.messaging import publish

PARENT, DEPTH = RESERVED

DEEPEST = 3
"""A mail in a mail in a mail is read; what is nested deeper is left where it is."""

MOST = 50
"""Attachments of one document; mails with more are archives in disguise."""

CARRIERS = frozenset({"message/rfc822"})
"""Kinds of documents that carry others (`functions.ingest.parsing`)."""

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
    for number, attachment in enumerate(attachments[:MOST]):
        external_id = f"{event.external_id}#{number + 1}/{attachment.name or 'attachment'}"
        if len(external_id) > _LONGEST_ID:
            external_id = f"{uuid5(reception.document_id, external_id)}"
        kept.append(external_id)
        _submit(session, reception, event, external_id, attachment)
    withdraw_attachments(session, event, reception.source, reception.source_version, except_for=kept)


# Whether it is a mail at all is asked first: of most documents nothing else is looked for.
_CARRIED = """
select d.external_id, d.collection_id, d.metadata, d.access_members, d.access_groups,
       v.file_name, v.media_type, v.blob_uri
from rag.documents d cross join lateral (
    select v.file_name, v.media_type, v.blob_uri from rag.versions v where v.tenant_id = :tenant
    and v.document_id = d.document_id and v.blob_uri <> '' order by v.source_version desc limit 1) v
where exists (select from rag.versions c where c.tenant_id = :tenant and c.document_id = :document
              and c.media_type = any(cast(:carriers as text[])))
  and d.tenant_id = :tenant and d.source = :source and d.attachment_of = :parent
  and d.state <> 'deleted'
"""


def resubmit_attachments(session: Session, reception: Reception, event: DocumentSubmitted) -> None:
    """Submit the attachments of a document that came again with the same bytes for others, or to another collection.

    From what is stored of them: nothing is read again. What nothing has changed for is left alone.
    """
    rows = session.execute(
        text(_CARRIED),
        {
            "tenant": reception.tenant_id,
            "document": reception.document_id,
            "source": reception.source,
            "parent": event.external_id,
            "carriers": array_literal(sorted(CARRIERS)),
        },
    )
    wanted = (
        uuid5(event.tenant_id, f"collection:{event.collection}"),
        _metadata(event),
        AccessList.of(event.access.members, event.access.groups),
    )
    for row in rows.all():
        if wanted != (row.collection_id, row.metadata, AccessList.of(row.access_members, row.access_groups)):
            stored = StoredAttachment(row.file_name, row.media_type, row.blob_uri)
            _submit(session, reception, event, row.external_id, stored)


def _submit(
    session: Session, reception: Reception, event: DocumentSubmitted, external_id: str, attachment: StoredAttachment
) -> None:
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
        metadata=_metadata(event),
        access=event.access,
    )
    publish(session, child, topic=f"documents-{reception.source}")


def _metadata(event: DocumentSubmitted) -> dict[str, str]:
    """What an attachment is told of its document's metadata, and whose it is."""
    own = {name: value for name, value in event.metadata.items() if name not in RESERVED}
    # The document's may fill all places that a message has; two of them are needed here.
    inherited = dict(list(own.items())[: _MOST_METADATA - len(RESERVED)])
    return {**inherited, PARENT: event.external_id, DEPTH: str(depth_of(event) + 1)}
