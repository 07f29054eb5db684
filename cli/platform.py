"""`noesis up | down | status`: the platform on this machine."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from cli.screen import screen, table_of
from shared.settings import home

if TYPE_CHECKING:
    from local.status import PlatformStatus

# `local` is imported late throughout: it is never shipped, and in the image these commands have nothing to start.


@click.command()
@click.option("--detach", is_flag=True, help="Return when everything is ready; `noesis down` stops it.")
def up(detach: bool) -> None:
    """Start the whole platform on this machine; Ctrl-C stops it."""
    if not detach:
        # The runner lives long: as a program of its own it does not carry the other commands' libraries (30 MB).
        os.execv(sys.executable, [sys.executable, "-m", "local.runner"])  # noqa: S606
    from local import control, runner

    runner.platform_settings()  # a wrong setting is reported here, not in a log
    control.detach(home().resolve(), click.echo)


@click.command()
def down() -> None:
    """Stop the platform of this home, also what a killed runner left behind."""
    from local import control
    from local.report import Report

    stopped = control.down(home().resolve(), Report())
    click.echo("stopped" if stopped else "nothing was running")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON object.")
def status(as_json: bool) -> None:
    """Show services, health, memory, backlog and addresses; exit status 0 only when all is healthy."""
    from local.status import collect

    found = collect(home().resolve())
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        _show(found)
    raise SystemExit(0 if found.healthy else 1)


def _show(found: PlatformStatus) -> None:
    console = screen()
    console.print(f"noesis2 in {found.home}: {found.phase}", markup=False)
    if found.error:
        console.print(f"error: {found.error}", markup=False)
    table = table_of("service", "state", "pid", "port", "up", "restarts", "RSS MiB", "PSS MiB", whole=("service",))
    for service in found.services:
        state = f"[green]{service.detail}[/]" if service.healthy else f"[red]{service.detail}[/]"
        figures = [f"{service.rss:.0f}", f"{service.pss:.0f}"] if service.pid else ["", ""]
        uptime = _duration(service.uptime) if service.pid else ""
        table.add_row(
            service.name, state, _text(service.pid), _text(service.port), uptime, str(service.restarts), *figures
        )
    table.add_row("together", "", "", "", "", "", f"{found.rss:.0f}", f"{found.pss:.0f}")
    console.print(table)
    _show_bus(console, found.bus)
    for name, address in found.addresses.items() if found.phase == "ready" else ():
        console.print(f"{name:<12} {address}", markup=False)


def _show_bus(console: Console, bus: dict[str, Any]) -> None:
    subscriptions = bus.get("subscriptions", {})
    if not subscriptions:
        return
    columns = sorted({column for figures in subscriptions.values() for column in figures})
    table = table_of("subscription", *(column.replace("_", " ") for column in columns))
    for name, figures in subscriptions.items():
        table.add_row(name, *(_text(figures.get(column)) for column in columns))
    console.print(table)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _text(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if isinstance(value, float) else str(value)
