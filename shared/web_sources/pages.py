"""The pages and sitemaps of a tenant: which are due, what is known of them, what became of a fetch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal, copy_rows, write_one
from shared.fetching.addresses import Target
from shared.fetching.failures import FetchFailed

SOURCE = "web-pages"
"""The source that web pages are documents of; it has a topic and must be bound to the tenant like any other."""

MAX_PAGES = 50_000
"""Pages of one web source, with all sitemaps of an index together."""

MAX_URL = 512
"""A page's URL is its document's external id, which is no longer than this."""

IN_HAND = timedelta(hours=2)
"""How long a fetch that was ordered may take before it is ordered again: longer than a site's longest queue."""

FIRST_RETRY = timedelta(minutes=5)
"""After a temporary failure; doubled with each further one, up to the page's own interval."""


@dataclass(frozen=True, slots=True)
class WebPage:
    """A page before it is fetched. Validators are empty unless the content they belong to is what answers."""

    page_id: UUID
    state: str
    document_state: str | None
    current_hash: str
    """Content hash of what the document answers with; empty when it does not."""
    etag: str
    last_modified: str


def page_id_of(tenant_id: UUID, url: str) -> UUID:
    """The id of a page follows from its URL."""
    return uuid5(tenant_id, f"web-page:{url}")


def add_pages(
    session: Session, tenant_id: UUID, web_source_id: UUID, documents: Iterable[tuple[Target, UUID]], room: int
) -> int:
    """Add pages (with their documents' ids) that the tenant does not have yet, at most `room`; returns how many."""
    rows = [
        (tenant_id, page_id_of(tenant_id, target.url), web_source_id, target.url, target.origin, document_id)
        for target, document_id in documents
        if len(target.url) <= MAX_URL
    ]
    known = set(
        session.execute(
            text(
                "select page_id from core.web_pages where tenant_id = :tenant and page_id = any(cast(:ids as uuid[]))"
            ),
            {"tenant": tenant_id, "ids": array_literal(row[1] for row in rows)},
        ).scalars()
    )
    new = [row for row in rows if row[1] not in known][: max(0, room)]
    columns = ("tenant_id", "page_id", "web_source_id", "url", "origin", "document_id")
    return copy_rows(session, "core.web_pages", columns, new)


def find_page(session: Session, tenant_id: UUID, url: str) -> WebPage | None:
    """What is known of a page; None when no web source of the tenant has it (any more)."""
    row = session.execute(
        text(
            "select p.page_id, p.state, p.etag, p.last_modified, p.content_hash, d.state as document_state, "
            "coalesce(v.content_hash, '') as current_hash from core.web_pages p "
            "left join rag.documents d on d.tenant_id = p.tenant_id and d.document_id = p.document_id "
            "left join rag.versions v on v.tenant_id = d.tenant_id and v.version_id = d.current_version_id "
            "where p.tenant_id = :tenant and p.page_id = :page"
        ),
        {"tenant": tenant_id, "page": page_id_of(tenant_id, url)},
    ).first()
    if row is None:
        return None
    # A version that failed or was never finished must be fetched whole: 304 would leave it like that for ever.
    same = bool(row.current_hash) and row.current_hash == row.content_hash
    return WebPage(
        row.page_id,
        row.state,
        row.document_state,
        row.current_hash,
        row.etag if same else "",
        row.last_modified if same else "",
    )


_SCHEDULE = (
    "from core.web_sources s where p.tenant_id = :tenant and p.page_id = :page "
    "and s.tenant_id = p.tenant_id and s.web_source_id = p.web_source_id"
)


def record_fetched(
    session: Session, tenant_id: UUID, page_id: UUID, *, content_hash: str, etag: str, last_modified: str
) -> bool:
    """The page was read; it is due again after its source's interval. False for one that was removed meanwhile."""
    written = session.execute(
        text(
            "update core.web_pages p set state = 'fetched', content_hash = :hash, etag = :etag, "
            "last_modified = :last_modified, missing = 0, failures = 0, reason = null, message = null, "
            f"next_action = null, fetched_at = now(), next_fetch_at = now() + s.refresh_every {_SCHEDULE}"
        ),
        {
            "tenant": tenant_id,
            "page": page_id,
            "hash": content_hash,
            "etag": etag,
            "last_modified": last_modified,
        },
    )
    return bool(written.rowcount)  # type: ignore[attr-defined]


def record_failure(session: Session, tenant_id: UUID, page_id: UUID, failure: FetchFailed) -> int:
    """Write down why a page was not read and when it is tried again; returns how often in a row it was missing."""
    row = session.execute(
        text(
            "update core.web_pages p set reason = :reason, message = :message, next_action = :next_action, "
            "missing = case when :absent then p.missing + 1 else 0 end, failures = p.failures + 1, "
            "state = case when p.state in ('new', 'failed') then 'failed' else p.state end, "
            "next_fetch_at = now() + case when :temporary then greatest(cast(:retry_after as interval), "
            "least(s.refresh_every, cast(:first as interval) * power(2, least(p.failures, 12)))) "
            f"else s.refresh_every end {_SCHEDULE} returning p.missing"
        ),
        _why(failure) | {"tenant": tenant_id, "page": page_id, "absent": failure.reason == "page-missing"},
    ).first()
    return 0 if row is None else int(row.missing)


def _why(failure: FetchFailed) -> dict[str, object]:
    return {
        "reason": failure.reason,
        "message": failure.message,
        "next_action": failure.next_action,
        "temporary": failure.temporary,
        "retry_after": timedelta(seconds=failure.retry_after or 0),
        "first": FIRST_RETRY,
    }


def set_state(session: Session, tenant_id: UUID, page_id: UUID, state: str) -> None:
    """Mark a page `gone` or `excluded`. Raises LostWrite when it is not there."""
    write_one(
        session,
        "update core.web_pages set state = :state where tenant_id = :tenant and page_id = :page",
        {"tenant": tenant_id, "page": page_id, "state": state},
    )


@dataclass(frozen=True, slots=True)
class DuePage:
    """A page whose time has come."""

    tenant_id: UUID
    page_id: UUID


def due_pages(operator: Session, delay: float, limit: int) -> list[DuePage]:
    """Pages of all tenants to order now, longest due first: of each site about what it bears in a minute.

    A site whose queue reaches further than a minute already gets nothing more, so a huge sitemap waits here, where
    a removal still finds it, and not as thousands of messages.
    """
    rows = operator.execute(
        text(
            "select tenant_id, page_id from (select p.tenant_id, p.page_id, p.next_fetch_at, "
            "row_number() over (partition by p.origin order by p.next_fetch_at, p.page_id) as number, "
            "greatest(coalesce(h.crawl_delay, 0), :delay, 0.1) as delay from core.web_pages p "
            "left join core.web_hosts h on h.origin = p.origin "
            "where p.state <> 'excluded' and p.next_fetch_at <= now() "
            "and coalesce(h.next_turn_at, now()) <= now() + interval '1 minute') due "
            "where number <= greatest(1, 60 / delay) order by next_fetch_at, page_id limit :limit"
        ),
        {"delay": delay, "limit": limit},
    )
    return [DuePage(row.tenant_id, row.page_id) for row in rows]


@dataclass(frozen=True, slots=True)
class Order:
    """A page that is to be fetched now; `turn` tells this fetch from the one before."""

    page_id: UUID
    url: str
    collection: str
    turn: str


def order_pages(session: Session, tenant_id: UUID, page_ids: Iterable[UUID]) -> list[Order]:
    """Take due pages of a tenant in hand: nobody else orders them, and a lost fetch is ordered again in two hours."""
    rows = session.execute(
        text(
            "update core.web_pages p set next_fetch_at = now() + :in_hand from core.web_sources s "
            "where p.tenant_id = :tenant and p.page_id = any(cast(:ids as uuid[])) and p.next_fetch_at <= now() "
            "and p.state <> 'excluded' and s.tenant_id = p.tenant_id and s.web_source_id = p.web_source_id "
            "returning p.page_id, p.url, s.collection, p.next_fetch_at"
        ),
        {"tenant": tenant_id, "ids": array_literal(page_ids), "in_hand": IN_HAND},
    )
    return [Order(row.page_id, row.url, row.collection, row.next_fetch_at.isoformat()) for row in rows]
