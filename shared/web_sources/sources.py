"""Web sources as people know them: a page or a sitemap, added, listed, refreshed, removed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal, write_one
from shared.errors import PermanentError
from shared.events import COLLECTION_NAME
from shared.fetching.addresses import Target
from shared.fetching.failures import FetchFailed
from shared.web_sources.pages import FIRST_RETRY, MAX_PAGES, MAX_URL

MAX_SITEMAPS = 1_000
"""Sitemaps of one index."""

MIN_REFRESH = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class WebSource:
    """A web source with what became of its pages."""

    web_source_id: UUID
    url: str
    kind: str
    collection: str
    refresh_every: timedelta
    next_fetch_at: datetime
    pages: int
    fetched: int
    failed: int
    gone: int
    reason: str | None
    message: str | None
    next_action: str | None


@dataclass(frozen=True, slots=True)
class DueSitemap:
    """A sitemap whose time has come. `root_id` is what a person added: itself, or the index it is in."""

    tenant_id: UUID
    web_source_id: UUID
    root_id: UUID
    url: str
    etag: str
    last_modified: str
    key: UUID
    """Of its turn at the site; the same until it has been read."""


def web_source_id_of(tenant_id: UUID, url: str) -> UUID:
    """The id of a web source follows from its URL."""
    return uuid5(tenant_id, f"web-source:{url}")


def add_source(
    session: Session, tenant_id: UUID, target: Target, kind: str, *, collection: str, refresh_every: timedelta
) -> UUID:
    """Add a page or a sitemap, or change collection and interval of a known one. Raises PermanentError."""
    if len(target.url) > MAX_URL:
        raise PermanentError("url-not-allowed", f"The URL is longer than {MAX_URL} characters.", "Give a shorter one.")
    if not re.fullmatch(COLLECTION_NAME, collection):
        # Every page of it would be refused where it is ordered, together with what is ordered with it.
        raise PermanentError(
            "bad-collection",
            "The name of the collection is not lower-case letters, digits and hyphens, at most 63.",
            "Name another collection.",
        )
    if refresh_every < MIN_REFRESH:
        raise PermanentError("too-often", "A page is fetched at most every ten minutes.", "Give a longer interval.")
    web_source_id: UUID = session.execute(
        text(
            "insert into core.web_sources (tenant_id, web_source_id, url, kind, collection, refresh_every) "
            "values (:tenant, :id, :url, :kind, :collection, :every) on conflict (tenant_id, url) do update "
            "set collection = excluded.collection, refresh_every = excluded.refresh_every, kind = excluded.kind, "
            "parent_id = null, next_fetch_at = now() returning web_source_id"
        ),
        {
            "tenant": tenant_id,
            "id": web_source_id_of(tenant_id, target.url),
            "url": target.url,
            "kind": kind,
            "collection": collection,
            "every": refresh_every,
        },
    ).scalar_one()
    return web_source_id


def add_children(session: Session, parent: DueSitemap, urls: tuple[str, ...]) -> int:
    """Add the sitemaps that an index names; they follow its collection and interval. Returns how many are new."""
    if parent.root_id != parent.web_source_id:
        return 0  # an index inside an index is against the protocol, and could go on for ever
    added = session.execute(
        text(
            "insert into core.web_sources (tenant_id, web_source_id, parent_id, url, kind, collection, refresh_every) "
            "select s.tenant_id, u.id, s.web_source_id, u.url, 'sitemap', s.collection, s.refresh_every "
            "from core.web_sources s, unnest(cast(:ids as uuid[]), cast(:urls as text[])) as u (id, url) "
            "where s.tenant_id = :tenant and s.web_source_id = :parent on conflict do nothing"
        ),
        {
            "tenant": parent.tenant_id,
            "parent": parent.web_source_id,
            "ids": array_literal(web_source_id_of(parent.tenant_id, url) for url in urls[:MAX_SITEMAPS]),
            "urls": array_literal(urls[:MAX_SITEMAPS]),
        },
    )
    return int(added.rowcount)  # type: ignore[attr-defined]


def due_sitemaps(operator: Session, limit: int) -> list[DueSitemap]:
    """Sitemaps of all tenants to read now, longest due first."""
    rows = operator.execute(
        text(
            "select tenant_id, web_source_id, parent_id, url, etag, last_modified, fetched_at, failures "
            "from core.web_sources where kind = 'sitemap' and next_fetch_at <= now() "
            "order by next_fetch_at, web_source_id limit :limit"
        ),
        {"limit": limit},
    )
    return [
        DueSitemap(
            row.tenant_id,
            row.web_source_id,
            row.parent_id or row.web_source_id,
            row.url,
            row.etag,
            row.last_modified,
            uuid5(row.web_source_id, f"{row.fetched_at}:{row.failures}"),
        )
        for row in rows
    ]


def room_for_pages(session: Session, sitemap: DueSitemap) -> int:
    """How many more pages the source of a sitemap may have."""
    count: int = session.execute(
        text(
            "select count(*) from core.web_pages p join core.web_sources s "
            "on s.tenant_id = p.tenant_id and s.web_source_id = p.web_source_id "
            "where p.tenant_id = :tenant and (s.web_source_id = :root or s.parent_id = :root)"
        ),
        {"tenant": sitemap.tenant_id, "root": sitemap.root_id},
    ).scalar_one()
    return MAX_PAGES - count


def record_read(session: Session, sitemap: DueSitemap, etag: str, last_modified: str, left_out: int | None) -> None:
    """The sitemap was read; `left_out` addresses were refused, elsewhere or too many, and people are told.

    None: it has not changed, so what was said about it still holds.
    """
    session.execute(
        text(
            "update core.web_sources set fetched_at = now(), next_fetch_at = now() + refresh_every, failures = 0, "
            "etag = :etag, last_modified = :last_modified, "
            "reason = case when :read or failures > 0 then :reason else reason end, "
            "message = case when :read or failures > 0 then :message else message end, "
            "next_action = case when :read or failures > 0 then :next_action else next_action end "
            "where tenant_id = :tenant and web_source_id = :id"
        ),
        {
            "tenant": sitemap.tenant_id,
            "id": sitemap.web_source_id,
            "etag": etag,
            "last_modified": last_modified,
            "read": left_out is not None,
            "reason": "addresses-left-out" if left_out else None,
            "message": f"{left_out} addresses were left out." if left_out else None,
            "next_action": "Only pages of the sitemap's own host count, 50,000 at most." if left_out else None,
        },
    )


def record_unread(session: Session, sitemap: DueSitemap, failure: FetchFailed) -> None:
    """Write down why a sitemap was not read and when it is tried again; its known pages go on."""
    session.execute(
        text(
            "update core.web_sources set reason = :reason, message = :message, next_action = :next_action, "
            "failures = failures + 1, next_fetch_at = now() + case when :temporary "
            "then greatest(cast(:retry_after as interval), "
            "least(refresh_every, cast(:first as interval) * power(2, least(failures, 12)))) else refresh_every end "
            "where tenant_id = :tenant and web_source_id = :id"
        ),
        {
            "tenant": sitemap.tenant_id,
            "id": sitemap.web_source_id,
            "reason": failure.reason,
            "message": failure.message,
            "next_action": failure.next_action,
            "temporary": failure.temporary,
            "retry_after": timedelta(seconds=failure.retry_after or 0),
            "first": FIRST_RETRY,
        },
    )


def postpone(session: Session, sitemap: DueSitemap, until: datetime) -> None:
    """It is not the sitemap's turn at its site yet."""
    session.execute(
        text("update core.web_sources set next_fetch_at = :until where tenant_id = :tenant and web_source_id = :id"),
        {"until": until, "tenant": sitemap.tenant_id, "id": sitemap.web_source_id},
    )


def list_sources(session: Session, tenant_id: UUID) -> list[WebSource]:
    """The web sources of a tenant by URL, with the sitemaps of an index below it."""
    rows = session.execute(
        text(
            "select s.web_source_id, s.url, s.kind, s.collection, s.refresh_every, s.next_fetch_at, "
            "count(p.page_id) as pages, count(*) filter (where p.state = 'fetched') as fetched, "
            "count(*) filter (where p.reason is not null and p.state <> 'gone') as failed, "
            "count(*) filter (where p.state = 'gone') as gone, "
            "coalesce(s.reason, min(f.reason)) as reason, coalesce(s.message, min(f.message)) as message, "
            "coalesce(s.next_action, min(f.next_action)) as next_action "
            "from core.web_sources s left join core.web_pages p "
            "on p.tenant_id = s.tenant_id and p.web_source_id = s.web_source_id "
            # One failed page stands for all in the list.
            "left join lateral (select reason, message, next_action from core.web_pages x "
            "where x.tenant_id = s.tenant_id and x.web_source_id = s.web_source_id and x.reason is not null "
            "order by x.page_id limit 1) f on true "
            "where s.tenant_id = :tenant group by s.tenant_id, s.web_source_id order by s.url"
        ),
        {"tenant": tenant_id},
    )
    return [WebSource(*row) for row in rows]


def refresh_source(session: Session, tenant_id: UUID, url: str, *, again: bool = False) -> int:
    """Make a source and all its pages due now; returns how many pages. `again` also takes up what was excluded.

    Raises PermanentError `unknown-web-source`.
    """
    root = _require(session, tenant_id, url)
    ids = {"tenant": tenant_id, "root": root, "again": again}
    session.execute(
        text(
            "update core.web_sources set next_fetch_at = now() "
            "where tenant_id = :tenant and (web_source_id = :root or parent_id = :root)"
        ),
        ids,
    )
    changed = session.execute(
        text(
            "update core.web_pages p set next_fetch_at = now(), "
            "state = case when :again and p.state = 'excluded' then 'new' else p.state end from core.web_sources s "
            "where p.tenant_id = :tenant and s.tenant_id = p.tenant_id and s.web_source_id = p.web_source_id "
            "and (s.web_source_id = :root or s.parent_id = :root)"
        ),
        ids,
    )
    return int(changed.rowcount)  # type: ignore[attr-defined]


def pages_of(session: Session, tenant_id: UUID, url: str, limit: int) -> list[tuple[str, bool]]:
    """URLs of a source's pages, its sitemaps' included, and whether a document came of them.

    Raises PermanentError `unknown-web-source`.
    """
    root = _require(session, tenant_id, url)
    rows = session.execute(
        text(
            "select p.url, exists (select from rag.documents d where d.tenant_id = p.tenant_id "
            "and d.document_id = p.document_id) as known from core.web_pages p join core.web_sources s "
            "on s.tenant_id = p.tenant_id and s.web_source_id = p.web_source_id "
            "where p.tenant_id = :tenant and (s.web_source_id = :root or s.parent_id = :root) "
            "order by p.url limit :limit"
        ),
        {"tenant": tenant_id, "root": root, "limit": limit},
    )
    return [(row.url, row.known) for row in rows]


def forget_page(session: Session, tenant_id: UUID, url: str) -> None:
    """Take a page out of its source; its document is the caller's to withdraw, in the same transaction."""
    session.execute(
        text("delete from core.web_pages where tenant_id = :tenant and url = :url"), {"tenant": tenant_id, "url": url}
    )


def forget_source(session: Session, tenant_id: UUID, url: str) -> None:
    """Remove a source and the sitemaps below it. Raises PermanentError `unknown-web-source`."""
    root = _require(session, tenant_id, url)
    write_one(
        session,
        "delete from core.web_sources where tenant_id = :tenant and web_source_id = :root",
        {"tenant": tenant_id, "root": root},
    )


def _require(session: Session, tenant_id: UUID, url: str) -> UUID:
    found = session.execute(
        text("select web_source_id from core.web_sources where tenant_id = :tenant and url = :url"),
        {"tenant": tenant_id, "url": url},
    ).scalar()
    if found is None:
        raise PermanentError(
            "unknown-web-source", "The tenant has no such web source.", "See `noesis web-sources list`."
        )
    assert isinstance(found, UUID)
    return found
