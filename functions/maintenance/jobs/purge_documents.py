"""Daily: documents deleted 30 days ago are deleted for good, with proof; old versions lose their content.

Kept are a document's last five superseded versions, and younger ones than 30 days up to fifty; the
rows of all versions stay as history.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from uuid import UUID

from shared.database import operator_session
from shared.documents.acting import Actor
from shared.documents.hard_deletion import Purged, TracesLeft, purge_documents
from shared.documents.purging import due_count, due_documents, purge_old_content
from shared.jobs.leases import Lease, Progress, fenced
from shared.services import Services

log = logging.getLogger(__name__)

DOCUMENTS = 10
"""A slice: one proof for so many documents, and their rows are locked no longer than some seconds."""

VERSIONS, CHUNKS = 50, 2_000
"""A slice of old content, by whichever comes first."""


def run(lease: Lease, services: Services) -> Iterator[Progress]:
    """Purge documents, then versions, until nothing is due; what was done is in the counts.

    Documents are not fenced: a second time finds them gone. One of which something would be left (`TracesLeft`) stays,
    hidden, is counted as `unproven` and tried again tomorrow.
    """
    names = ("documents", "blobs", "rows", "unproven", "versions", "chunks")
    counts = {name: int(lease.before.counts.get(name, 0)) for name in names}
    with operator_session() as session:
        total = due_count(session)
    done = 0
    left: set[UUID] = set()
    while True:
        with operator_session() as session:
            due = due_documents(session, DOCUMENTS, left)
        if due is None:
            break
        purged, unproven = _purge(*due, services)
        left |= unproven
        done += len(due[1])
        counts["unproven"] += len(unproven)
        for one in purged:
            counts["documents"] += one.documents
            counts["blobs"] += one.blobs.deleted
            counts["rows"] += sum(one.rows.values())
        yield Progress(min(done, total), total, dict(counts))
    while True:
        with fenced(lease) as session:
            kept = purge_old_content(session, versions=VERSIONS, chunks=CHUNKS)
        counts["versions"] += kept.versions
        counts["chunks"] += kept.chunks
        if not kept.versions:
            break
        yield Progress(total, total, dict(counts))
    yield Progress(total, total, dict(counts))


def _purge(tenant_id: UUID, documents: list[UUID], services: Services) -> tuple[list[Purged], set[UUID]]:
    """Purge a slice at once, or, if something of one would be left, one by one; returns also which could not be."""
    actor = Actor(tenant_id, "job:purge-documents", None, may_overrule=True)
    try:
        return [purge_documents(actor, documents, services.storage, action="document-expired")], set()
    except TracesLeft as error:
        log.error("not purged: %s", error, extra={"documents": len(documents)})
    if len(documents) == 1:
        return [], set(documents)
    purged, left = [], set[UUID]()
    for document_id in documents:
        some, unproven = _purge(tenant_id, [document_id], services)
        purged += some
        left |= unproven
    return purged, left
