"""Many open pages of one tenant, against the real server of the pages' tests (twelve threads)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import httpx
from playwright.sync_api import Page, expect

from shared.conversations.runs import ask
from shared.database import tenant_session
from shared.fakes import FakeBus
from tests.acceptance import test_pages as pages
from tests.acceptance.test_pages import Site
from web.streams import OPEN_PER_TENANT

browser, open_page, pytestmark = pages.browser, pages.open_page, pages.pytestmark
server, site = pages.server, pages.site


def test_many_pages_that_wait_leave_the_others_their_answers(
    site: Site, open_page: Callable[..., Page], bus: FakeBus
) -> None:
    """Of twenty streams of one tenant ten stay open; the others end and come again, so that threads are left."""
    cookies = {str(one["name"]): str(one["value"]) for one in open_page().context.cookies()}
    with tenant_session(site.member.tenant_id) as session:
        waiting = ask(session, site.member, "Wie viele Tage Urlaub habe ich?")
    with httpx.Client(base_url=site.url, cookies=cookies, timeout=30) as client, ExitStack() as opened:
        streams = [opened.enter_context(client.stream("GET", f"/runs/{waiting}/events")) for _ in range(20)]
        first = [next(one.iter_lines()) for one in streams]
        assert first.count("retry: 1000") == OPEN_PER_TENANT
        assert first.count("retry: 2000") == 20 - OPEN_PER_TENANT
        expect(open_page().locator("#ask")).to_be_visible()
    with httpx.Client(base_url=site.url, cookies=cookies, timeout=30) as client:
        assert client.get(f"/runs/{waiting}").json()["state"] == "queued"
