"""A polite visit: in turn, allowed by robots.txt, one request; never waits, but says when to come back."""

from __future__ import annotations

from uuid import UUID

from shared.database import tenant_session
from shared.errors import Postponed
from shared.fetching.addresses import check_url
from shared.fetching.client import Fetcher, Page
from shared.fetching.robots import Robots, ask
from shared.web_sources.sites import keep_robots, known_robots, take_turn


def visit(
    fetcher: Fetcher,
    tenant_id: UUID,
    url: str,
    key: UUID,
    delay: float,
    *,
    etag: str = "",
    last_modified: str = "",
) -> Page:
    """Fetch a page when it is its turn at its site. `key` names the visit, `delay` is in seconds.

    Raises Postponed (come back with the same key) and FetchFailed. No session is open while the site is asked.
    """
    target = check_url(url, fetcher.allowed)
    robots = _robots(fetcher, tenant_id, target.origin)
    robots.check(target.url)
    # After robots.txt, which says how long the turns are; what it forbids needs no turn.
    with tenant_session(tenant_id) as session:
        turn = take_turn(session, target.origin, key, delay)
    if turn is not None:
        raise Postponed(turn, "waiting for its turn at the web site")
    page = fetcher.fetch(target.url, etag=etag, last_modified=last_modified)
    arrived = check_url(page.url, fetcher.allowed)
    if arrived.origin == target.origin:
        robots.check(page.url)
    else:  # from http to https
        _robots(fetcher, tenant_id, arrived.origin).check(page.url)
    return page


def _robots(fetcher: Fetcher, tenant_id: UUID, origin: str) -> Robots:
    with tenant_session(tenant_id) as session:
        robots = known_robots(session, origin)
    if robots is None:
        robots = ask(fetcher, origin)
        with tenant_session(tenant_id) as session:
            keep_robots(session, origin, robots)
    return robots
