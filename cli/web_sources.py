"""`noesis web-sources`: pages and sitemaps that a tenant reads."""

from __future__ import annotations

import contextlib

import click
from rich.markup import escape
from sqlalchemy.orm import Session

from cli.context import chosen_tenant, collection_option, hours, tenant_option
from cli.screen import screen, table_of
from shared.database import operator_session, tenant_session
from shared.documents.ending import withdraw
from shared.documents.intake import document_id_of
from shared.errors import Superseded
from shared.events import DocumentWithdrawn
from shared.fetching.addresses import Target, allowance, check_url
from shared.settings import get_settings
from shared.tenants.directory import Tenant, bind_source
from shared.web_sources.pages import SOURCE, add_pages
from shared.web_sources.sources import (
    add_source,
    forget_page,
    forget_source,
    list_sources,
    pages_of,
    refresh_source,
)

SLICE = 200


@click.group("web-sources")
def web_sources() -> None:
    """Pages and sitemaps of the web that a tenant's answers are drawn from."""


@web_sources.command()
@click.argument("url")
@tenant_option
@click.option("--sitemap", is_flag=True, help="The address is a sitemap: all pages it names are read.")
@collection_option
@click.option(
    "--every", default=24.0, show_default=True, type=click.FloatRange(0.2, 8760), help="Hours between visits."
)
def add(url: str, tenant: str, sitemap: bool, collection: str, every: float) -> None:
    """Read a page, or every page of a sitemap, from now on; known ones change collection and interval."""
    chosen, target = chosen_tenant(tenant), _target(url)
    with operator_session() as session:
        bind_source(session, chosen.tenant_id, SOURCE)
    with tenant_session(chosen.tenant_id) as session:
        kind = "sitemap" if sitemap else "page"
        source_id = add_source(
            session, chosen.tenant_id, target, kind, collection=collection, refresh_every=hours(every)
        )
        if not sitemap:
            document_id = document_id_of(chosen.tenant_id, SOURCE, target.url)
            add_pages(session, chosen.tenant_id, source_id, [(target, document_id)], room=1)
    click.echo(f"{target.url} is read within a minute or two; see `noesis web-sources list` and `noesis documents`.")


@web_sources.command("list")
@tenant_option
def list_(tenant: str) -> None:
    """The web sources of a tenant: how many pages, when next, what went wrong and what to do."""
    chosen = chosen_tenant(tenant)
    with tenant_session(chosen.tenant_id) as session:
        found = list_sources(session, chosen.tenant_id)
    table = table_of("url", "kind", "pages", "read", "failed", "gone", "next (UTC)", "reason", whole=("url",))
    for source in found:
        why = f"{source.message} {source.next_action or ''} ({source.reason})" if source.reason else ""
        table.add_row(
            escape(source.url),
            source.kind,
            str(source.pages),
            str(source.fetched),
            str(source.failed),
            str(source.gone),
            f"{source.next_fetch_at:%Y-%m-%d %H:%M}" if source.next_fetch_at else "",
            escape(why),
        )
    screen().print(table)


@web_sources.command()
@click.argument("url")
@tenant_option
@click.option("--again", is_flag=True, help="Also pages whose document was deleted here.")
def refresh(url: str, tenant: str, again: bool) -> None:
    """Visit a source and all its pages as soon as their site's pace allows."""
    chosen = chosen_tenant(tenant)
    with tenant_session(chosen.tenant_id) as session:
        pages = refresh_source(session, chosen.tenant_id, _target(url).url, again=again)
    click.echo(f"{pages} pages are due.")


@web_sources.command()
@click.argument("url")
@tenant_option
def remove(url: str, tenant: str) -> None:
    """Stop reading a source and take its documents out of every answer."""
    chosen, target = chosen_tenant(tenant), _target(url)
    removed = 0
    while True:
        with tenant_session(chosen.tenant_id) as session:
            urls = pages_of(session, chosen.tenant_id, target.url, SLICE)
            for page, known in urls:
                # The page goes first, in the same transaction: a visit under way finds it gone and brings nothing back.
                forget_page(session, chosen.tenant_id, page)
                if known:
                    _withdraw(session, chosen, page)
        removed += len(urls)
        if len(urls) < SLICE:
            break
    with tenant_session(chosen.tenant_id) as session:
        forget_source(session, chosen.tenant_id, target.url)
    click.echo(f"{target.url} is no longer read; {removed} pages were taken out.")


def _withdraw(session: Session, tenant: Tenant, url: str) -> None:
    with contextlib.suppress(Superseded):
        withdraw(session, DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id=url), SOURCE)


def _target(url: str) -> Target:
    return check_url(url, allowance(get_settings().web_sources_allow))
