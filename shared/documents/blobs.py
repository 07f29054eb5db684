"""Which blobs anything refers to, and marks on those that nothing does: what the collector decides by.

A blob is stored before the message that names it is published, and that message may be on its way for days before a
version, an outbox row or a dead letter says so here. So a blob that nothing refers to is only marked; it goes when a
later look finds it unreferenced, the mark old enough, and the blob in exactly the state in which it was marked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal
from shared.events import DocumentSubmitted
from shared.storage import Blob, Storage


def blob_of(event: DocumentSubmitted) -> str:
    """The URI a submission names, if it has the form of a blob of its own tenant, else nothing.

    A reference for the collector, not a permission: reading checks the whole address (`shared.storage.own_key`).
    """
    uri = event.uri or ""
    return uri if re.search(rf"/{event.tenant_id}/[0-9a-f]{{64}}\Z", uri) else ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to become of blobs that were looked at."""

    kept: Sequence[Blob]
    marked: Sequence[Blob]
    ripe: Sequence[Blob]
    """Unreferenced now and when they were marked, unchanged since: to be deleted."""


def judge(operator: Session, blobs: Sequence[Blob], storage: Storage, now: datetime, grace: timedelta) -> Verdict:
    """Mark what nothing refers to, take the marks from what something does again, and say what is ripe.

    `blobs` were listed before this is called: whoever stores the same bytes from there on changes their version.
    """
    referenced = references(operator, blobs, storage)
    kept = [blob for blob in blobs if blob.key in referenced]
    loose = [blob for blob in blobs if blob.key not in referenced]
    forget_marks(operator, kept)
    marks = _marks(operator, loose)
    erased = _erased_tenants(operator, {blob.tenant_id for blob in loose})
    marked, ripe = [], []
    for blob in loose:
        version, since = marks.get(blob.key, ("", now))
        if blob.tenant_id in erased or (version == blob.version and now - since >= grace):
            ripe.append(blob)
        else:
            marked.append(blob)
            if version != blob.version:
                _mark(operator, blob, now)
    return Verdict(kept, marked, ripe)


_VERSIONS = """
select distinct v.blob_uri from rag.versions v
where v.tenant_id = any(cast(:tenants as uuid[])) and v.blob_uri <> '' and v.blob_uri = any(cast(:uris as text[]))
"""

# Any mention counts, wherever it stands in a message: also the blob of an attachment, or of a message that cannot be
# decoded. Letters that were dealt with count until they are purged: somebody may send one again. Versions are asked
# again without the store's address, in case it is written in another way than when they were received.
_MENTIONS = r"""
with mentioned as (
    select data from core.outbox where tenant_id = any(cast(:tenants as uuid[]))
    union all select data from core.waiting_messages where tenant_id = any(cast(:tenants as uuid[]))
    union all select encode(data, 'escape') from core.dead_letters
    where tenant_id = any(cast(:tenants as uuid[])) or tenant_id is null
    union all select tenant_id || '/' || content_hash from core.uploads where tenant_id = any(cast(:tenants as uuid[]))
    union all select blob_uri from rag.versions
    where tenant_id = any(cast(:tenants as uuid[])) and blob_uri <> ''
)
select distinct replace(found[1], '\', '') from mentioned
cross join lateral regexp_matches(data, '([0-9a-f-]{36}\\*/[0-9a-f]{64})', 'g') as found
"""


def references(operator: Session, blobs: Sequence[Blob], storage: Storage) -> set[str]:
    """The keys of those blobs to which a version, a message that waits, a dead letter or an upload refers."""
    if not blobs:
        return set()
    uris = {storage.uri(blob.tenant_id, blob.content_hash): blob.key for blob in blobs}
    tenants = array_literal({blob.tenant_id for blob in blobs})
    found = operator.scalars(text(_VERSIONS), {"tenants": tenants, "uris": array_literal(uris)})
    keys = {uris[uri] for uri in found}
    loose = [blob for blob in blobs if blob.key not in keys]
    if loose:  # the dear question only where the cheap one left any open
        tenants = array_literal({blob.tenant_id for blob in loose})
        keys |= set(operator.scalars(text(_MENTIONS), {"tenants": tenants})) & {blob.key for blob in loose}
    return keys


def live_blobs(operator: Session, until: datetime) -> int:
    """How many different blobs the versions received until a moment refer to."""
    count: int = operator.execute(
        text(
            "select count(*) from (select distinct tenant_id, blob_uri from rag.versions "
            "where blob_uri <> '' and created_at <= :until) live"
        ),
        {"until": until},
    ).scalar_one()
    return count


def held(operator: Session, blobs: Sequence[Blob], storage: Storage, until: datetime) -> int:
    """How many of these blobs are among those that `live_blobs` counts."""
    uris = [storage.uri(blob.tenant_id, blob.content_hash) for blob in blobs]
    count: int = operator.execute(
        text(f"select count(*) from ({_VERSIONS} and v.created_at <= :until) live"),
        {
            "tenants": array_literal({blob.tenant_id for blob in blobs}),
            "uris": array_literal(uris),
            "until": until,
        },
    ).scalar_one()
    return count


def live_after(operator: Session, until: datetime, after: tuple[UUID, str], limit: int) -> list[tuple[UUID, str]]:
    """A page of the blobs that versions refer to, as (tenant, URI), behind another; for looking at every one."""
    rows = operator.execute(
        text(
            "select distinct tenant_id, blob_uri from rag.versions where blob_uri <> '' and created_at <= :until "
            "and (tenant_id, blob_uri) > (:tenant, :uri) order by tenant_id, blob_uri limit :limit"
        ),
        {"until": until, "tenant": after[0], "uri": after[1], "limit": limit},
    )
    return [(row.tenant_id, row.blob_uri) for row in rows]


def forget_marks(operator: Session, blobs: Iterable[Blob]) -> None:
    """Take the marks of these blobs away."""
    for tenant_id, hashes in _by_tenant(blobs).items():
        operator.execute(
            text(
                "delete from core.blob_marks where tenant_id = :tenant and content_hash = any(cast(:hashes as text[]))"
            ),
            {"tenant": tenant_id, "hashes": array_literal(hashes)},
        )


def forget_old_marks(operator: Session, before: datetime) -> None:
    """Take away marks of blobs that somebody else has deleted: nobody looks at them any more."""
    operator.execute(text("delete from core.blob_marks where marked_at < :before"), {"before": before})


def _marks(operator: Session, blobs: Sequence[Blob]) -> dict[str, tuple[str, datetime]]:
    found: dict[str, tuple[str, datetime]] = {}
    for tenant_id, hashes in _by_tenant(blobs).items():
        rows = operator.execute(
            text(
                "select content_hash, version, marked_at from core.blob_marks "
                "where tenant_id = :tenant and content_hash = any(cast(:hashes as text[]))"
            ),
            {"tenant": tenant_id, "hashes": array_literal(hashes)},
        )
        found |= {f"{tenant_id}/{row.content_hash}": (row.version, row.marked_at) for row in rows}
    return found


def _mark(operator: Session, blob: Blob, now: datetime) -> None:
    operator.execute(
        text(
            "insert into core.blob_marks (tenant_id, content_hash, version, marked_at) values (:tenant, :hash, "
            ":version, :now) on conflict (tenant_id, content_hash) "
            "do update set version = excluded.version, marked_at = excluded.marked_at"
        ),
        {"tenant": blob.tenant_id, "hash": blob.content_hash, "version": blob.version, "now": now},
    )


def _erased_tenants(operator: Session, tenants: set[UUID]) -> set[UUID]:
    """Tenants of which nothing may be kept: a late upload's bytes need no grace."""
    rows = operator.scalars(
        text("select tenant_id from core.erasures where state = 'erased' and tenant_id = any(cast(:ids as uuid[]))"),
        {"ids": array_literal(tenants)},
    )
    return set(rows)


def _by_tenant(blobs: Iterable[Blob]) -> dict[UUID, list[str]]:
    found: dict[UUID, list[str]] = {}
    for blob in blobs:
        found.setdefault(blob.tenant_id, []).append(blob.content_hash)
    return found
