"""`noesis tools`: which tools a tenant's questions may use, who may use them, and when a person must agree."""

from __future__ import annotations

import getpass
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from cli.context import chosen_tenant, tenant_option
from cli.screen import screen, table_of
from shared.database import operator_session, tenant_session
from shared.tools.catalogue import TOOLS, Asking
from shared.tools.registry import ASKER, ROLES, Grant, grants
from shared.tools.registry import configure as configure_tool

NAME = click.argument("name", type=click.Choice(list(TOOLS)))


@click.group()
def tools() -> None:
    """Tools that the agent may use for a tenant's questions."""


@tools.command("list")
@tenant_option
@click.option("--json", "as_json", is_flag=True, help="Everything, for machines.")
def list_(tenant: str, as_json: bool) -> None:
    """Every tool: whether it is on, for whom, when a person must agree and who that may be."""
    chosen = chosen_tenant(tenant)
    with tenant_session(chosen.tenant_id) as session:
        found = grants(session, chosen.tenant_id)
    if as_json:
        click.echo(json.dumps({name: _plain(grant) for name, grant in found.items()}, indent=2))
        return
    table = table_of("tool", "effect", "on", "for", "asks", "approvers", "waits", "goes to", whole=("tool",))
    for name, grant in found.items():
        approvers = "" if grant.asking == "never" and grant.tool.effect != "external" else ", ".join(grant.approvers)
        eyes = " (not the asker)" if approvers and grant.four_eyes else ""
        table.add_row(
            name,
            grant.tool.effect,
            "[green]yes[/green]" if grant.enabled else "[dim]no[/dim]",
            ", ".join(grant.roles) or "everybody",
            grant.asking,
            approvers + eyes,
            f"{grant.patience.total_seconds() / 3600:g} h" if approvers else "",
            escape("; ".join(entry["url"] for entry in grant.settings.get("allow", ()))),
        )
    screen().print(table)


@tools.command()
@NAME
@tenant_option
def enable(name: str, tenant: str) -> None:
    """Switch a tool on; everything else about it stays as it is."""
    _change(tenant, name, enabled=True)


@tools.command()
@NAME
@tenant_option
def disable(name: str, tenant: str) -> None:
    """Switch a tool off, from the next call on; a call that waits for approval is then refused."""
    _change(tenant, name, enabled=False)


@tools.command()
@NAME
@tenant_option
@click.option("--role", "roles", multiple=True, type=click.Choice(ROLES), help="Who may use it; repeat it.")
@click.option("--everybody", is_flag=True, help="Every member may use it.")
@click.option("--ask", "asking", type=click.Choice(["always", "untrusted", "never"]), help="When a person must agree.")
@click.option(
    "--approver", "approvers", multiple=True, type=click.Choice((*ROLES, ASKER)), help="Who may agree; repeat it."
)
@click.option("--four-eyes/--two-eyes", default=None, help="Whether whoever asked may not agree to it.")
@click.option("--hours", type=click.IntRange(1, 8760), help="How long it waits for a person; default 168.")
@click.option(
    "--settings", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="JSON; see docs/tools.md."
)
def configure(
    name: str,
    tenant: str,
    roles: tuple[str, ...],
    everybody: bool,
    asking: Asking | None,
    approvers: tuple[str, ...],
    four_eyes: bool | None,
    hours: int | None,
    file: Path | None,
) -> None:
    """Change who may use a tool, when a person must agree and who, and where http_request may go."""
    if roles and everybody:
        raise click.UsageError("--role and --everybody exclude each other")
    _change(
        tenant,
        name,
        roles=roles if roles or everybody else None,
        asking=asking,
        approvers=approvers or None,
        four_eyes=four_eyes,
        patience=timedelta(hours=hours) if hours else None,
        settings=_read(file) if file else None,
    )


def _change(tenant: str, name: str, **changes: Any) -> None:
    chosen = chosen_tenant(tenant)
    with operator_session() as session:
        grant = configure_tool(session, chosen.tenant_id, name, f"operator:{getpass.getuser()}", **changes)
    state = "on" if grant.enabled else "off"
    click.echo(f"{chosen.slug}: {name} is {state}, for {', '.join(grant.roles) or 'everybody'}, asks {grant.asking}.")


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise click.BadParameter(f"{file} is not a JSON object")
    return found


def _plain(grant: Grant) -> dict[str, Any]:
    return {
        "effect": grant.tool.effect,
        "enabled": grant.enabled,
        "roles": grant.roles,
        "asking": grant.asking,
        "approvers": grant.approvers,
        "four_eyes": grant.four_eyes,
        "hours": grant.patience.total_seconds() / 3600,
        "settings": grant.settings,
    }
