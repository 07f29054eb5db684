"""Run events while a run is worked on: steps and pieces of the draft, batched, written by the lease holder only."""

from __future__ import annotations

import time
from typing import Any

from shared.conversations.runs import Lease, RunEvent, append_events, hold
from shared.database import tenant_session

BATCH_SECONDS = 0.1
"""Tokens that come within this time go into one event: readers poll every 0.15 s anyway."""


class Journal:
    """Appends events under consecutive numbers. Raises Superseded when the run was taken over or cancelled."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._seq = lease.next_seq
        self._resumed = lease.epoch > 1
        self._pieces: list[str] = []
        self._flushed_at = 0.0

    @property
    def next_seq(self) -> int:
        """The number of the next event."""
        return self._seq

    def step(self, name: str) -> None:
        """A node begins."""
        self._write("step", {"name": name})

    def restart_draft(self) -> None:
        """Tell readers to drop what they have of the draft: an earlier attempt may have sent some."""
        if self._resumed:
            self._write("draft-restarted", {"attempt": self._lease.epoch})

    def token(self, piece: str) -> None:
        """A piece of the draft."""
        self._pieces.append(piece)
        if time.monotonic() - self._flushed_at >= BATCH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the pieces that wait."""
        if self._pieces:
            text, self._pieces = "".join(self._pieces), []
            self._write("token", {"text": text, "attempt": self._lease.epoch})
        self._flushed_at = time.monotonic()

    def _write(self, kind: str, data: dict[str, Any]) -> None:
        with tenant_session(self._lease.tenant_id) as session:
            hold(session, self._lease)
            append_events(session, self._lease, [RunEvent(self._seq, kind, data)])
        self._seq += 1
