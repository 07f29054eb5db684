"""A submitted https address becomes a document: visit the page, then ingest what it holds like anything else."""

from __future__ import annotations

import contextlib
import logging
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote, urlsplit

from sqlalchemy.orm import Session

from functions.ingest.ingestion import content_hash_of, ending_overtaken, ingest_document
from shared.database import tenant_session
from shared.documents.ending import fail_version, withdraw
from shared.documents.intake import receive, version_id_of
from shared.documents.waiting import go_on, wait_for
from shared.errors import Postponed, Superseded
from shared.events import DocumentSubmitted, DocumentWithdrawn
from shared.fetching.client import Page
from shared.fetching.failures import FetchFailed
from shared.services import Services
from shared.tenants.directory import require_source
from shared.web_sources.pages import (
    SOURCE,
    WebPage,
    find_page,
    record_failure,
    record_fetched,
    set_state,
)
from shared.web_sources.visiting import visit

log = logging.getLogger(__name__)

PATIENCE = timedelta(hours=24)
"""How long an upstream system's page is tried for; a web source's page is tried for as long as the source is there."""

MISSING_TWICE = 2
"""How often in a row a page must be missing before its document is withdrawn: once may be a slip of the site."""


def is_web_address(uri: str | None) -> bool:
    """Whether the content of a submission is to be fetched from the web."""
    return uri is not None and uri.lower().startswith(("https://", "http://"))


def ingest_web_page(event: DocumentSubmitted, source: str, services: Services) -> None:
    """Fetch the page and ingest it, unless nothing changed; what went wrong is recorded on page or document.

    Raises PermanentError `source-not-bound`, Superseded, and Postponed when it is not the page's turn at its site.
    """
    assert event.uri is not None
    with tenant_session(event.tenant_id) as session:
        require_source(session, event.tenant_id, source)
        page = find_page(session, event.tenant_id, event.uri) if source == SOURCE else None
        if page is not None and page.state == "fetched" and page.document_state == "deleted":
            # Somebody deleted the document here: the web must not bring it back.
            set_state(session, event.tenant_id, page.page_id, "excluded")
            return
    if page is None and source == SOURCE:
        raise Superseded("the page is no longer part of a web source")
    try:
        found = _visit(event, source, page, services)
    except FetchFailed as failure:
        log.warning("page not fetched: %s", failure.reason)
        if page is not None:
            _page_failed(event, page, failure)
        else:
            _submission_failed(event, source, failure, services)
        return
    _take_in(event, source, page, found, services)


def _visit(event: DocumentSubmitted, source: str, page: WebPage | None, services: Services) -> Page:
    assert event.uri is not None
    try:
        return visit(
            services.web,
            event.tenant_id,
            event.uri,
            event.event_id,
            services.settings.web_sources_delay,
            etag=page.etag if page else "",
            last_modified=page.last_modified if page else "",
        )
    except Postponed as pause:
        if page is None:
            _wait_for_site(event, source, pause.until, services)
        raise


def _wait_for_site(event: DocumentSubmitted, source: str, until: datetime, services: Services) -> None:
    """Show the document and what it waits for. It holds no place among those in progress: nobody works on it."""
    with _receiving(event, source, services), tenant_session(event.tenant_id) as session:
        reception = receive(session, event, source)
        if not reception.stored:  # a redelivery may come when it waits for vectors already
            wait_for(session, event.tenant_id, reception.version_id, "site", until)


def _take_in(event: DocumentSubmitted, source: str, page: WebPage | None, found: Page, services: Services) -> None:
    content_hash = page.current_hash if page else ""
    if found.body is not None:
        content_hash = content_hash_of(event.tenant_id, source, found.body)
        if page is None or content_hash != page.current_hash:
            uri = services.storage.put(event.tenant_id, found.body)
            if page is None:
                with tenant_session(event.tenant_id) as session:
                    go_on(session, event.tenant_id, version_id_of(event, source))
            ingest_document(_submission(event, found, uri), source, services)
    if page is not None:
        with tenant_session(event.tenant_id) as session:
            there = record_fetched(
                session,
                event.tenant_id,
                page.page_id,
                content_hash=content_hash,
                etag=found.etag or (page.etag if found.body is None else ""),
                last_modified=found.last_modified or (page.last_modified if found.body is None else ""),
            )
            if not there:
                # Its source was removed while the site answered, perhaps before there was a document to take out.
                _withdraw(session, event)


def _submission(event: DocumentSubmitted, found: Page, uri: str) -> DocumentSubmitted:
    """The same submission with its content in the object store; its version stays, so a redelivery finds it."""
    name = unquote(urlsplit(found.url).path.rpartition("/")[2]).replace("\x00", "")
    name = name.encode("utf-8", "replace").decode()[-512:]
    return event.model_copy(
        update={
            "uri": uri,
            "source_version": event.version_number(),
            "file_name": event.file_name or name or "index.html",
            "media_type": event.media_type or found.media_type,
        }
    )


def _page_failed(event: DocumentSubmitted, page: WebPage, failure: FetchFailed) -> None:
    with tenant_session(event.tenant_id) as session:
        missing = record_failure(session, event.tenant_id, page.page_id, failure)
        if missing < MISSING_TWICE or page.state == "gone":
            return
        set_state(session, event.tenant_id, page.page_id, "gone")
        if page.document_state is not None:
            _withdraw(session, event)


def _withdraw(session: Session, event: DocumentSubmitted) -> None:
    gone = DocumentWithdrawn(
        tenant_id=event.tenant_id,
        traceparent=event.traceparent,
        external_id=event.external_id,
        source_version=event.version_number(),
    )
    with contextlib.suppress(Superseded):
        withdraw(session, gone, SOURCE)


def _submission_failed(event: DocumentSubmitted, source: str, failure: FetchFailed, services: Services) -> None:
    age = datetime.now(UTC) - event.occurred_at
    if failure.temporary and age < PATIENCE:
        wait = max(timedelta(seconds=max(60.0, failure.retry_after or 0)), min(age, timedelta(hours=1)))
        until = datetime.now(UTC) + wait
        _wait_for_site(event, source, until, services)
        raise Postponed(until, failure.message)
    with _receiving(event, source, services), tenant_session(event.tenant_id) as session:
        reception = receive(session, event, source)
    with tenant_session(event.tenant_id) as session:
        fail_version(session, event.tenant_id, reception.version_id, failure)


def _receiving(event: DocumentSubmitted, source: str, services: Services) -> AbstractContextManager[None]:
    return ending_overtaken(event, source, services.settings.documents_in_progress)
