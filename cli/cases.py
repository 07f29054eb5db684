"""`noesis cases`: the example of business data that the tools get_case and update_case work on."""

from __future__ import annotations

import getpass

import click
from rich.markup import escape

from cli.context import chosen_tenant, tenant_option
from cli.screen import screen, table_of
from shared.database import tenant_session
from shared.tools.arguments import GetCaseArguments, read_arguments
from shared.tools.cases import list_cases, put_case


@click.group()
def cases() -> None:
    """Cases of a tenant."""


@cases.command("list")
@tenant_option
def list_(tenant: str) -> None:
    """All cases, last changed first."""
    chosen = chosen_tenant(tenant)
    with tenant_session(chosen.tenant_id) as session:
        found = list_cases(session, chosen.tenant_id)
    table = table_of("number", "status", "title", "note", "revision", "changed by", whole=("number",))
    for case in found:
        table.add_row(
            case.case_number, case.status, escape(case.title), escape(case.note), str(case.revision), case.changed_by
        )
    screen().print(table)


@cases.command()
@click.argument("number")
@click.argument("title")
@click.option("--group", "groups", multiple=True, help="Only members of these groups see it; repeat it.")
@tenant_option
def put(number: str, title: str, groups: tuple[str, ...], tenant: str) -> None:
    """Enter a case, or change its title and who sees it."""
    chosen = chosen_tenant(tenant)
    read_arguments(GetCaseArguments, {"case_number": number})
    with tenant_session(chosen.tenant_id) as session:
        put_case(session, chosen.tenant_id, number, title, f"operator:{getpass.getuser()}", groups=groups)
    click.echo(f"{chosen.slug}: case {number}.")
