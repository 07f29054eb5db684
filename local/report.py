"""What a person sees while the platform starts and runs: lines, and on a terminal a spinner above the waiting."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status


class Report:
    """Progress on standard output: coloured on a terminal, one plain line a fact elsewhere (logs, CI, --detach)."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._console: Console | None = None
        self._spinner: Status | None = None
        self._waiting = ""
        if sys.stdout.isatty():
            # Late: a detached runner has no terminal and saves the memory.
            from rich.console import Console

            self._console = Console(highlight=False)

    def line(self, mark: str, text: str) -> None:
        """One fact. `mark` is `ok`, `..` (under way) or `!!` (went wrong)."""
        if self._console is not None:
            colour = {"ok": "green", "!!": "red"}.get(mark, "cyan")
            self._console.print(f"[{colour}]{mark}[/] ", end="")
            self._console.print(text, markup=False, soft_wrap=True)
            return
        # Whoever read our lines may have gone (`noesis up | head`); the platform runs on without a reader.
        with suppress(BrokenPipeError):
            print(f"{mark} {text}", flush=True)

    def ready(self, name: str, detail: str = "") -> None:
        """A service became ready, with the time since the start."""
        self.line("ok", f"{name:<12} {detail}{' ' if detail else ''}({time.monotonic() - self._began:.1f} s)")

    def waiting(self, names: Collection[str]) -> None:
        """Who is still awaited; nobody ends the spinner."""
        text = "waiting for " + ", ".join(names) if names else ""
        if self._console is None or text == self._waiting:
            return
        self._waiting = text
        if not text:
            if self._spinner is not None:
                self._spinner.stop()
                self._spinner = None
        elif self._spinner is None:
            self._spinner = self._console.status(text)
            self._spinner.start()
        else:
            self._spinner.update(text)
