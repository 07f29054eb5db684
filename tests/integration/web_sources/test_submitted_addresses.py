"""What an upstream system submits as an address is fetched under the same guard, and waits for its site in sight."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from functions.ingest.web_pages import ingest_web_page
from shared.database import tenant_session
from shared.documents.acting import as_curator
from shared.documents.cancellation import cancel_document
from shared.documents.deletion import delete_document
from shared.documents.intake import document_id_of
from shared.documents.reading import list_documents
from shared.documents.turns import NOBODY, _in_progress
from shared.errors import PermanentError, Postponed, Superseded
from shared.events import DocumentSubmitted
from shared.fakes import FakeBus
from shared.services import Services
from shared.tenants.directory import Principal
from shared.web_sources.pages import SOURCE
from tests.integration.web_sources.visits import deliver, documents, submitted
from tests.integration.web_sources.web_site import Site


def test_upstream_may_submit_an_address(reader: Principal, world: Services, bus: FakeBus, site: Site) -> None:
    """The document keeps upstream's id; its content comes from the web through the same guard."""
    ingest_web_page(submitted(reader, site.page("/a.html", "apples")), "upstream", world)
    deliver(world, bus, reader)
    row = documents(reader)["doc-1"]
    assert (row.state, row.source, row.title) == ("searchable", "upstream", "Apples")


def test_an_address_that_may_not_be_fetched_fails_the_document(
    reader: Principal, world: Services, bus: FakeBus
) -> None:
    """The document says why and what to do, and upstream is told."""
    ingest_web_page(submitted(reader, "http://169.254.169.254/latest/meta-data/"), "upstream", world)
    row = documents(reader)["doc-1"]
    assert (row.state, row.reason) == ("failed", "address-not-allowed")
    assert bus.names() == ["document-failed"]


def test_a_busy_site_is_tried_for_a_day(reader: Principal, world: Services, bus: FakeBus, site: Site) -> None:
    """429 postpones an upstream document as long as it is young; then it fails with that reason."""
    site.status["/a"] = 429
    young = submitted(reader, f"{site.url}/a")
    with pytest.raises(Postponed) as pause:
        ingest_web_page(young, "upstream", world)
    assert waits(reader) == ("received", "site", pause.value.until)
    old = young.model_copy(update={"external_id": "old", "occurred_at": datetime.now(UTC) - timedelta(days=2)})
    ingest_web_page(old, "upstream", world)
    assert (documents(reader)["old"].state, documents(reader)["old"].reason) == ("failed", "web-busy")


def waits(reader: Principal) -> tuple[str, str | None, datetime | None]:
    """The state of the only document, what it waits for and until when, as its people see it."""
    with tenant_session(reader.tenant_id) as session:
        (row,) = list_documents(session, reader)
        return row.state, row.waiting, row.waiting_until


def test_a_document_at_a_busy_site_is_seen_waiting_and_goes_on(
    reader: Principal, world: Services, bus: FakeBus, site: Site
) -> None:
    """Nobody works on it meanwhile, so it holds no place; once the site answers it waits no longer."""
    event = submitted(reader, site.page("/a", "apples"))
    site.status["/a"] = 503
    with pytest.raises(Postponed):
        ingest_web_page(event, "upstream", world)
    assert waits(reader)[:2] == ("received", "site")
    with tenant_session(reader.tenant_id) as session:
        assert _in_progress(session, reader.tenant_id, NOBODY) == 0
    del site.status["/a"]
    ingest_web_page(event, "upstream", world)
    assert waits(reader) == ("ingested", None, None)
    site.status["/a"] = 503
    with pytest.raises(Postponed):
        ingest_web_page(event, "upstream", world)  # delivered again
    assert waits(reader) == ("ingested", None, None)
    deliver(world, bus, reader)
    assert waits(reader) == ("searchable", None, None)


def test_what_waits_for_a_site_can_be_cancelled_deleted_or_overtaken(
    reader: Principal, world: Services, bus: FakeBus, site: Site
) -> None:
    """Its message finds that it has ended, and fetches nothing into the document any more."""
    address = site.page("/a", "apples")
    site.status["/a"] = 503

    def waiting(version: int) -> DocumentSubmitted:
        event = submitted(reader, address, source_version=version)
        with pytest.raises(Postponed):
            ingest_web_page(event, "upstream", world)
        return event

    cancelled = waiting(1)
    document = document_id_of(reader.tenant_id, "upstream", "doc-1")
    with tenant_session(reader.tenant_id) as session:
        assert cancel_document(session, reader.tenant_id, document) == 1
    overtaken, newest = waiting(2), waiting(3)
    with pytest.raises(Superseded):
        ingest_web_page(overtaken, "upstream", world)
    del site.status["/a"]
    for event in (cancelled, overtaken):
        with pytest.raises(Superseded):
            ingest_web_page(event, "upstream", world)
    with tenant_session(reader.tenant_id) as session:
        states = session.execute(
            text("select state from rag.versions where tenant_id = :t order by source_version"), {"t": reader.tenant_id}
        ).scalars()
        assert list(states) == ["failed", "superseded", "received"]
        delete_document(session, as_curator(reader), document)
    with pytest.raises(Superseded):
        ingest_web_page(newest, "upstream", world)
    assert documents(reader)["doc-1"].state == "deleted"


def test_a_tenant_that_is_not_bound_fetches_nothing(
    tenant: Principal, world: Services, bus: FakeBus, site: Site
) -> None:
    """The binding is asked before the web is."""
    with pytest.raises(PermanentError, match="may not speak"):
        ingest_web_page(submitted(tenant, site.page("/a", "apples")), SOURCE, world)
    assert site.asked == []
