"""Pages of the web become documents, each once, and never bring back what is gone."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from cli.web_sources import web_sources
from functions.ingest import web_pages
from functions.ingest.web_pages import ingest_web_page
from functions.maintenance.archiving import archive_exhausted
from shared.database import operator_session, tenant_session
from shared.documents.ending import withdraw
from shared.doors import Delivery
from shared.errors import PermanentError, Postponed
from shared.events import DocumentSubmitted, DocumentWithdrawn
from shared.fakes import FakeBus, FakeModels, FakeStorage
from shared.services import Services
from shared.settings import get_settings
from shared.tenants.directory import Principal
from shared.web_sources.pages import SOURCE
from shared.web_sources.sources import forget_page, forget_source
from shared.web_sources.visiting import visit
from tests.integration.web_sources.visits import add, deliver, documents, make_due, pages, run, submitted, visit_all
from tests.integration.web_sources.web_site import Site


def test_what_did_not_change_costs_nothing(reader: Principal, world: Services, bus: FakeBus, site: Site) -> None:
    """A second visit asks with the ETag, gets 304, and writes no version, no chunk, no vector."""
    url = site.page("/a", "apples")
    add(reader, world, url)
    visit_all(world, bus, reader)
    before, models = documents(reader), world.models
    assert isinstance(models, FakeModels)
    assert isinstance(world.storage, FakeStorage)
    paid, blobs = len(models.embedded), len(world.storage.blobs_by_key)
    make_due(reader, url)
    visit_all(world, bus, reader)
    assert site.asked.count("/a") == 2
    assert documents(reader) == before
    assert (len(models.embedded), len(world.storage.blobs_by_key)) == (paid, blobs)
    assert pages(reader)[url].later


def test_the_same_bytes_without_validators_write_nothing(
    reader: Principal, world: Services, bus: FakeBus, site: Site
) -> None:
    """A site that knows no ETag: the content is compared, and no version is made."""
    url = site.page("/a", "apples")
    add(reader, world, url)
    visit_all(world, bus, reader)
    before = documents(reader)
    with operator_session() as session:
        session.execute(text("update core.web_pages set etag = '', last_modified = '', next_fetch_at = now()"))
    visit_all(world, bus, reader)
    assert site.asked.count("/a") == 2
    assert documents(reader) == before


@pytest.mark.parametrize("page", ["new", "known", "gone"])
def test_a_visit_that_fails_on_every_delivery_fails_only_a_page_that_is_awaited(
    page: str, reader: Principal, world: Services, bus: FakeBus, site: Site
) -> None:
    """One without a document yet; what answers already stays as it is, and what left its source makes no document."""
    url = site.page("/a", "apples")
    if page != "gone":
        add(reader, world, url)
    if page == "known":
        visit_all(world, bus, reader)
    before = documents(reader)
    event = DocumentSubmitted(tenant_id=reader.tenant_id, external_id=url, uri=url)
    origin = {"CloudPubSubDeadLetterSourceSubscription": f"ingest-{SOURCE}"}
    archive_exhausted(
        Delivery(uuid4().hex, event.data(), event.attributes() | origin, "dead-letter-archive", "/dead-letters")
    )
    after = documents(reader)
    if page == "new":
        assert (after[url].state, after[url].reason) == ("failed", "attempts-exhausted")
        make_due(reader, url)
        visit_all(world, bus, reader)
        assert documents(reader)[url].state == "searchable"
    else:
        assert after == before


def test_a_changed_page_is_a_new_version(reader: Principal, world: Services, bus: FakeBus, site: Site) -> None:
    """The old text goes when the new one is searchable."""
    url = site.page("/a", "apples")
    add(reader, world, url)
    visit_all(world, bus, reader)
    site.page("/a", "oranges")
    make_due(reader, url)
    visit_all(world, bus, reader)
    row = documents(reader)[url]
    assert (row.state, row.versions) == ("searchable", 2)
    assert "oranges" in row.text


def test_a_visit_that_is_repeated_finds_its_version(
    reader: Principal, world: Services, bus: FakeBus, site: Site
) -> None:
    """Delivered three times: one version, its chunks once, its texts paid for once."""
    url = site.page("/a", "apples")
    add(reader, world, url)
    run(world)
    orders = [m for m in bus.published if m.tenant_id == reader.tenant_id]
    assert len(orders) == 1
    bus.published.extend(orders * 2)
    deliver(world, bus, reader)
    row = documents(reader)[url]
    assert (row.state, row.versions) == ("searchable", 1)
    assert isinstance(world.models, FakeModels)
    assert len(world.models.embedded) == row.chunks


def test_a_page_missing_twice_is_withdrawn_and_may_come_back(
    reader: Principal, world: Services, bus: FakeBus, site: Site
) -> None:
    """Once may be a slip; the second 404 takes the document out; when the page is there again, so is the document."""
    url = site.page("/a", "apples")
    add(reader, world, url)
    visit_all(world, bus, reader)
    body = site.pages.pop("/a")
    make_due(reader, url)
    visit_all(world, bus, reader)
    assert (documents(reader)[url].state, pages(reader)[url].missing) == ("searchable", 1)
    make_due(reader, url)
    visit_all(world, bus, reader)
    assert (documents(reader)[url].state, pages(reader)[url].state) == ("deleted", "gone")
    assert pages(reader)[url].reason == "page-missing"
    site.pages["/a"] = body
    make_due(reader, url)
    visit_all(world, bus, reader)
    assert (documents(reader)[url].state, pages(reader)[url].state) == ("searchable", "fetched")


def test_what_people_deleted_stays_deleted(reader: Principal, world: Services, bus: FakeBus, site: Site) -> None:
    """The document was deleted here: the page is not even asked for, until somebody says so."""
    url = site.page("/a", "apples")
    add(reader, world, url)
    visit_all(world, bus, reader)
    with tenant_session(reader.tenant_id) as session:
        withdraw(session, DocumentWithdrawn(tenant_id=reader.tenant_id, external_id=url), SOURCE)
    for _ in range(2):
        make_due(reader, url)
        visit_all(world, bus, reader)
    assert site.asked.count("/a") == 1
    assert (documents(reader)[url].state, pages(reader)[url].state) == ("deleted", "excluded")
    make_due(reader, url, again=True)
    visit_all(world, bus, reader)
    assert documents(reader)[url].state == "searchable"


@pytest.mark.parametrize("kind", ["page", "submitted"])
def test_a_site_that_says_unchanged_without_being_asked_is_tried_again(
    reader: Principal, world: Services, bus: FakeBus, site: Site, kind: str
) -> None:
    """304 to a request without conditions: the document is not taken for read, and comes when the site is mended."""
    url = site.page("/a", "apples")
    site.status["/a"] = 304
    if kind == "page":
        add(reader, world, url)
        visit_all(world, bus, reader)
        assert (pages(reader)[url].state, pages(reader)[url].reason) == ("failed", "web-unreachable")
        assert pages(reader)[url].next_action
        make_due(reader, url)
    else:
        with pytest.raises(Postponed):
            ingest_web_page(submitted(reader, url), "upstream", world)
    del site.status["/a"]
    if kind == "page":
        visit_all(world, bus, reader)
    else:
        ingest_web_page(submitted(reader, url), "upstream", world)
        deliver(world, bus, reader)
    assert {row.state for row in documents(reader).values()} == {"searchable"}


def test_a_page_that_is_removed_while_its_site_answers_brings_no_document(
    reader: Principal, world: Services, bus: FakeBus, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There was no document yet when the source was removed; what the visit brings is taken out again."""
    url = site.page("/a", "apples")
    add(reader, world, url)
    run(world)

    def removed_meanwhile(*arguments: Any, **more: Any) -> Any:
        page = visit(*arguments, **more)
        with tenant_session(reader.tenant_id) as session:
            forget_page(session, reader.tenant_id, url)
            forget_source(session, reader.tenant_id, url)
        return page

    monkeypatch.setattr(web_pages, "visit", removed_meanwhile)
    deliver(world, bus, reader)
    assert {row.state for row in documents(reader).values()} == {"deleted"}


def test_the_commands_add_list_and_remove(
    tenant: Principal, world: Services, bus: FakeBus, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command binds the source and adds the page; removing takes its documents out of every answer."""
    monkeypatch.setenv("WEB_SOURCES_ALLOW", f"127.0.0.1:{site.port}")
    get_settings.cache_clear()
    url = site.page("/a", "apples")
    late = f"{site.url}/never"
    try:
        for address in (url, late):
            assert CliRunner().invoke(web_sources, ["add", address, "-t", tenant.tenant_slug]).exit_code == 0
        visit_all(world, bus, tenant)
        assert documents(tenant)[url].state == "searchable"
        listed = CliRunner().invoke(web_sources, ["list", "-t", tenant.tenant_slug], env={"COLUMNS": "300"}).output
        assert url in listed
        assert "page-missing" in listed
        assert "2 pages" not in CliRunner().invoke(web_sources, ["refresh", url, "-t", tenant.tenant_slug]).output
        for address in (url, late):
            assert CliRunner().invoke(web_sources, ["remove", address, "-t", tenant.tenant_slug]).exit_code == 0
        assert {key: row.state for key, row in documents(tenant).items()} == {url: "deleted"}
        assert pages(tenant) == {}
        refused = CliRunner().invoke(web_sources, ["add", "http://10.0.0.1/", "-t", tenant.tenant_slug])
        assert isinstance(refused.exception, PermanentError)
        assert refused.exception.reason == "address-not-allowed"
    finally:
        get_settings.cache_clear()
