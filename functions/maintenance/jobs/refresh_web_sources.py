"""Every minute: sitemaps that are due are read, pages that are due are ordered, each site at its own pace."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid5

from pydantic import ValidationError
from sqlalchemy.orm import Session

from shared.database import operator_session, tenant_session
from shared.documents.intake import document_id_of
from shared.errors import Postponed
from shared.events import DocumentSubmitted
from shared.fetching.addresses import check_url
from shared.fetching.failures import FetchFailed
from shared.fetching.sitemaps import Sitemap, read_sitemap
from shared.jobs.leases import Lease, Progress
from shared.messaging import publish
from shared.services import Services
from shared.web_sources.pages import SOURCE, DuePage, Order, add_pages, due_pages, order_pages
from shared.web_sources.sources import (
    DueSitemap,
    add_children,
    due_sitemaps,
    postpone,
    record_read,
    record_unread,
    room_for_pages,
)
from shared.web_sources.visiting import visit

log = logging.getLogger(__name__)

SITEMAPS = 20
"""Read in a run; the next one is a minute away."""

PAGES = 2_000
"""Ordered in a run, at most 60 of a site."""

SLICE = 100

IN_HAND = timedelta(minutes=15)
"""When a sitemap is read again if nothing is heard of its reading: longer than any."""

TOPIC = f"documents-{SOURCE}"


def run(lease: Lease, services: Services) -> Iterator[Progress]:
    """Read sitemaps, order pages. Repeating any of it is harmless, so nothing is fenced."""
    counts = {"sitemaps": 0, "added": 0, "unread": 0, "pages": 0}
    with operator_session() as session:
        sitemaps = due_sitemaps(session, SITEMAPS)
    for number, sitemap in enumerate(sitemaps):
        yield Progress(number, None, counts)
        _read(sitemap, services, counts)
    with operator_session() as session:
        due = due_pages(session, services.settings.web_sources_delay, PAGES)
    for begin in range(0, len(due), SLICE):
        yield Progress(len(sitemaps) + begin, len(sitemaps) + len(due), counts)
        counts["pages"] += _order(due[begin : begin + SLICE])
    yield Progress(len(sitemaps) + len(due), len(sitemaps) + len(due), counts)


def _read(sitemap: DueSitemap, services: Services, counts: dict[str, int]) -> None:
    delay = services.settings.web_sources_delay
    with tenant_session(sitemap.tenant_id) as session:
        # One that kills whoever reads it must not be the first of the next run too, and keep all others waiting.
        postpone(session, sitemap, datetime.now(UTC) + IN_HAND)
    try:
        page = visit(
            services.web,
            sitemap.tenant_id,
            sitemap.url,
            sitemap.key,
            delay,
            etag=sitemap.etag,
            last_modified=sitemap.last_modified,
        )
        found = read_sitemap(page.body, page.url, services.web.allowed) if page.body is not None else None
    except Postponed as pause:
        with tenant_session(sitemap.tenant_id) as session:
            postpone(session, sitemap, pause.until)
        return
    except FetchFailed as failure:
        log.warning("sitemap not read: %s", failure.reason)
        with tenant_session(sitemap.tenant_id) as session:
            record_unread(session, sitemap, failure)
        counts["unread"] += 1
        return
    with tenant_session(sitemap.tenant_id) as session:
        if found is None:
            record_read(session, sitemap, sitemap.etag, sitemap.last_modified, None)
        else:
            counts["added"] += _add(session, sitemap, found, services)
            record_read(session, sitemap, page.etag, page.last_modified, found.left_out)
    counts["sitemaps"] += 1


def _add(session: Session, sitemap: DueSitemap, found: Sitemap, services: Services) -> int:
    tenant_id, allowed = sitemap.tenant_id, services.web.allowed
    add_children(session, sitemap, found.sitemaps)
    pages = ((check_url(url, allowed), document_id_of(tenant_id, SOURCE, url)) for url in found.pages)
    return add_pages(session, tenant_id, sitemap.web_source_id, pages, room_for_pages(session, sitemap))


def _order(due: list[DuePage]) -> int:
    """Send the pages to ingest, a tenant in a transaction: a page is marked as ordered only with its message."""
    count = 0
    by_tenant: dict[UUID, list[UUID]] = {}
    for page in due:
        by_tenant.setdefault(page.tenant_id, []).append(page.page_id)
    for tenant_id, page_ids in by_tenant.items():
        with tenant_session(tenant_id) as session:
            for order in order_pages(session, tenant_id, page_ids):
                event = _submission(tenant_id, order)
                if event is not None:
                    publish(session, event, topic=TOPIC)
                    count += 1
    return count


def _submission(tenant_id: UUID, order: Order) -> DocumentSubmitted | None:
    """The message for a page; None for a row that makes none: it must not keep everybody else's pages waiting."""
    try:
        return DocumentSubmitted(
            event_id=uuid5(order.page_id, order.turn),
            tenant_id=tenant_id,
            external_id=order.url,
            uri=order.url,
            collection=order.collection,
        )
    except ValidationError as refused:
        fields = ", ".join(str(problem["loc"][0]) for problem in refused.errors(include_input=False))
        log.error("page %s not ordered, its row is not valid: %s", order.page_id, fields)
        return None
