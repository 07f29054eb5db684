"""A site is visited by its own rules, at its own pace, within limits, and leads nowhere else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from shared.database import operator_session, tenant_session
from shared.errors import Postponed
from shared.fakes import FakeBus
from shared.fetching.client import Fetcher, Limits
from shared.services import Services
from shared.tenants.directory import Principal
from shared.web_sources.sites import take_turn
from tests.integration.web_sources.visits import add, deliver, documents, pages, run, visit_all
from tests.integration.web_sources.web_site import Site


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
