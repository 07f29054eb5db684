"""`noesis runs`: questions that were asked, how they ended, and what checking their answers found."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from uuid import UUID

import click
from rich.markup import escape

from cli.asking import show as show_answer
from cli.context import acting_as, chosen_tenant, tenant_option
from cli.screen import json_option, print_json, screen, table_of
from shared.conversations.runs import Run, RunEvent, events_after, read_run, recent_runs
from shared.database import tenant_session

as_option = click.option("--as", "email", default="", help="E-mail of the member who asked; default the administrator.")


@click.group()
def runs() -> None:
    """Questions and their answers."""


@runs.command("list")
@tenant_option
@as_option
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000))
@json_option
def list_(tenant: str, email: str, limit: int, as_json: bool) -> None:
    """The member's last questions, newest first."""
    chosen = chosen_tenant(tenant)
    principal = acting_as(chosen, email or f"admin@{chosen.slug}.example")
    table = table_of("run", "asked", "state", "question", whole=("run",))
    with tenant_session(principal.tenant_id) as session:
        found = recent_runs(session, principal, limit)
    if as_json:
        print_json([asdict(run) for run in found])
        return
    for run in found:
        state = "no evidence" if run.no_evidence else f"waits for {run.waiting_for}" if run.waiting_for else run.state
        table.add_row(str(run.run_id), f"{run.created_at:%Y-%m-%d %H:%M}", state, escape(run.question[:80]))
    screen().print(table)


@runs.command()
@click.argument("run_id", type=click.UUID)
@tenant_option
@as_option
@json_option
def show(run_id: UUID, tenant: str, email: str, as_json: bool) -> None:
    """A question with its steps, its answer, where it stands, and what verification labelled or dropped."""
    chosen = chosen_tenant(tenant)
    principal = acting_as(chosen, email or f"admin@{chosen.slug}.example")
    with tenant_session(principal.tenant_id) as session:
        run = read_run(session, principal, run_id)
        events = events_after(session, principal, run_id, 0, limit=10_000)
    if run is None:
        raise click.ClickException("There is no such question of this member.")
    if as_json:
        steps = [str(event.data.get("name", "")) for event in events if event.kind == "step"]
        print_json(asdict(run) | {"steps": steps})
        return
    console = screen()
    console.print(f"[bold]{escape(run.question)}[/bold]")
    console.print(f"[dim]{_told(run, events)}[/dim]")
    if run.state == "answered":
        show_answer(run, console)
    elif run.message:
        console.print(escape(run.message))


def _told(run: Run, events: list[RunEvent]) -> str:
    """State, time taken, model and steps in one line."""
    parts = [run.state]
    if run.waiting_for:
        parts.append(f"waits for {run.waiting_for}")
    if isinstance(run.finished_at, datetime):
        parts.append(f"{(run.finished_at - run.created_at).total_seconds():.1f} s")
    steps = [str(event.data.get("name", "")) for event in events if event.kind == "step"]
    return " · ".join([*parts, run.model or "", " › ".join(steps)]).strip(" ·")
