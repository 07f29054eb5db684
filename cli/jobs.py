"""`noesis jobs`: what maintenance does, when it did, how far it is; run one by hand."""

from __future__ import annotations

import getpass
import inspect
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime

import click
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from sqlalchemy import text

from cli.screen import screen, table_of
from functions.maintenance.running import JOBS, run_job
from shared.database import operator_session
from shared.errors import Superseded
from shared.events import RunJob
from shared.jobs.leases import Progress
from shared.services import services
from shared.settings import get_settings
from shared.tracing import configure_logging


@click.group()
def jobs() -> None:
    """Maintenance jobs: list them, run one now."""


@jobs.command("list")
@click.option("--history", default=1, show_default=True, type=click.IntRange(1, 1000), help="Runs shown of each job.")
def list_(history: int) -> None:
    """Every job with its last runs: state, progress, turns, result, who started it."""
    table = table_of("job", "slot (UTC)", "state", "progress", "turns", "result", "by", whole=("job",))
    with operator_session() as session:
        rows = session.execute(
            text(
                "select * from (select job, slot, state, lease_until < now() as lapsed, done, total, epoch, failures, "
                "result, actor, error, row_number() over (partition by job order by slot desc) as number "
                "from core.job_runs) r where number <= :history order by job, slot desc"
            ),
            {"history": history},
        ).all()
    for row in rows:
        state = "waiting for a worker" if row.state == "running" and row.lapsed else row.state
        result = ", ".join(f"{name} {value}" for name, value in row.result.items() if value) or "nothing to do"
        table.add_row(
            row.job,
            f"{row.slot:%Y-%m-%d %H:%M}",
            state + (f" ({escape(row.error)})" if row.error else ""),
            f"{row.done}/{'?' if row.total is None else row.total}",
            str(row.epoch) + (f", {row.failures} failed" if row.failures else ""),
            escape(result),
            escape(row.actor),
        )
    for name in sorted(JOBS.keys() - {row.job for row in rows}):
        table.add_row(name, "never", "", "", "", "", "")
    console = screen()
    console.print(table)
    console.print()
    for name, job in sorted(JOBS.items()):
        console.print(f"[bold]{name}[/bold]: {escape(_first_line(job))}")


@jobs.command()
@click.argument("name", type=click.Choice(sorted(JOBS)))
@click.option("--slot", type=click.DateTime(), help="Take up a slot that was left undone (UTC); default: a new one.")
def run(name: str, slot: datetime | None) -> None:
    """Run a job now, in this process and without a time limit; prints its counts as JSON.

    The same lease as everywhere: while the job runs anywhere, this says so and ends with status 1.
    """
    configure_logging(get_settings().log_format)
    command = RunJob(job=name, slot=slot.replace(tzinfo=UTC) if slot else datetime.now(UTC))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=screen(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(name, total=None)

        def watch(progress: Progress) -> None:
            bar.update(task, completed=progress.done, total=progress.total)

        try:
            counts = run_job(command, services(), actor=f"operator:{getpass.getuser()}", seconds=None, watch=watch)
        except Superseded as reason:
            raise click.ClickException(f"Not run: {reason}.") from None
    click.echo(json.dumps(counts))


def _first_line(job: Callable[..., object]) -> str:
    module = inspect.getmodule(job)
    return (module.__doc__ or "").strip().splitlines()[0] if module else ""
