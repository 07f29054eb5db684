"""How a document gets in: reception of a version, its chunks, its failure, and withdrawal.

Every function works in the caller's tenant session; the lock order is document, then version.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import write_one
from shared.documents import access
from shared.documents.blobs import blob_of
from shared.documents.overtaking import Overtaken, end_older
from shared.documents.tombstones import is_entombed
from shared.errors import PermanentError, Superseded
from shared.events import (
    DocumentIndexed,
    DocumentSubmitted,
)
from shared.messaging import publish


@dataclass(frozen=True, slots=True)
class Reception:
    """A version that was accepted for ingestion."""

    tenant_id: UUID
    document_id: UUID
    version_id: UUID
    source: str
    external_id: str
    source_version: int
    stored: bool
    """Its chunks are stored already: a redelivery only has to finish it."""


def document_id_of(tenant_id: UUID, source: str, external_id: str) -> UUID:
    """The id of a document follows from who sent it under which id, so a redelivery finds the same one."""
    return uuid5(tenant_id, f"document:{source}:{external_id}")


def version_id_of(event: DocumentSubmitted, source: str) -> UUID:
    """The id of the version that an event submits, likewise."""
    return uuid5(document_id_of(event.tenant_id, source, event.external_id), f"version:{event.version_number()}")


def receive(session: Session, event: DocumentSubmitted, source: str) -> Reception:
    """Accept a version: the document exists and is locked, the version is `received`.

    A document that somebody deleted comes back by a newer version that was sent after the deletion, as a new life.
    Raises Superseded when the version is withdrawn, rolled back, deleted or already done, and Overtaken when it is
    older than what is known.
    """
    document_id = document_id_of(event.tenant_id, source, event.external_id)
    number = event.version_number()
    ensure_document(session, event, source, document_id)
    wanted = _narrowed_by_carrier(session, event, source)
    document = session.execute(
        text(
            # A withdrawal is told from what came after it by its version, never by the clock: it may be handled long
            # after the version that followed it was sent.
            "select withdrawn_version, floor_version, current_version_id, access_members, access_groups, "
            "case when deleted_by not like 'source:%' then deleted_at end as deleted_at from rag.documents "
            "where tenant_id = :tenant and document_id = :document for update"
        ),
        {"tenant": event.tenant_id, "document": document_id},
    ).one()
    # Only now: a deletion that was going on has ended, and what was inserted above goes with the transaction.
    if is_entombed(session, event.tenant_id, source, event.external_id, number, event.occurred_at):
        raise Superseded("the document was deleted for good")
    if document.withdrawn_version is not None and document.withdrawn_version >= number:
        raise Superseded("the document was withdrawn at this or a later version")
    if document.deleted_at is not None and document.deleted_at >= event.occurred_at:
        raise Superseded("the document was deleted after this was sent")
    if document.floor_version is not None and document.floor_version >= number:
        raise Superseded("the document was rolled back at this or a later version")
    newest = session.execute(
        text("select max(source_version) from rag.versions where tenant_id = :tenant and document_id = :document"),
        {"tenant": event.tenant_id, "document": document_id},
    ).scalar()
    if newest is not None and newest > number:
        raise Overtaken("a newer version of the document is known")
    version_id = uuid5(document_id, f"version:{number}")
    session.execute(
        text(
            "insert into rag.versions (tenant_id, version_id, document_id, source_version, state, content_hash, "
            "blob_uri, bytes, file_name, media_type, traceparent, access_members, access_groups) "
            "values (:tenant, :version, :document, :number, 'received', '', :uri, 0, :file_name, :media_type, "
            ":traceparent, cast(:members as text[]), cast(:groups as text[])) on conflict do nothing"
        ),
        {
            "tenant": event.tenant_id,
            "version": version_id,
            "document": document_id,
            "number": number,
            "uri": blob_of(event),
            "file_name": event.file_name,
            "media_type": event.media_type,
            "traceparent": event.traceparent,
        }
        | access.parameters(wanted),
    )
    state = session.execute(
        text("select state from rag.versions where tenant_id = :tenant and version_id = :version"),
        {"tenant": event.tenant_id, "version": version_id},
    ).scalar_one()
    if state not in ("received", "ingested"):
        raise Superseded(f"this version is {state} already")
    _describe(session, event, document_id, wanted)
    if document.current_version_id is not None:
        changed = access.settle_access(session, event.tenant_id, document_id)
    else:
        changed = access.AccessList.of(document.access_members, document.access_groups) != wanted
    if changed and newest is not None:
        access.narrow_attachments(session, event.tenant_id, document_id)
    return Reception(
        event.tenant_id, document_id, version_id, source, event.external_id, number, stored=state == "ingested"
    )


RESERVED = ("attachment_of", "attachment_depth")
"""Names of metadata that only ingest itself gives, to the attachments it finds (`shared.documents.attachments`)."""


def parent_of(event: DocumentSubmitted) -> str | None:
    """The external id of the document that carried this attachment; None for what upstream sent itself.

    The same names in upstream's own metadata make no attachment: what the "parent" does not carry would be withdrawn.
    """
    parent = event.metadata.get(RESERVED[0])
    if parent is None or event.metadata.get(RESERVED[1], "0") == "0":
        return None
    return parent if event.external_id.startswith(f"{parent}#") or _LONG_ID.fullmatch(event.external_id) else None


_LONG_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
"""What `attachments` names an attachment for which parent and file name together are too long: a UUID of version 5."""


def _narrowed_by_carrier(session: Session, event: DocumentSubmitted, source: str) -> access.AccessList:
    """Who may see what was submitted; of an attachment only who may see the document by now that carried it.

    The parent is locked until this transaction ends: who deletes it or sends it anew then finds the attachment.
    Raises Superseded for an attachment whose document was deleted while its message was on its way, and Overtaken when
    a later version of the document was read, which has submitted its own attachments.
    """
    wanted, parent = access.list_of(event.access), parent_of(event)
    if parent is None:
        return wanted
    number = event.version_number()
    ids = {
        "tenant": event.tenant_id,
        "document": document_id_of(event.tenant_id, source, parent),
        "number": number,
    }
    carrier = session.execute(
        text(
            "select state, floor_version, access_members, access_groups from rag.documents "
            "where tenant_id = :tenant and document_id = :document for share"
        ),
        ids,
    ).first()
    if carrier is None:
        if is_entombed(session, event.tenant_id, source, parent, number, event.occurred_at):
            raise Superseded("the document that carried this attachment was deleted")
        return wanted
    if carrier.state == "deleted":
        raise Superseded("the document that carried this attachment was deleted")
    if carrier.floor_version is not None and carrier.floor_version >= number and not _answers(session, ids):
        raise Superseded("the document that carried this attachment was rolled back")
    # Only now that the lock is there: a version that was being stored has ended.
    later = session.execute(
        text(
            "select bool_or(content_hash <> '' and state <> 'unchanged') as was_read from rag.versions "
            "where tenant_id = :tenant and document_id = :document and source_version > :number "
            "having count(*) > 0"
        ),
        ids,
    ).first()
    if later is None:
        return wanted
    if later.was_read:
        raise Overtaken("a newer version of the document that carried this attachment was read")
    return wanted.narrowed(access.AccessList.of(carrier.access_members, carrier.access_groups))


def _answers(session: Session, ids: dict[str, object]) -> bool:
    """Whether a document answers with the content that came with a number."""
    found = session.execute(
        text(
            "select 1 from rag.documents d join rag.versions c on c.tenant_id = d.tenant_id "
            "and c.version_id = d.current_version_id join rag.versions n on n.tenant_id = d.tenant_id "
            "and n.document_id = d.document_id and n.content_hash = c.content_hash and n.source_version = :number "
            "where d.tenant_id = :tenant and d.document_id = :document"
        ),
        ids,
    ).scalar()
    return found is not None


def ensure_document(session: Session, event: DocumentSubmitted, source: str, document_id: UUID) -> None:
    """The document's row and its collection's exist; what is there already stays as it is."""
    collection_id = uuid5(event.tenant_id, f"collection:{event.collection}")
    session.execute(
        text(
            "insert into rag.collections (tenant_id, collection_id, name) values (:tenant, :id, :name) "
            "on conflict do nothing"
        ),
        {"tenant": event.tenant_id, "id": collection_id, "name": event.collection},
    )
    session.execute(
        text(
            "insert into rag.documents (tenant_id, document_id, collection_id, source, external_id, title, state) "
            "values (:tenant, :document, :collection, :source, :external_id, :title, 'received') "
            "on conflict do nothing"
        ),
        {
            "tenant": event.tenant_id,
            "document": document_id,
            "collection": collection_id,
            "source": source,
            "external_id": event.external_id,
            "title": event.title or event.file_name or event.external_id,
        },
    )


_ANEW = "current_version_id is null and state in ('failed', 'deleted')"


def _describe(session: Session, event: DocumentSubmitted, document_id: UUID, wanted: access.AccessList) -> None:
    """Title, collection and metadata follow the newest version at once; access too while no version answers.

    What answers keeps to `access.settle_access`: a narrower access must not wait, a wider one is for the new text only.

    A title that upstream does not give is found in the text (`storing.store`): until then, and when this is a
    redelivery, unchanged or unreadable, the one the document has stays.
    """
    own = parent_of(event) is None
    metadata = {name: value for name, value in event.metadata.items() if not (own and name in RESERVED)}
    write_one(
        session,
        "update rag.documents set title = case when :title <> '' then :title else title end, "
        "collection_id = :collection, metadata = cast(:metadata as jsonb), "
        "access_members = case when current_version_id is null then cast(:members as text[]) else access_members end, "
        "access_groups = case when current_version_id is null then cast(:groups as text[]) else access_groups end, "
        "updated_at = now(), "
        "deleted_at = null, deleted_by = null, deleted_version_id = null, "
        # What became of an earlier version is not what this one waits for.
        f"reason = case when {_ANEW} then null else reason end, "
        f"message = case when {_ANEW} then null else message end, "
        f"next_action = case when {_ANEW} then null else next_action end, "
        f"state = case when {_ANEW} then 'received' else state end "
        "where tenant_id = :tenant and document_id = :document",
        {
            "tenant": event.tenant_id,
            "document": document_id,
            "title": event.title,
            "collection": uuid5(event.tenant_id, f"collection:{event.collection}"),
            "metadata": json.dumps(metadata),
        }
        | access.parameters(wanted),
    )


def skip_unchanged(session: Session, reception: Reception, content_hash: str, traceparent: str) -> bool:
    """Whether the content is what the document answers with already; then the version ends as `unchanged`.

    Raises PermanentError `rolled-back` when somebody rolled back from exactly these bytes, Superseded when another
    delivery ended the version meanwhile.
    """
    if is_rejected(session, reception.tenant_id, reception.document_id, content_hash):
        raise rolled_back()
    same = session.execute(
        text(
            # "offset 0": by key, see completion.
            "select v.chunks, v.version_id from rag.documents d cross join lateral (select v.chunks, v.version_id "
            "from rag.versions v where v.tenant_id = :tenant and v.version_id = d.current_version_id "
            "and v.content_hash = :hash offset 0) v "
            "where d.tenant_id = :tenant and d.document_id = :document for update of d"
        ),
        {"tenant": reception.tenant_id, "document": reception.document_id, "hash": content_hash},
    ).first()
    if same is None:
        return False
    ended = session.execute(
        text(
            "update rag.versions set state = 'unchanged', content_hash = :hash, updated_at = now() "
            "where tenant_id = :tenant and version_id = :version and state = 'received'"
        ),
        {"tenant": reception.tenant_id, "version": reception.version_id, "hash": content_hash},
    ).rowcount  # type: ignore[attr-defined]
    if ended == 0:
        # Another delivery of the same message was faster; it may even be this version that answers now.
        raise Superseded("this version is no longer waiting for its chunks")
    # The source has taken back whatever it sent in between.
    end_older(session, reception.tenant_id, reception.document_id, reception.source_version)
    access.settle_access(session, reception.tenant_id, reception.document_id)
    publish(session, _indexed(reception, same.version_id, same.chunks, traceparent))
    return True


def is_rejected(session: Session, tenant_id: UUID, document_id: UUID, content_hash: str) -> bool:
    """Whether somebody rolled back from this content of a document."""
    found = session.execute(
        text(
            "select 1 from rag.versions where tenant_id = :tenant and document_id = :document "
            "and content_hash = :hash and rejected_at is not null limit 1"
        ),
        {"tenant": tenant_id, "document": document_id, "hash": content_hash},
    ).scalar()
    return found is not None


def rolled_back() -> PermanentError:
    """The content is what people rolled the document back from."""
    return PermanentError(
        "rolled-back",
        "Somebody rolled the document back from exactly this content.",
        "Submit a corrected version, or make the rejected one current again in the document's history.",
    )


def _indexed(reception: Reception, version_id: UUID, chunks: int, traceparent: str) -> DocumentIndexed:
    return DocumentIndexed(
        event_id=uuid5(reception.version_id, "indexed"),
        tenant_id=reception.tenant_id,
        traceparent=traceparent,
        source=reception.source,
        external_id=reception.external_id,
        source_version=reception.source_version,
        document_id=reception.document_id,
        version_id=version_id,
        chunks=chunks,
    )
