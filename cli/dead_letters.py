"""`noesis dead-letters`: messages that nobody could handle, and why; replay, discard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import click
from rich.markup import escape

from cli.context import actor
from cli.screen import json_option, print_json, screen, table_of
from shared.database import operator_session
from shared.dead_letters.letters import Selection, choose, count_letters, describe, list_letters
from shared.dead_letters.replay import Outcome, discard, replay
from shared.dead_letters.tables import CLASSES
from shared.tenants.directory import find_tenant, list_tenants

REPLAY_LIMIT = 1000
"""Letters one command replays: more at once would stand before today's work."""


class Since(click.ParamType[datetime]):
    """A time, or how long ago: `2026-11-20`, `2026-11-20T08:00`, `90m`, `24h`, `7d`."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """An aware UTC time; fails the command for anything else."""
        if isinstance(value, datetime):
            return value
        unit = {"m": "minutes", "h": "hours", "d": "days"}.get(str(value)[-1:])
        try:
            if unit and str(value)[:-1].isdecimal():
                return datetime.now(UTC) - timedelta(**{unit: int(value[:-1])})
            parsed = datetime.fromisoformat(value)
        except (ValueError, OverflowError):
            self.fail("a time like 2026-11-20T08:00 (UTC), or how long ago: 90m, 24h, 7d", param, ctx)
        return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def selecting(command: Callable[..., None]) -> Callable[..., None]:
    """The filters that `list`, `replay` and `discard` share."""
    for option in (
        click.option("--since", type=Since(), help="Archived since then: 2026-11-20T08:00, 90m, 24h, 7d."),
        click.option("--reason", default="", help="Only this reason code."),
        click.option("--tenant", "-t", default="", help="Only of this tenant (slug or id), as the messages claim."),
        click.option("--class", "kind", type=click.Choice(CLASSES), default=None, help="Only this class."),
    ):
        command = option(command)
    return command


@click.group("dead-letters")
def dead_letters() -> None:
    """Messages that nobody could handle: look at them, replay them, discard them."""


@dead_letters.command("list")
@selecting
@click.option("--all", "ended", is_flag=True, help="Also those replayed or discarded already.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000))
@json_option
def list_(
    kind: str | None, tenant: str, reason: str, since: datetime | None, ended: bool, limit: int, as_json: bool
) -> None:
    """The newest open dead letters with class, reason and attempts."""
    chosen = _selection(kind, tenant, reason, since, ended)
    with operator_session() as session:
        letters = list_letters(session, chosen, limit)
        total = count_letters(session, chosen)
        slugs = {one.tenant_id: one.slug for one in list_tenants(session)}
    if as_json:
        rows = [{name: getattr(letter, name) for name in letter.__slots__} for letter in letters]
        print_json(rows)
        return
    if not letters:
        click.echo("No dead letters." if ended else "No open dead letters.")
        return
    headers = ("id", "archived (UTC)", "from", "tenant", "message", "class", "reason", "tries", "state")
    table = table_of(*headers, whole=("id",))
    for letter in letters:
        tenant_name = slugs.get(letter.tenant_id, "unknown") if letter.tenant_id else "none"
        state = letter.state + (f" ×{letter.replays}" if letter.replays > 1 else "")
        told = (letter.origin, tenant_name, letter.name or "?", letter.kind, letter.reason, str(letter.attempts), state)
        table.add_row(str(letter.letter_id), f"{letter.archived_at:%Y-%m-%d %H:%M}", *map(escape, told))
    console = screen()
    console.print(table)
    if total > len(letters):
        console.print(f"{len(letters)} of {total}; see more with --limit.")


@dead_letters.command()
@click.argument("letter_id", type=click.UUID)
def show(letter_id: UUID) -> None:
    """One dead letter: reason, attempts, trace, size. Its content is not printed."""
    with operator_session() as session:
        letter = describe(session, letter_id)
    if letter is None:
        raise click.ClickException("There is no such dead letter; see `noesis dead-letters list`.")
    print_json(letter)


@dead_letters.command("replay")
@click.argument("letter_ids", nargs=-1, type=click.UUID)
@selecting
@click.option("--all", "everything", is_flag=True, help="Every open letter that can be replayed.")
@click.option("--limit", default=REPLAY_LIMIT, show_default=True, type=click.IntRange(1, REPLAY_LIMIT))
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@click.option("--again", is_flag=True, help="With ids: also letters that were replayed before.")
def replay_(
    letter_ids: tuple[UUID, ...],
    kind: str | None,
    tenant: str,
    reason: str,
    since: datetime | None,
    everything: bool,
    limit: int,
    dry_run: bool,
    again: bool,
) -> None:
    """Send letters again, oldest first: the ids given, or all that the filters select.

    The documents and runs that failed with them go on. What cannot be sent again is named with the reason.
    """
    ids = _ids(letter_ids, _selection(kind, tenant, reason, since), everything, limit)
    who = actor()

    def send(letter_id: UUID) -> Outcome:
        with operator_session() as session:  # one transaction a letter: one that cannot be sent stops no other
            return replay(session, letter_id, actor=who, again=again, dry_run=dry_run)

    _each(ids, send, "would be replayed" if dry_run else "replayed")


@dead_letters.command("discard")
@click.argument("letter_ids", nargs=-1, type=click.UUID)
@selecting
@click.option("--all", "everything", is_flag=True, help="Every open letter.")
@click.option("--limit", default=REPLAY_LIMIT, show_default=True, type=click.IntRange(1, REPLAY_LIMIT))
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard_(
    letter_ids: tuple[UUID, ...],
    kind: str | None,
    tenant: str,
    reason: str,
    since: datetime | None,
    everything: bool,
    limit: int,
    yes: bool,
) -> None:
    """Take letters off the list for good: they are not replayed and are deleted after 30 days."""
    ids = _ids(letter_ids, _selection(kind, tenant, reason, since), everything, limit)
    if ids and not yes:
        click.confirm(f"Discard {len(ids)} dead letters?", abort=True)
    who = actor()

    def drop(letter_id: UUID) -> Outcome:
        with operator_session() as session:
            return discard(session, letter_id, actor=who)

    _each(ids, drop, "discarded")


def _selection(kind: str | None, tenant: str, reason: str, since: datetime | None, ended: bool = False) -> Selection:
    tenant_id = None
    if tenant:
        with operator_session() as session:
            tenant_id = find_tenant(session, tenant).tenant_id
    return Selection(kind or "", tenant_id, reason, since, ended)


def _ids(given: Sequence[UUID], selection: Selection, everything: bool, limit: int) -> Sequence[UUID]:
    filtered = selection != Selection()
    if sum((bool(given), filtered, everything)) != 1:
        raise click.UsageError("Say which: ids, or filters (--class, --tenant, --reason, --since), or --all.")
    if given:
        return given
    with operator_session() as session:
        return choose(session, selection, limit)


def _each(ids: Sequence[UUID], act: Callable[[UUID], Outcome], done: str) -> None:
    """Do it to every letter and say how it went; the exit status is 1 when one could not be."""
    failed = 0
    for letter_id in ids:
        outcome = act(letter_id)
        failed += not outcome.done
        click.echo(f"{letter_id}  {'ok  ' if outcome.done else 'not '} {outcome.detail}")
    click.echo(f"{len(ids) - failed} {done}" + (f", {failed} not" if failed else "") + ".")
    if failed:
        raise click.exceptions.Exit(1)
