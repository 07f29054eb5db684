"""Daily: blobs that nothing has referred to for BLOB_GRACE_DAYS are deleted, and every live version's blob is found.

Marked in one run, deleted in a later one, and only in the very state in which they were marked: whoever stores the
same bytes meanwhile makes them new, and they stay (docs/decisions/0015).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text

from shared.database import operator_session
from shared.documents import blobs
from shared.errors import PermanentError
from shared.jobs.leases import Lease, Progress, fenced
from shared.services import Services
from shared.storage import Blob, Storage

log = logging.getLogger(__name__)

PAGE = 500
"""Blobs of a slice."""

UNFINISHED = timedelta(days=1)
"""What a writer left half written is removed after this; no upload takes so long."""


def run(lease: Lease, services: Services) -> Iterator[Progress]:
    """Walk over all blobs in order; a further turn goes on behind the last one.

    `live` are the blobs that versions referred to when the job began, `found` those of them that are there: the
    proof, in the audit record, that nothing went which is still needed.
    """
    storage, grace = services.storage, timedelta(days=services.settings.blob_grace_days)
    state = lease.before.cursor or _begin(lease)
    until, counts = datetime.fromisoformat(state["until"]), dict(lease.before.counts) or dict(state["counts"])
    done = lease.before.done
    for page in _pages(storage.blobs(after=state["after"])):
        with fenced(lease) as session:
            verdict = blobs.judge(session, page, storage, services.clock.now(), grace)
            counts["found"] += blobs.held(session, page, storage, until)
        gone = [blob for blob in verdict.ripe if storage.delete(blob)]
        counts["kept"] += len(verdict.kept)
        counts["marked"] += len(verdict.marked)
        counts["renewed"] += len(verdict.ripe) - len(gone)
        counts["deleted"] += len(gone)
        counts["bytes"] += sum(blob.size for blob in gone)
        with fenced(lease) as session:
            blobs.forget_marks(session, gone)
        done += len(page)
        yield Progress(done, None, counts, cursor=state | {"after": page[-1].key})
    counts["drafts"] = storage.tidy(services.clock.now() - UNFINISHED)
    if counts["found"] < counts["live"]:
        # Deleted with their documents meanwhile, or missing: every one is looked at.
        counts["missing"] = _missing(storage, until)
    with fenced(lease) as session:
        blobs.forget_old_marks(session, services.clock.now() - 4 * grace)
        session.execute(
            text("delete from core.uploads where expires_at < :before"), {"before": services.clock.now() - UNFINISHED}
        )
    if counts["missing"]:
        log.error("blobs of live versions are missing", extra={"missing": counts["missing"]})
    yield Progress(done, done, counts)


COUNTED = ("live", "found", "missing", "kept", "marked", "renewed", "deleted", "bytes", "drafts")


def _begin(lease: Lease) -> dict[str, Any]:
    with fenced(lease) as session:
        until: datetime = session.execute(text("select now()")).scalar_one()
        live = blobs.live_blobs(session, until)
    counts = dict.fromkeys(COUNTED, 0) | {"live": live}
    return {"after": "", "until": until.isoformat(), "counts": counts}


def _pages(found: Iterator[Blob]) -> Iterator[Sequence[Blob]]:
    page: list[Blob] = []
    for blob in found:
        page.append(blob)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page


def _missing(storage: Storage, until: datetime) -> int:
    """How many blobs of live versions are not there, by asking for each."""
    missing, after = 0, (UUID(int=0), "")
    while True:
        with operator_session() as session:
            page = blobs.live_after(session, until, after, PAGE)
        if not page:
            return missing
        missing += sum(not _is_there(storage, tenant_id, uri) for tenant_id, uri in page)
        after = page[-1]


def _is_there(storage: Storage, tenant_id: UUID, uri: str) -> bool:
    try:
        return storage.find(tenant_id, uri) is not None
    except PermanentError:
        return False  # an address in another store: nobody could read it
