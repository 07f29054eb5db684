"""`noesis documents`: what became of them, their history; delete, restore, roll back, purge."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from dataclasses import asdict
from uuid import UUID

import click
from rich.markup import escape
from sqlalchemy.orm import Session

from cli.context import acting_as, chosen_tenant, tenant_option
from cli.screen import json_option, print_json, printable, screen, table_of
from shared.audit import entries_about
from shared.database import operator_session, tenant_session
from shared.documents.acting import Actor, as_operator, find_document, read_for
from shared.documents.cancellation import cancel_ingestion
from shared.documents.deletion import RESTORABLE, delete_document
from shared.documents.history import VersionRow, read_history, roll_back
from shared.documents.purge_requests import (
    approve_purge,
    carry_out,
    find_request,
    open_requests,
    purge_alone,
    request_purge,
)
from shared.documents.reading import list_documents
from shared.documents.restoring import restore_document
from shared.documents.storing import Batch
from shared.errors import PermanentError
from shared.services import services

WAITING = {
    "turn": "its turn",
    "site": "the site that has it",
    "provider": "the model's provider",
    "budget": "the budget (`noesis budgets`)",
    "price": "the model's price (`noesis budgets price`)",
}
COLOURS = {"searchable": "green", "failed": "red", "deleted": "dim"}

source_option = click.option("--source", default="", help="Where it came from, if several have one of that name.")


@click.group(invoke_without_command=True)
@tenant_option
@click.option("--as", "email", default="", help="E-mail of the member who looks; default the administrator.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000))
@json_option
@click.pass_context
def documents(context: click.Context, tenant: str, email: str, limit: int, as_json: bool) -> None:
    """The documents of a tenant, last changed first, with states and reasons; or one of the commands below.

    A document is named by its id or by what its source calls it: for an upload the file's name, after `noesis submit`
    the file's whole path. `--json` tells both.
    """
    context.obj = tenant
    if context.invoked_subcommand is not None:
        return
    chosen = chosen_tenant(tenant)
    principal = acting_as(chosen, email or f"admin@{chosen.slug}.example")
    with tenant_session(chosen.tenant_id) as session:
        rows = list_documents(session, principal, limit)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    table = table_of("id", "state", "title", "chunks", "source", "reason", whole=("id",))
    for row in rows:
        colour = COLOURS.get(row.state, "yellow")
        done = "" if row.chunks is None else f"{row.chunks_done}/{row.chunks}"
        why = f"{row.message} {row.next_action or ''}" if row.message else ""
        if row.waiting:
            until = f" until {row.waiting_until:%Y-%m-%d %H:%M}Z" if row.waiting_until else ""
            # A cause that a newer release wrote is better than no list.
            why = f"waiting for {WAITING.get(row.waiting, row.waiting)}{until}. {why}".strip()
        table.add_row(
            str(row.document_id), f"[{colour}]{row.state}[/{colour}]", escape(row.title), done, row.source, escape(why)
        )
    screen().print(table)


@documents.command()
@click.argument("document")
@tenant_option
@source_option
@click.pass_obj
def show(group_tenant: str, document: str, tenant: str, source: str) -> None:
    """One document as JSON: state, reason, what answers, who deleted it and until when it can be restored."""
    tenant_id = chosen_tenant(tenant or group_tenant).tenant_id
    actor = as_operator(tenant_id, getpass.getuser())
    with tenant_session(tenant_id) as session:
        row = read_for(session, actor, find_document(session, actor, document, source))
    shown = dict(row._mapping)
    if row.deleted_at is not None:
        shown["restorable_until"] = row.deleted_at + RESTORABLE
    print_json(shown)


@documents.command()
@click.argument("document")
@tenant_option
@source_option
@click.pass_obj
def history(group_tenant: str, document: str, tenant: str, source: str) -> None:
    """Every version of a document, newest first, and what people did to it."""
    tenant_id = chosen_tenant(tenant or group_tenant).tenant_id
    actor = as_operator(tenant_id, getpass.getuser())
    with tenant_session(tenant_id) as session:
        document_id = find_document(session, actor, document, source)
        rows = read_history(session, actor, document_id)
    with operator_session() as operator:
        acts = entries_about(operator, tenant_id, str(document_id))
    table = table_of("version", "state", "received (UTC)", "changed", "chunks", "bytes", "file", "", whole=("version",))
    for row in rows:
        table.add_row(
            str(row.source_version),
            row.state + (" ← answers" if row.current else ""),
            f"{row.created_at:%Y-%m-%d %H:%M}",
            f"{row.updated_at:%Y-%m-%d %H:%M}",
            str(row.chunks),
            str(row.bytes),
            escape(row.file_name),
            escape(_remark(row)),
        )
    console = screen()
    console.print(f"document {document_id}")
    console.print(table)
    for at, who, what in acts:
        console.print(f"{at:%Y-%m-%d %H:%M}  {escape(what)} by {escape(who)}")


def _remark(row: VersionRow) -> str:
    if row.purged_at is not None:
        return "content no longer kept"
    if row.rejected_by is not None:
        return f"rolled back by {row.rejected_by}"
    return f"{row.message or ''} {row.next_action or ''}".strip()


@documents.command()
@click.argument("document")
@click.argument("version", type=click.IntRange(0))
@tenant_option
@source_option
@click.pass_obj
def rollback(group_tenant: str, document: str, version: int, tenant: str, source: str) -> None:
    """Let an earlier VERSION of a document answer again, at once; a newer submission wins again.

    VERSION is the number in `noesis documents history`. The bytes that answered until now are refused from then on.
    """
    tenant_id = chosen_tenant(tenant or group_tenant).tenant_id
    actor = as_operator(tenant_id, getpass.getuser())
    with tenant_session(tenant_id) as session:
        document_id = find_document(session, actor, document, source)
        found = [row for row in read_history(session, actor, document_id) if row.source_version == version]
        if not found:
            raise PermanentError("unknown-version", "The document has no such version.", "See its history.")
        roll_back(session, actor, document_id, found[0].version_id)
    click.echo(f"Version {version} answers now.")


def _to_each(act: Callable[[Session, Actor, UUID], str]) -> click.Command:
    """A command that does `act` to every document named, each in a transaction of its own, and says how it went.

    The exit status is 1 when it could not be done to one of them.
    """

    @documents.command(act.__name__, help=act.__doc__)
    @click.argument("names", metavar="DOCUMENT…", nargs=-1, required=True)
    @tenant_option
    @source_option
    @click.pass_obj
    def command(group_tenant: str, names: tuple[str, ...], tenant: str, source: str) -> None:
        tenant_id = chosen_tenant(tenant or group_tenant).tenant_id
        actor = as_operator(tenant_id, getpass.getuser())
        failed = 0
        for name in names:
            try:
                with tenant_session(tenant_id) as session:
                    done = act(session, actor, find_document(session, actor, name, source))
                click.echo(f"{name}: {done}")
            except PermanentError as error:
                failed += 1
                click.echo(f"{name}: {error.message} {error.next_action}", err=True)
        if failed:
            raise click.exceptions.Exit(1)

    return command


@_to_each
def cancel(session: Session, actor: Actor, document_id: UUID) -> str:
    """Stop what documents have in progress; an earlier version goes on answering, and nothing more is paid."""
    number = cancel_ingestion(session, actor, document_id, services().settings.documents_in_progress)
    return "cancelled" if number else "nothing was in progress"


@_to_each
def delete(session: Session, actor: Actor, document_id: UUID) -> str:
    """Take documents, with their attachments, out of every answer at once; `restore` brings them back for 30 days."""
    number = delete_document(session, actor, document_id)
    return f"deleted ({number} with attachments)" if number > 1 else "deleted" if number else "was deleted already"


@_to_each
def restore(session: Session, actor: Actor, document_id: UUID) -> str:
    """Bring deleted documents back; what answered when they were deleted answers again."""
    settings = services().settings
    return restore_document(session, actor, document_id, Batch(settings.batch_size, settings.batch_tokens))


@documents.command()
@click.argument("names", metavar="[DOCUMENT…]", nargs=-1)
@tenant_option
@source_option
@click.option("--request", "ask", is_flag=True, help="Ask for it; another operator approves it. For more than 20.")
@click.option("--note", default="", help="With --request: why.")
@click.option("--approve", type=click.UUID, help="Agree to somebody else's request and carry it out, or go on with it.")
@click.option("--list", "listed", is_flag=True, help="The requests that were not carried out yet.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def purge(
    group_tenant: str,
    names: tuple[str, ...],
    tenant: str,
    source: str,
    ask: bool,
    note: str,
    approve: UUID | None,
    listed: bool,
    yes: bool,
) -> None:
    """Delete documents for good; there is no way back.

    The audit record keeps the proof that nothing of them is left in any table.
    """
    if sum((bool(names), approve is not None, listed)) != 1:
        raise click.UsageError("Name documents, or give --approve ID, or --list.")
    login = getpass.getuser()
    if approve is not None:
        _approve(approve, login, yes)
        return
    tenant_id = chosen_tenant(tenant or group_tenant).tenant_id
    if listed:
        _list_requests(tenant_id)
        return
    with tenant_session(tenant_id) as session:
        ids = [find_document(session, as_operator(tenant_id, login), name, source) for name in names]
    if ask:
        with operator_session() as operator:
            request = request_purge(operator, tenant_id, login, ids, note)
        click.echo(f"Asked to delete {request.total} documents for good: {request.request_id}")
        click.echo(f"Another operator approves it with: noesis documents purge --approve {request.request_id}")
        return
    if not yes:
        click.confirm(f"Delete {len(ids)} documents with their attachments for good?", abort=True)
    done = purge_alone(tenant_id, login, ids, services().storage)
    click.echo(f"{done.documents} documents are deleted for good; {len(done.proof)} tables were searched, 0 traces.")


def _approve(request_id: UUID, login: str, yes: bool) -> None:
    with operator_session() as operator:
        request = find_request(operator, request_id)
    if not yes:
        click.confirm(f"Delete the {request.left} documents that {request.requested_by} asked for?", abort=True)
    with operator_session() as operator:
        approve_purge(operator, request_id, login)
    for step in carry_out(request_id, services().storage):
        click.echo(f"{step.total - step.left} of {step.total} documents are deleted for good.")


def _list_requests(tenant_id: UUID) -> None:
    with operator_session() as operator:
        rows = open_requests(operator, tenant_id)
    for row in rows:
        state = f"approved by {row.approved_by}" if row.approved_by else "waits for approval"
        told = f"{row.request_id}  {row.left}/{row.total}  asked by {row.requested_by}, {state}  {row.note}"
        click.echo(printable(told))
    if not rows:
        click.echo("No open requests.")
