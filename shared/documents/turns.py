"""Fair shares: a tenant has so many documents in progress at once, the others wait for their turn.

The bus is one line for everybody, so a tenant that sends 10,000 documents would be served for an hour before the
next one's three. Above its share a submission is therefore laid aside at the door of ingest, before anything is read
or parsed, and comes back as an earlier document of the same tenant is finished. Nothing waits while a worker is idle:
the share is larger than what all workers together can hold. Laying aside costs one short transaction.
"""

from __future__ import annotations

import json
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.containment import contained
from shared.database import operator_session, tenant_session
from shared.documents.access import list_of, parameters
from shared.documents.blobs import blob_of
from shared.documents.intake import Reception, document_id_of, parent_of, version_id_of
from shared.documents.tombstones import tombstone_key
from shared.documents.waiting import wait_for
from shared.events import DocumentSubmitted
from shared.messaging import Outgoing, publish_stored

FORGOTTEN = "1 hour"
"""A version without progress for this long holds no place: its message was lost, or it ended as a dead letter."""

_IN_PROGRESS = """
select count(*) from rag.versions v where v.tenant_id = :tenant and v.state in ('received', 'ingested')
and v.waiting is distinct from 'turn' and v.waiting is distinct from 'site'
and v.updated_at > now() - cast(:forgotten as interval)
and v.version_id <> :version and not exists (select from rag.versions newer where newer.tenant_id = :tenant
and newer.document_id = v.document_id and newer.source_version > v.source_version)
"""

NOBODY = UUID(int=0)

_JOIN = """
with place as (select where exists (select from core.waiting_messages where tenant_id = :tenant)
               and not exists (select from rag.documents where tenant_id = :tenant and document_id = :document)
               and not exists (select from rag.tombstones where tenant_id = :tenant and key = :key)),
collection as (insert into rag.collections (tenant_id, collection_id, name)
               select :tenant, :collection, :collection_name from place on conflict do nothing),
document as (insert into rag.documents
               (tenant_id, document_id, collection_id, source, external_id, title, state, access_members, access_groups)
             select :tenant, :document, :collection, :source, :external_id, :title, 'received',
                    cast(:members as text[]), cast(:groups as text[]) from place
             on conflict do nothing returning document_id),
version as (insert into rag.versions (tenant_id, version_id, document_id, source_version, state, content_hash,
              blob_uri, bytes, file_name, media_type, traceparent, waiting, access_members, access_groups)
            select :tenant, :version, document_id, :number, 'received', '', :uri, 0, :file_name, :media_type,
                   :traceparent, 'turn', cast(:members as text[]), cast(:groups as text[])
            from document returning version_id)
insert into core.waiting_messages (tenant_id, event_id, document_id, version_id, topic, data, attributes)
select :tenant, :event, :document, version_id, :topic, :data, cast(:attributes as jsonb) from version
"""


def join_line(session: Session, event: DocumentSubmitted, source: str) -> bool:
    """Lay the submission of a new document aside in one statement, if others of its tenant wait; else False.

    Also when a place has just become free: that one is for the first in the line. The short way for thousands that
    come at once: everybody behind them waits for as long as this takes. A document that is known already, or
    was deleted for good, goes the long way, where versions are compared under its lock; so does an attachment, whose
    document may be gone by now.
    """
    if parent_of(event) is not None:
        return False
    document_id = document_id_of(event.tenant_id, source, event.external_id)
    version_id = version_id_of(event, source)
    values = {
        "tenant": event.tenant_id,
        "document": document_id,
        "version": version_id,
        "number": event.version_number(),
        "uri": blob_of(event),
        "collection": uuid5(event.tenant_id, f"collection:{event.collection}"),
        "collection_name": event.collection,
        "source": source,
        "external_id": event.external_id,
        "title": event.title or event.file_name or event.external_id,
        "file_name": event.file_name,
        "media_type": event.media_type,
        "traceparent": event.traceparent,
        "event": _place_of(version_id),
        "topic": f"documents-{source}",
        "data": event.data().decode(),
        "attributes": json.dumps(event.attributes()),
        "key": tombstone_key(event.tenant_id, source, event.external_id),
    } | parameters(list_of(event.access))
    return bool(session.execute(text(_JOIN), values).rowcount)  # type: ignore[attr-defined]


def _place_of(version_id: UUID) -> UUID:
    """The id under which a version's message waits, and goes back: its own is its sender's, who may use one twice."""
    return uuid5(version_id, "turn")


def take_turn(session: Session, reception: Reception, event: DocumentSubmitted, topic: str, share: int) -> bool:
    """Whether a received version may go on now; if not, its message is laid aside in the same transaction.

    Behind others that wait it joins them without a lock, for thousands come at once. The place that is given to
    nobody because the line ends at this very moment is found by the sweep.
    """
    tenant_id, version_id = reception.tenant_id, reception.version_id
    behind = _anybody_waits(session, tenant_id) and _in_progress(session, tenant_id, version_id) >= share
    if not behind:
        _line_up(session, tenant_id)
        if _in_progress(session, tenant_id, version_id) < share:
            return True
    wait_for(session, reception.tenant_id, reception.version_id, "turn", None)
    session.execute(
        text(
            "insert into core.waiting_messages (tenant_id, event_id, document_id, version_id, topic, data, attributes) "
            "values (:tenant, :event, :document, :version, :topic, :data, cast(:attributes as jsonb)) "
            "on conflict do nothing"
        ),
        {
            "tenant": reception.tenant_id,
            "event": _place_of(version_id),
            "document": reception.document_id,
            "version": reception.version_id,
            "topic": topic,
            "data": event.data().decode(),
            "attributes": json.dumps(event.attributes()),
        },
    )
    return False


def next_turns(session: Session, tenant_id: UUID, share: int) -> int:
    """Send the messages back to the bus for which there is a place now, oldest first; returns how many.

    Called whenever a document of the tenant may have ended, and by the sweep.
    """
    if not _anybody_waits(session, tenant_id):
        return 0
    _line_up(session, tenant_id)
    places = share - _in_progress(session, tenant_id, NOBODY)
    if places <= 0:
        return 0
    rows = session.execute(
        text(
            "delete from core.waiting_messages where tenant_id = :tenant and event_id in (select event_id "
            "from core.waiting_messages where tenant_id = :tenant order by created_at, event_id limit :places) "
            "returning event_id, version_id, topic, data, attributes"
        ),
        {"tenant": tenant_id, "places": places},
    ).all()
    for row in rows:
        session.execute(
            text(
                "update rag.versions set waiting = null, updated_at = now() "
                "where tenant_id = :tenant and version_id = :version and waiting = 'turn'"
            ),
            {"tenant": tenant_id, "version": row.version_id},
        )
        # As it came: one that this release cannot read must not hold up the others, nor the other tenants.
        publish_stored(session, Outgoing(tenant_id, row.event_id, row.topic, row.data, row.attributes, None))
    return len(rows)


def sweep_turns(share: int) -> int:
    """Send back what a crash between the end of a document and its successor's turn left waiting; for the sweep."""
    with operator_session() as session:
        tenants = session.execute(text("select distinct tenant_id from core.waiting_messages")).scalars().all()
    released = 0
    for tenant_id in tenants:
        with contained(tenant_id, "turns not passed on"), tenant_session(tenant_id) as session:
            released += next_turns(session, tenant_id, share)
    return released


def _line_up(session: Session, tenant_id: UUID) -> None:
    """One at a time a tenant, until the transaction ends: two last places are not given twice, no turn is lost."""
    session.execute(text("select pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": f"turns:{tenant_id}"})


def _anybody_waits(session: Session, tenant_id: UUID) -> bool:
    found: bool = session.execute(
        text("select exists (select from core.waiting_messages where tenant_id = :tenant)"), {"tenant": tenant_id}
    ).scalar_one()
    return found


def _in_progress(session: Session, tenant_id: UUID, besides: UUID) -> int:
    count: int = session.execute(
        text(_IN_PROGRESS), {"tenant": tenant_id, "version": besides, "forgotten": FORGOTTEN}
    ).scalar_one()
    return count
