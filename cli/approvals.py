"""`noesis approvals`: what the agent may only do when a person agrees."""

from __future__ import annotations

import getpass
import json
from typing import Any
from uuid import UUID

import click
from rich.markup import escape

from cli.context import acting_as, chosen_tenant, tenant_option
from cli.screen import screen, table_of
from shared.audit import record
from shared.database import operator_session, tenant_session
from shared.errors import PermanentError
from shared.tenants.directory import Principal
from shared.tools.approvals import Approval, Kind, decide, pending_approvals, read_approval

as_option = click.option(
    "--as", "email", default="", help="E-mail of the member who decides; default the administrator."
)
note_option = click.option("--note", default="", help="A word to the agent and whoever asked.")
ID = click.argument("approval_id", type=click.UUID)


@click.group()
def approvals() -> None:
    """Calls of tools that wait for a person's word."""


@approvals.command("list")
@tenant_option
@as_option
def list_(tenant: str, email: str) -> None:
    """What waits for a decision that this member may see, oldest first."""
    principal = _principal(tenant, email)
    with tenant_session(principal.tenant_id) as session:
        found = pending_approvals(session, principal)
    table = table_of("id", "tool", "arguments", "asked for", "until (UTC)", whole=("id",))
    for approval in found:
        shown = _visible(approval.arguments)
        table.add_row(
            str(approval.approval_id),
            approval.tool,
            escape(shown if len(shown) <= 80 else f"{shown[:79]}…"),
            escape(approval.asked_for),
            f"{approval.expires_at:%Y-%m-%d %H:%M}",
        )
    screen().print(table)


@approvals.command()
@ID
@tenant_option
@as_option
def show(approval_id: UUID, tenant: str, email: str) -> None:
    """One approval: the whole call, the question behind it, and what became of it."""
    principal = _principal(tenant, email)
    with tenant_session(principal.tenant_id) as session:
        found = read_approval(session, principal, approval_id)
    if found is None:
        raise PermanentError("unknown-approval", "There is no such approval.", "See `noesis approvals list`.")
    console = screen()
    for name, value in _lines(found):
        console.print(f"[bold]{name:<11}[/bold]{escape(value)}")


@approvals.command()
@ID
@tenant_option
@as_option
@note_option
def approve(approval_id: UUID, tenant: str, email: str, note: str) -> None:
    """Agree: the call is made as it was asked for, and the question goes on."""
    _decide(approval_id, tenant, email, "approved", None, note)


@approvals.command()
@ID
@tenant_option
@as_option
@note_option
def refuse(approval_id: UUID, tenant: str, email: str, note: str) -> None:
    """Refuse: the call is not made, the agent is told, and the question goes on."""
    _decide(approval_id, tenant, email, "refused", None, note)


@approvals.command()
@ID
@click.argument("arguments")
@tenant_option
@as_option
@note_option
def edit(approval_id: UUID, arguments: str, tenant: str, email: str, note: str) -> None:
    """Agree to other ARGUMENTS (a JSON object, whole): the call is made with these."""
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise click.BadParameter("the arguments are not a JSON object", param_hint="ARGUMENTS")
    _decide(approval_id, tenant, email, "edited", given, note)


def _decide(
    approval_id: UUID, tenant: str, email: str, kind: Kind, arguments: dict[str, Any] | None, note: str
) -> None:
    principal = _principal(tenant, email)
    with tenant_session(principal.tenant_id) as session:
        decide(session, principal, approval_id, kind, arguments, note)
    with operator_session() as session:
        # The approval itself says which member decided; this, who sat at the terminal.
        record(
            session,
            actor=f"operator:{getpass.getuser()}",
            action="approval-decided",
            subject=str(approval_id),
            tenant_id=principal.tenant_id,
            decision=kind,
            member=principal.member_id,
        )
    click.echo(f"{kind}; the question goes on.")


def _principal(tenant: str, email: str) -> Principal:
    chosen = chosen_tenant(tenant)
    return acting_as(chosen, email or f"admin@{chosen.slug}.example")


def _lines(approval: Approval) -> list[tuple[str, str]]:
    lines = [
        ("tool", approval.tool),
        ("arguments", _visible(approval.arguments, indent=2)),
        ("question", _printable(approval.question)),
        ("asked for", approval.asked_for),
        ("approvers", ", ".join(approval.approvers) + (" (not the asker)" if approval.four_eyes else "")),
        ("state", approval.state),
        ("until", f"{approval.expires_at:%Y-%m-%d %H:%M} UTC"),
    ]
    if approval.edited is not None:
        lines.append(("edited", _visible(approval.edited, indent=2)))
    if approval.note:
        lines.append(("note", _printable(approval.note)))
    return lines


def _visible(arguments: dict[str, Any], indent: int | None = None) -> str:
    return _printable(json.dumps(arguments, ensure_ascii=False, indent=indent))


def _printable(shown: str) -> str:
    """A text as it is: a character that reorders or hides, or moves the cursor, is shown by its number."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" for c in shown)
