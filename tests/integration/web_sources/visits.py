"""What a tenant does with web sources, and what it finds there afterwards."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text

from functions.embed.embedding import embed_chunks
from functions.ingest.web_pages import ingest_web_page
from functions.maintenance.running import run_job
from shared.database import operator_session, tenant_session
from shared.documents.intake import document_id_of
from shared.errors import NoesisError, Postponed, Superseded
from shared.events import DocumentSubmitted, EmbedChunks, RunJob, decode
from shared.fakes import FakeBus
from shared.fetching.addresses import check_url
from shared.services import Services
from shared.tenants.directory import Principal
from shared.web_sources.pages import SOURCE, add_pages
from shared.web_sources.sources import add_source, refresh_source


def add(reader: Principal, world: Services, url: str, kind: str = "page") -> UUID:
    """Add a web source like the command does."""
    target = check_url(url, world.web.allowed)
    with tenant_session(reader.tenant_id) as session:
        found = add_source(
            session, reader.tenant_id, target, kind, collection="default", refresh_every=timedelta(days=1)
        )
        if kind == "page":
            add_pages(
                session, reader.tenant_id, found, [(target, document_id_of(reader.tenant_id, SOURCE, target.url))], 1
            )
    return found


def run(world: Services) -> None:
    """One run of the job."""
    run_job(RunJob(job="refresh-web-sources", slot=datetime.now(UTC)), world)


def deliver(world: Services, bus: FakeBus, tenant: Principal) -> list[NoesisError]:
    """Everything on the bus goes to its function, until nothing is left; returns what stopped early."""
    stopped: list[NoesisError] = []
    while bus.published:
        outgoing = bus.published.pop(0)
        message = decode(outgoing.data.encode(), outgoing.attributes)
        if outgoing.tenant_id != tenant.tenant_id:
            continue
        try:
            if isinstance(message, DocumentSubmitted):
                ingest_web_page(message, outgoing.topic.removeprefix("documents-"), world)
            elif isinstance(message, EmbedChunks):
                embed_chunks(message, world)
        except (Postponed, Superseded) as early:
            stopped.append(early)
    return stopped


def visit_all(world: Services, bus: FakeBus, reader: Principal, *, rounds: int = 1) -> list[NoesisError]:
    """Sitemaps are read, pages ordered, fetched and embedded."""
    stopped = []
    for _ in range(rounds):
        run(world)
        stopped += deliver(world, bus, reader)
    return stopped


def make_due(reader: Principal, url: str, *, again: bool = False) -> None:
    """The next visit has come."""
    with tenant_session(reader.tenant_id) as session:
        refresh_source(session, reader.tenant_id, url, again=again)


def documents(reader: Principal) -> dict[str, Any]:
    """The tenant's documents by external id, with versions and chunks of each."""
    with operator_session() as session:
        rows = session.execute(
            text(
                "select d.external_id, d.state, d.reason, d.title, d.source, "
                "(select count(*) from rag.versions v where v.document_id = d.document_id) as versions, "
                "(select count(*) from rag.chunks c where c.document_id = d.document_id) as chunks, "
                "(select min(c.text) from rag.chunks c where c.version_id = d.current_version_id) as text "
                "from rag.documents d where d.tenant_id = :t order by d.external_id"
            ),
            {"t": reader.tenant_id},
        )
        return {row.external_id: row for row in rows}


def pages(reader: Principal) -> dict[str, Any]:
    """The tenant's web pages by address."""
    with operator_session() as session:
        rows = session.execute(
            text(
                "select url, state, reason, message, next_action, missing, next_fetch_at > now() as later "
                "from core.web_pages where tenant_id = :t"
            ),
            {"t": reader.tenant_id},
        )
        return {row.url: row for row in rows}


def submitted(reader: Principal, uri: str, **more: Any) -> DocumentSubmitted:
    """An upstream system's document that lies on the web."""
    return DocumentSubmitted(tenant_id=reader.tenant_id, external_id="doc-1", uri=uri, **more)
