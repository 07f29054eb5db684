"""`noesis documents`: what became of them."""

from __future__ import annotations

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.context import acting_as, chosen_tenant, tenant_option
from shared.database import tenant_session
from shared.documents.reading import list_documents

COLOURS = {"searchable": "green", "failed": "red", "deleted": "dim"}


@click.command()
@tenant_option
@click.option("--as", "email", default="", help="E-mail of the member who looks; default the administrator.")
@click.option("--limit", default=50, show_default=True)
def documents(tenant: str, email: str, limit: int) -> None:
    """The documents of a tenant, last changed first, with states and reasons."""
    chosen = chosen_tenant(tenant)
    principal = acting_as(chosen, email or f"admin@{chosen.slug}.example")
    with tenant_session(chosen.tenant_id) as session:
        rows = list_documents(session, principal, limit)
    table = Table("state", "title", "chunks", "source", "reason", box=None)
    for row in rows:
        colour = COLOURS.get(row.state, "yellow")
        done = "" if row.chunks is None else f"{row.chunks_done}/{row.chunks}"
        why = f"{row.message} {row.next_action or ''}" if row.message else ""
        table.add_row(f"[{colour}]{row.state}[/{colour}]", escape(row.title), done, row.source, escape(why))
    Console().print(table)
