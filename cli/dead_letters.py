"""`noesis dead-letters`: messages that nobody could handle, and why."""

from __future__ import annotations

import json
from uuid import UUID

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import text

from shared.database import operator_session


@click.group("dead-letters")
def dead_letters() -> None:
    """Messages that nobody could handle."""


@dead_letters.command("list")
@click.option("--limit", default=50, show_default=True)
def list_(limit: int) -> None:
    """The last dead letters with class, reason and attempts."""
    table = Table("id", "archived", "origin", "message", "class", "reason", "attempts", box=None)
    with operator_session() as session:
        rows = session.execute(
            text(
                "select letter_id, archived_at, origin, name, class, reason, attempts from core.dead_letters "
                "order by archived_at desc limit :limit"
            ),
            {"limit": limit},
        )
        for row in rows:
            table.add_row(
                str(row.letter_id),
                f"{row.archived_at:%Y-%m-%d %H:%M}",
                escape(row.origin),
                escape(row.name or "?"),
                row[4],
                escape(row.reason),
                str(row.attempts),
            )
    Console().print(table)


@dead_letters.command()
@click.argument("letter_id", type=click.UUID)
def show(letter_id: UUID) -> None:
    """One dead letter: reason, attributes, trace, size. The content is not printed."""
    with operator_session() as session:
        row = session.execute(
            text(
                "select origin, message_id, tenant_id, name, class, reason, message, attempts, attributes, "
                "octet_length(data) as bytes, traceparent, archived_at, replayed_at "
                "from core.dead_letters where letter_id = :id"
            ),
            {"id": letter_id},
        ).first()
    if row is None:
        raise click.ClickException("There is no such dead letter; see `noesis dead-letters list`.")
    click.echo(json.dumps(dict(row._mapping), indent=2, default=str, ensure_ascii=False))
