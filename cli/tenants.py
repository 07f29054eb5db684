"""`noesis tenants`: list, create, members, bind; export and erase are in `cli.erasing`."""

from __future__ import annotations

import re
from uuid import UUID

import click
from rich.markup import escape
from sqlalchemy import text
from sqlalchemy.orm import Session

from cli.context import actor, chosen_tenant, tenant_option
from cli.erasing import erase, export, verify_certificate, verify_export_
from cli.screen import json_option, print_json, screen, table_of
from shared.audit import record
from shared.database import operator_session
from shared.documents.cancellation import cancel_source
from shared.retrieval.spaces import activate_first, space_for_new_tenants
from shared.settings import get_settings
from shared.tenants.directory import (
    add_member,
    add_to_group,
    bind_source,
    create_tenant,
    list_tenants,
    remove_from_group,
    remove_member,
    unbind_source,
)

_NAME = r"[a-z0-9][a-z0-9-]{0,62}"
"""Of tenants, and of sources: it is part of a topic's name."""

_ADDRESS = re.compile(r"[^@\s]+@[^@\s]+")
"""Enough to find a slip of the finger: a member nobody can sign in as would look like one who may."""


@click.group()
def tenants() -> None:
    """Tenants, their members and the sources that may speak for them."""


@tenants.command("list")
@json_option
def list_(as_json: bool) -> None:
    """All tenants."""
    with operator_session() as session:
        found = list_tenants(session)
    if as_json:
        print_json([{"slug": one.slug, "tenant_id": one.tenant_id, "name": one.name} for one in found])
        return
    table = table_of("slug", "id", "name", whole=("slug", "id"))
    for tenant in found:
        table.add_row(tenant.slug, str(tenant.tenant_id), escape(tenant.name))
    screen().print(table)


@tenants.command()
@click.argument("slug")
@click.option("--name", default="", help="Name for people; default: the slug.")
@click.option("--admin", default="", help="E-mail of the first administrator; default admin@SLUG.example.")
def create(slug: str, name: str, admin: str) -> None:
    """Make a tenant with its administrator, bound to the standard sources; prints its id."""
    if not re.fullmatch(_NAME, slug):
        raise click.BadParameter("a slug is lower-case letters, digits and hyphens, at most 63")
    if admin and not _ADDRESS.fullmatch(admin):
        raise click.BadParameter("this is no e-mail address", param_hint="--admin")
    settings = get_settings()
    with operator_session() as session:
        tenant = create_tenant(session, slug, name or slug, admin or f"admin@{slug}.example")
        space = space_for_new_tenants(session, settings)
        activate_first(session, tenant.tenant_id, space)
    click.echo(str(tenant.tenant_id))


@tenants.command()
@tenant_option
def members(tenant: str) -> None:
    """The members of a tenant."""
    chosen = chosen_tenant(tenant)
    table = table_of("e-mail", "name", "role", whole=("e-mail",))
    with operator_session() as session:
        rows = session.execute(
            text("select email, name, role from core.members where tenant_id = :t order by email"),
            {"t": chosen.tenant_id},
        )
        for row in rows:
            table.add_row(*map(escape, row))
    screen().print(table)


@tenants.command("add-member")
@click.argument("email")
@tenant_option
@click.option("--name", default="")
@click.option("--role", type=click.Choice(["member", "curator", "admin", "operator"]), default="member")
@click.option("--group", "groups", multiple=True, help="Put the member into this group; may be repeated.")
def add_member_(email: str, tenant: str, name: str, role: str, groups: tuple[str, ...]) -> None:
    """Add a member to a tenant, or change an existing one."""
    if not _ADDRESS.fullmatch(email):
        raise click.BadParameter("this is no e-mail address", param_hint="EMAIL")
    if not all(group.strip() for group in groups):
        raise click.BadParameter("a group has a name", param_hint="--group")
    chosen = chosen_tenant(tenant)
    with operator_session() as session:
        member_id = add_member(session, chosen.tenant_id, email, name=name or email.partition("@")[0], role=role)
        for group in groups:
            add_to_group(session, chosen.tenant_id, group, member_id)
    click.echo(str(member_id))


@tenants.command("remove-member")
@click.argument("email")
@tenant_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove_member_(email: str, tenant: str, yes: bool) -> None:
    """Take a member out of a tenant, with their conversations; the documents they uploaded stay.

    They see nothing of the tenant any more. There is no way back but a new, empty membership.
    """
    chosen = chosen_tenant(tenant)
    if not yes:
        click.confirm(f"Remove {email} from {chosen.slug}, with all their conversations?", abort=True)
    with operator_session() as session:
        member_id = remove_member(session, chosen.tenant_id, email)
        if member_id is None:
            raise click.ClickException(f"{email} is no member of {chosen.slug}.")
        _record(session, chosen.tenant_id, "member-removed", str(member_id))
    click.echo(f"{email} is no longer a member of {chosen.slug}.")


@tenants.command()
@click.argument("source")
@tenant_option
def bind(source: str, tenant: str) -> None:
    """Allow a source to speak for a tenant."""
    if not re.fullmatch(_NAME, source):
        raise click.BadParameter("a source is lower-case letters, digits and hyphens, at most 63", param_hint="SOURCE")
    chosen = chosen_tenant(tenant)
    with operator_session() as session:
        bind_source(session, chosen.tenant_id, source)
        _record(session, chosen.tenant_id, "source-bound", source)
    click.echo(f"{source} may speak for {chosen.slug}.")


@tenants.command()
@click.argument("source")
@tenant_option
def unbind(source: str, tenant: str) -> None:
    """Let a source speak for a tenant no more, from the next message on; the documents it sent stay.

    What it has sent and nobody has read yet fails with `source-not-bound`, and is told to upstream.
    """
    chosen = chosen_tenant(tenant)
    with operator_session() as session:
        if not unbind_source(session, chosen.tenant_id, source):
            raise click.ClickException(f"{source} was not bound to {chosen.slug}.")
        _record(session, chosen.tenant_id, "source-unbound", source)
        unread = cancel_source(session, chosen.tenant_id, source)
    left = f" {unread} document{'s' if unread > 1 else ''} of it had not been read yet and failed." if unread else ""
    click.echo(f"{source} no longer speaks for {chosen.slug}.{left}")


@tenants.command("leave-group")
@click.argument("email")
@click.argument("group")
@tenant_option
def leave_group(email: str, group: str, tenant: str) -> None:
    """Take the member EMAIL out of GROUP: what only the group may see is closed to them at once, old answers too."""
    chosen = chosen_tenant(tenant)
    with operator_session() as session:
        if not remove_from_group(session, chosen.tenant_id, group, email):
            raise click.ClickException(f"{email} is not in the group {group} of {chosen.slug}.")
        _record(session, chosen.tenant_id, "group-left", group)
    click.echo(f"{email} is no longer in {group}.")


def _record(session: Session, tenant_id: UUID, action: str, subject: str) -> None:
    record(session, actor=actor(), action=action, subject=subject, tenant_id=tenant_id)


for command in (export, verify_export_, erase, verify_certificate):
    tenants.add_command(command)
