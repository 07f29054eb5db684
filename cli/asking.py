"""`noesis ask`: a question, its answer as it comes, and the proof."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict
from uuid import UUID

import click
from rich.console import Console
from rich.markup import escape

from cli.context import acting_as, chosen_tenant, tenant_option
from cli.screen import json_option, print_json, screen
from shared.conversations.runs import Run, events_after, read_run
from shared.conversations.runs import ask as ask_question
from shared.database import tenant_session
from shared.tenants.directory import Principal

ENDED = ("answered", "failed", "cancelled")


@click.command()
@click.argument("question")
@tenant_option
@click.option("--as", "email", default="", help="E-mail of the member who asks; default the administrator.")
@click.option(
    "--timeout", default=300, show_default=True, type=click.IntRange(0, 86_400), help="Longest wait in seconds."
)
@click.option("--after", type=click.UUID, help="Run whose conversation this question continues.")
@json_option
def ask(question: str, tenant: str, email: str, timeout: int, after: UUID | None, as_json: bool) -> None:
    """Ask a question and read a cited answer. Ends with status 0 when it is answered, also with “no evidence”."""
    chosen = chosen_tenant(tenant)
    principal = acting_as(chosen, email or f"admin@{chosen.slug}.example")
    with tenant_session(principal.tenant_id) as session:
        before = read_run(session, principal, after) if after else None
        if after and before is None:
            raise click.BadParameter("there is no such run of this member", param_hint="--after")
        conversation = before.conversation_id if before else None
        run_id = ask_question(session, principal, question, conversation_id=conversation)
    console = screen()
    run = follow(principal, run_id, timeout, screen(stderr=True))
    if as_json:
        print_json(asdict(run) if run else {"run_id": run_id, "state": "queued"})
        raise click.exceptions.Exit(0 if run and run.state == "answered" else 1)
    if run is None or run.state not in ENDED:
        waits = f" It waits for {run.waiting_for}." if run and run.waiting_for else ""
        console.print(f"[yellow]Still working on it; see `noesis runs show {run_id}`.{waits}[/yellow]")
        raise click.exceptions.Exit(1)
    if run.state != "answered":
        console.print(f"[red]{run.state}[/red] {escape(run.message or '')}")
        raise click.exceptions.Exit(1)
    show(run, console)


def follow(principal: Principal, run_id: UUID, timeout: float, console: Console) -> Run | None:
    """Show the steps while the run is worked on; returns it when it ended or, as it then is, the time is over."""
    deadline = time.monotonic() + timeout
    seq, run = 0, None
    with console.status("queued") as spinner:
        while time.monotonic() < deadline:
            with tenant_session(principal.tenant_id) as session:
                events = events_after(session, principal, run_id, seq)
                run = read_run(session, principal, run_id)
            for event in events:
                seq = event.seq
                if event.kind == "step":
                    spinner.update(str(event.data.get("name", "")))
            if run is not None and run.state in ENDED:
                return run
            time.sleep(0.1)
    return run


def show(run: Run, console: Console) -> None:
    """Print the answer and where each citation stands."""
    console.print(f"\n{escape(run.answer or '')}\n")
    for citation in run.citations:
        place = [citation.title]
        if citation.page is not None:
            place.append(f"page {citation.page}")
        place += [heading for heading in citation.heading_path if heading != citation.title]
        console.print(f"[bold]\\[{citation.number}][/bold] {escape(' › '.join(place))}")
        console.print(f"    “{escape(' '.join(citation.quote.split()))}”")
    if run.findings:
        console.print(f"[dim]{checked(run)}[/dim]")
    console.print(f"[dim]{run.run_id} · {run.cost_eur.normalize():f} EUR[/dim]")


def checked(run: Run) -> str:
    """What verification found, counted: “Checked: 2 × invented, 1 × unmarked”."""
    counts = ", ".join(f"{count} × {finding}" for finding, count in Counter(run.findings).items())
    dropped = "; nothing of the draft was proven, so it was dropped" if run.no_evidence else ""
    return f"Checked: {counts}{dropped}"
