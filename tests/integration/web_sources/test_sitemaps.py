"""Sitemaps: their pages are found, and a bad, large or deadly one harms nobody else."""

from __future__ import annotations

import resource
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from functions.maintenance.jobs import refresh_web_sources
from shared.database import tenant_session
from shared.fakes import FakeBus
from shared.fetching import sitemaps
from shared.fetching.addresses import Allowance
from shared.fetching.sitemaps import Sitemap, read_sitemap
from shared.services import Services
from shared.tenants.directory import Principal
from shared.web_sources.sources import list_sources
from tests.integration.web_sources.visits import add, documents, pages, run, visit_all
from tests.integration.web_sources.web_site import Site


def test_a_sitemap_becomes_searchable_pages(reader: Principal, world: Services, bus: FakeBus, site: Site) -> None:
    """Index, sitemap, pages: each page a document of the source web-pages, found under its address and title."""
    urls = [site.page(f"/laws/{n}.html", f"law number {n}") for n in range(3)]
    inner = site.sitemap("/laws.xml", *urls, "https://elsewhere.example/page", "http://169.254.169.254/")
    outer = site.sitemap("/sitemap.xml", inner, index=True)
    add(reader, world, outer, "sitemap")
    assert visit_all(world, bus, reader, rounds=2) == []
    found = documents(reader)
    assert list(found) == urls
    assert {(row.state, row.source) for row in found.values()} == {("searchable", "web-pages")}
    assert "law number 1" in found[urls[1]].text
    assert found[urls[1]].title == "Law Number 1"
    with tenant_session(reader.tenant_id) as session:
        index, sitemap = sorted(list_sources(session, reader.tenant_id), key=lambda s: s.pages)
    assert (index.url, index.pages, index.reason) == (outer, 0, None)
    assert (sitemap.url, sitemap.pages, sitemap.fetched) == (inner, 3, 3)
    assert (sitemap.reason, sitemap.message) == ("addresses-left-out", "2 addresses were left out.")


def test_a_large_sitemap_waits_in_the_table(reader: Principal, world: Services, bus: FakeBus, site: Site) -> None:
    """A run orders what the site bears in a minute, not all it knows of."""
    slow = Services(
        world.settings.model_copy(update={"web_sources_delay": 2.0}), _storage=world.storage, _web=world.web
    )
    add(reader, world, site.sitemap("/sitemap.xml", *(f"{site.url}/{n}" for n in range(200))), "sitemap")
    run(slow)
    assert len([m for m in bus.published if m.tenant_id == reader.tenant_id]) == 30
    assert len(pages(reader)) == 200


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<urlset><url><loc>http", "sitemap-unreadable"),
        (b"hello", "sitemap-unreadable"),
        (
            b'<!DOCTYPE u [<!ENTITY a "aaaaaaa"><!ENTITY b "&a;&a;&a;">]><urlset><url><loc>&b;</loc></url></urlset>',
            "unsafe-xml",
        ),
        (
            b'<!DOCTYPE u [<!ENTITY x SYSTEM "file:///etc/passwd">]><urlset><url><loc>&x;</loc></url></urlset>',
            "unsafe-xml",
        ),
    ],
    ids=["cut", "no xml", "entities", "external entity"],
)
def test_a_bad_sitemap_says_so(
    reader: Principal, world: Services, bus: FakeBus, site: Site, body: bytes, reason: str
) -> None:
    """The source carries the reason and the next action; other sources go on."""
    site.pages["/bad.xml"] = body
    add(reader, world, f"{site.url}/bad.xml", "sitemap")
    good = site.page("/good", "good")
    add(reader, world, good)
    visit_all(world, bus, reader)
    with tenant_session(reader.tenant_id) as session:
        found = {source.url: source for source in list_sources(session, reader.tenant_id)}
    assert found[f"{site.url}/bad.xml"].reason == reason
    assert found[f"{site.url}/bad.xml"].next_action
    assert documents(reader)[good].state == "searchable"


def test_a_sitemap_full_of_nothing_takes_no_memory() -> None:
    """Empty elements pack a thousandfold; none of them is kept (some 120 bytes each), and what follows is found."""
    for piece in (b"<url/>", b"<x><y/></x>"):
        body = b"<urlset>" + piece * 200_000 + b"<url><loc>http://a.example/last</loc></url></urlset>"
        before = rss()
        found = read_sitemap(body, "http://a.example/sitemap.xml", Allowance())
        assert found.pages == ("http://a.example/last",)
        assert rss() - before < 10_000_000


def rss() -> int:
    """Bytes of memory this process has: lxml's elements are none of Python's."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_addresses_beyond_what_is_looked_at_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of them are elsewhere: the rest is left out without a look."""
    monkeypatch.setattr(sitemaps, "MAX_LOOKED_AT", 3)
    entries = (
        "".join(f"<url><loc>http://{n}.example/</loc></url>" for n in range(5))
        + "<url><loc>http://a.example/</loc></url>"
    )
    found = read_sitemap(f"<urlset>{entries}</urlset>".encode(), "http://a.example/sitemap.xml", Allowance())
    assert (found.pages, found.left_out) == ((), 6)


def test_a_sitemap_that_kills_its_reader_keeps_no_other_waiting(
    reader: Principal, world: Services, bus: FakeBus, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run begins with the others; the killer is tried again later."""
    good = site.page("/good", "good")
    add(reader, world, site.sitemap("/deadly.xml", good), "sitemap")
    add(reader, world, site.sitemap("/harmless.xml", good), "sitemap")

    def killed(body: bytes, url: str, allowed: Allowance) -> Sitemap:
        if url.endswith("/deadly.xml"):
            raise MemoryError
        return read_sitemap(body, url, allowed)

    monkeypatch.setattr(refresh_web_sources, "read_sitemap", killed)
    with pytest.raises(MemoryError):
        run(world)
    visit_all(world, bus, reader, rounds=2)
    assert documents(reader)[good].state == "searchable"
    with tenant_session(reader.tenant_id) as session:
        when = {source.url: source.next_fetch_at for source in list_sources(session, reader.tenant_id)}
    assert timedelta(minutes=5) < when[f"{site.url}/deadly.xml"] - datetime.now(UTC) < timedelta(hours=1)
