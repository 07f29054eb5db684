"""`noesis cancel` and `noesis feedback`: stop a question, judge an answer, take the good ones as a golden set."""

from __future__ import annotations

from pathlib import Path
from typing import cast
from uuid import UUID

import click
from rich.markup import escape

from cli.context import acting_as, chosen_tenant, tenant_option
from cli.screen import screen, table_of
from shared.conversations.feedback import Rating, give_feedback, golden_questions, recent_feedback
from shared.conversations.waiting import cancel as cancel_run
from shared.database import tenant_session
from shared.retrieval.golden import write
from shared.tenants.directory import Principal

as_option = click.option("--as", "email", default="", help="E-mail of the member who asked; default the administrator.")


@click.command()
@click.argument("run_id", type=click.UUID)
@tenant_option
@as_option
def cancel(run_id: UUID, tenant: str, email: str) -> None:
    """Cancel a question that is not answered yet."""
    principal = _member(tenant, email)
    try:
        with tenant_session(principal.tenant_id) as session:
            done = cancel_run(session, principal, run_id)
    except LookupError:
        raise click.ClickException("There is no such question of this member.") from None
    click.echo("Cancelled." if done else "It has ended already.")


@click.group()
def feedback() -> None:
    """What members think of their answers."""


@feedback.command()
@click.argument("run_id", type=click.UUID)
@click.argument("rating", type=click.Choice(["up", "down"]))
@click.option("--comment", default="", help="What was good or wrong.")
@tenant_option
@as_option
def give(run_id: UUID, rating: str, comment: str, tenant: str, email: str) -> None:
    """Say that an answer was good (up) or not (down); the last word counts."""
    principal = _member(tenant, email)
    try:
        with tenant_session(principal.tenant_id) as session:
            give_feedback(session, principal, run_id, cast("Rating", rating), comment)
    except LookupError:
        raise click.ClickException("There is no such question of this member.") from None
    click.echo("Thank you.")


@feedback.command("list")
@tenant_option
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000))
def list_(tenant: str, limit: int) -> None:
    """What a tenant's members said last."""
    chosen = chosen_tenant(tenant)
    table = table_of("run", "rating", "question", "comment", "cited", whole=("run",))
    with tenant_session(chosen.tenant_id) as session:
        for word in recent_feedback(session, chosen.tenant_id, limit):
            shown = (escape(word.question[:60]), escape(word.comment[:60]), str(len(word.chunk_ids)))
            table.add_row(str(word.run_id), word.rating, *shown)
    screen().print(table)


@feedback.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@tenant_option
def export(path: Path, tenant: str) -> None:
    """Write the questions with good answers to PATH, as a golden set for `noesis eval`."""
    chosen = chosen_tenant(tenant)
    with tenant_session(chosen.tenant_id) as session:
        count = write(path, golden_questions(session, chosen.tenant_id))
    click.echo(f"{path}: {count} questions.")


def _member(tenant: str, email: str) -> Principal:
    chosen = chosen_tenant(tenant)
    return acting_as(chosen, email or f"admin@{chosen.slug}.example")
