"""A document is deleted and restored on the page, in a real browser."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.acceptance import test_pages as pages
from tests.acceptance.test_pages import Site, ingest, shoot

browser, open_page, pytestmark = pages.browser, pages.open_page, pages.pytestmark
server, site = pages.server, pages.site


def test_a_document_is_deleted_and_restored_on_the_page(site: Site, open_page: Callable[..., Page]) -> None:
    """After a question whether it is meant; it leaves the list at once and comes back at once, by the keyboard too."""
    ingest(site.member, "urlaub.pdf", "Urlaubsordnung", ["Der Urlaub beträgt 30 Tage."])
    page = open_page()
    row = page.locator("#document-list li", has_text="Urlaubsordnung")
    button = row.get_by_role("button", name="Delete “Urlaubsordnung”")
    page.once("dialog", lambda dialog: dialog.dismiss())
    button.click()
    expect(row).to_be_visible()
    shoot(page, "documents-delete")
    page.once("dialog", lambda dialog: dialog.accept())
    button.focus()
    page.keyboard.press("Enter")
    expect(row).to_have_count(0)
    expect(page.locator("#deleted")).to_contain_text("“Urlaubsordnung” was deleted.")
    shoot(page, "documents-deleted")
    page.get_by_role("button", name="Restore it").click()
    expect(row).to_be_visible()
    expect(page.locator("#deleted")).to_be_hidden()
