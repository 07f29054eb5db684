"""Web sources: a site becomes documents, politely, once, and never brings back what is gone."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from cli.web_sources import web_sources
from functions.embed.embedding import embed_chunks
from functions.ingest import web_pages
from functions.ingest.web_pages import ingest_web_page
from functions.maintenance.archiving import archive_exhausted
from functions.maintenance.jobs import refresh_web_sources
from functions.maintenance.running import run_job
from shared.database import operator_session, tenant_session
from shared.documents.acting import as_curator
from shared.documents.cancellation import cancel_document
from shared.documents.deletion import delete_document
from shared.documents.ending import withdraw
from shared.documents.intake import document_id_of
from shared.documents.reading import list_documents
from shared.documents.turns import NOBODY, _in_progress
from shared.doors import Delivery
from shared.errors import NoesisError, PermanentError, Postponed, Superseded
from shared.events import DocumentSubmitted, DocumentWithdrawn, EmbedChunks, RunJob, decode
from shared.fakes import FakeBus, FakeModels, FakeStorage
from shared.fetching import sitemaps
from shared.fetching.addresses import Allowance, allowance, check_url
from shared.fetching.client import Fetcher, Limits
from shared.fetching.sitemaps import Sitemap, read_sitemap
from shared.services import Services
from shared.settings import Settings, get_settings
from shared.tenants.directory import Principal, bind_source
from shared.web_sources.pages import SOURCE, add_pages
from shared.web_sources.sites import take_turn
from shared.web_sources.sources import add_source, forget_page, forget_source, list_sources, refresh_source
from shared.web_sources.visiting import visit


@dataclass
class Site:
    """A web site on loopback whose pages tests write."""

    port: int = 0
    pages: dict[str, bytes] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    slow: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def page(self, path: str, words: str) -> str:
        """Write a page; returns its address."""
        self.pages[path] = (
            f"<html><head><title>{words.title()}</title></head><body><main><h1>{words}</h1>"
            f"<p>This page tells everything about {words}, in a whole sentence.</p></main></body></html>"
        ).encode()
        return self.url + path

    def sitemap(self, path: str, *addresses: str, index: bool = False) -> str:
        """Write a sitemap, or an index of sitemaps; returns its address."""
        inner, outer = ("sitemap", "sitemapindex") if index else ("url", "urlset")
        entries = "".join(f"<{inner}><loc>{address}</loc></{inner}>" for address in addresses)
        self.pages[path] = (
            f'<?xml version="1.0"?><{outer} xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries}</{outer}>'
        ).encode()
        return self.url + path


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name the library asks for
            site.asked.append(self.path)
            body = site.pages.get(self.path)
            if self.path in site.redirects:
                self.send_response(302)
                self.send_header("Location", site.redirects[self.path])
            elif self.path in site.status:
                self.send_response(site.status[self.path])
                body = None
            elif self.path == "/drip":
                self._drip()
                return
            elif body is None:
                self.send_response(404)
            elif self.headers.get("If-None-Match") == _etag(body):
                self.send_response(304)
                body = None
            else:
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("ETag", _etag(body))
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def _drip(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                while not site.slow.wait(0.05):
                    self.wfile.write(b".")
            except OSError:
                return

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 # the name the library gives
            return

    return Handler


def _etag(body: bytes) -> str:
    return f'"{sha256(body).hexdigest()[:16]}"'


@pytest.fixture
def site() -> Iterator[Site]:
    """A site of its own for every test."""
    made = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(made))
    made.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.slow.set()
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def world(settings: Settings, bus: FakeBus, site: Site) -> Services:
    """Services with the guard's allow-list open for the site, and no delay between two requests."""
    with operator_session() as operator:
        # What a site said holds for all tenants, and an earlier test's site may have had the same port.
        operator.execute(text("delete from core.web_hosts where origin = :site"), {"site": site.url})
    return Services(
        settings.model_copy(update={"web_sources_delay": 0.0}),
        _storage=FakeStorage(),
        _models=FakeModels(),
        _web=Fetcher(allowance(f"127.0.0.1/32:{site.port}")),
    )


@pytest.fixture
def reader(tenant: Principal) -> Principal:
    """A tenant that web pages may speak for."""
    with operator_session() as operator:
        bind_source(operator, tenant.tenant_id, SOURCE)
    return tenant


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


def test_robots_txt_is_obeyed(reader: Principal, world: Services, bus: FakeBus, site: Site) -> None:
    """A disallowed page is not asked for, says why, and robots.txt is read once for all pages."""
    site.pages["/robots.txt"] = (
        b"User-agent: *\nDisallow: /\n\nUser-agent: noesis2\nDisallow: /private\nDisallow: /*.cgi$\n"
    )
    good, bad, worse = site.page("/good", "good"), site.page("/private/x", "bad"), site.page("/run.cgi", "worse")
    for url in (good, bad, worse):
        add(reader, world, url)
    visit_all(world, bus, reader)
    assert site.asked == ["/robots.txt", "/good"]
    assert list(documents(reader)) == [good]
    for url in (bad, worse):
        assert (pages(reader)[url].state, pages(reader)[url].reason) == ("failed", "robots-disallowed")
        assert pages(reader)[url].next_action


def test_a_site_that_cannot_say_its_rules_is_left_alone(
    reader: Principal, world: Services, bus: FakeBus, site: Site
) -> None:
    """robots.txt answers 503: nothing is fetched for now; it is asked again later."""
    site.status["/robots.txt"] = 503
    url = site.page("/a", "apples")
    add(reader, world, url)
    visit_all(world, bus, reader)
    assert site.asked == ["/robots.txt"]
    assert (pages(reader)[url].reason, pages(reader)[url].later) == ("robots-unreachable", True)
    assert documents(reader) == {}


def test_a_site_is_visited_at_its_own_pace(reader: Principal, world: Services, bus: FakeBus, site: Site) -> None:
    """Crawl-delay 20: one page now, the others postponed to turns 20 s apart, and they keep them."""
    site.pages["/robots.txt"] = b"User-agent: noesis2\nCrawl-delay: 20\n"
    urls = [site.page(f"/{n}", f"page {n}") for n in range(3)]
    for url in urls:
        add(reader, world, url)
    run(world)
    orders = [m for m in bus.published if m.tenant_id == reader.tenant_id]
    turns = [stop.until for stop in deliver(world, bus, reader) if isinstance(stop, Postponed)]
    assert [round((turn - turns[0]).total_seconds()) for turn in turns] == [0, 20]
    assert len(site.asked) == 2
    bus.published.extend(orders)
    again = [stop.until for stop in deliver(world, bus, reader) if isinstance(stop, Postponed)]
    assert again == turns
    with operator_session() as session:
        session.execute(text("update core.web_turns set turn_at = now()"))
    bus.published.extend(orders)
    assert deliver(world, bus, reader) == []
    assert sorted(documents(reader)) == urls


def test_turns_are_given_out_once_to_all_instances(reader: Principal, make_tenant: Any) -> None:
    """Forty at the same moment, from two tenants: forty different turns, a minute apart."""
    origin, other = f"https://{uuid4().hex}.example", make_tenant()

    def take(number: int) -> datetime:
        with tenant_session((reader, other)[number % 2].tenant_id) as session:
            return take_turn(session, origin, UUID(int=number), 60.0) or datetime.now(UTC)

    with ThreadPoolExecutor(4) as pool:
        turns = sorted(pool.map(take, range(40)))
    gaps = [(b - a).total_seconds() for a, b in pairwise(turns[1:])]
    assert min(gaps) >= 59.999
    assert max(gaps) < 60.5


def test_a_large_sitemap_waits_in_the_table(reader: Principal, world: Services, bus: FakeBus, site: Site) -> None:
    """A run orders what the site bears in a minute, not all it knows of."""
    slow = Services(
        world.settings.model_copy(update={"web_sources_delay": 2.0}), _storage=world.storage, _web=world.web
    )
    add(reader, world, site.sitemap("/sitemap.xml", *(f"{site.url}/{n}" for n in range(200))), "sitemap")
    run(slow)
    assert len([m for m in bus.published if m.tenant_id == reader.tenant_id]) == 30
    assert len(pages(reader)) == 200


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


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://169.254.169.254/latest/meta-data/", "address-not-allowed"),
        ("http://127.0.0.2/", "address-not-allowed"),
        ("file:///etc/passwd", "url-not-allowed"),
        ("https://elsewhere.example/", "redirect-refused"),
    ],
)
def test_a_redirect_inwards_or_away_is_refused(
    reader: Principal, world: Services, bus: FakeBus, site: Site, location: str, reason: str
) -> None:
    """The page fails with the reason; the address it wanted is not asked."""
    site.redirects["/a"] = location
    url = f"{site.url}/a"
    add(reader, world, url)
    visit_all(world, bus, reader)
    assert (pages(reader)[url].state, pages(reader)[url].reason) == ("failed", reason)
    assert documents(reader) == {}


def test_a_dripping_server_ends_at_the_limit(reader: Principal, world: Services, bus: FakeBus, site: Site) -> None:
    """A byte now and then: the fetch ends with its total time and is tried again later."""
    url = f"{site.url}/drip"
    world = replace(world, _web=Fetcher(world.web.allowed, Limits(total=1.5, idle=1)))
    add(reader, world, url)
    began = datetime.now(UTC)
    visit_all(world, bus, reader)
    assert (datetime.now(UTC) - began).total_seconds() < 10
    assert (pages(reader)[url].reason, pages(reader)[url].later) == ("web-timeout", True)


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


def submitted(reader: Principal, uri: str, **more: Any) -> DocumentSubmitted:
    """An upstream system's document that lies on the web."""
    return DocumentSubmitted(tenant_id=reader.tenant_id, external_id="doc-1", uri=uri, **more)


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
