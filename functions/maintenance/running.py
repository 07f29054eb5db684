"""Runs a job by name for one slot of its schedule: takes the lease, works in slices, hands over before the deadline."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from functions.maintenance.jobs import (
    campaigns,
    collect_blobs,
    dead_letter_check,
    index_care,
    index_test,
    purge,
    purge_documents,
    recall_probe,
    refresh_web_sources,
    reindex,
    schema_check,
    sweep,
    vacuum,
)
from shared.database import operator_session
from shared.errors import PermanentError
from shared.events import RunJob
from shared.jobs.leases import (
    SCHEDULE,
    Lease,
    Progress,
    fenced,
    finish,
    hand_over,
    next_turn,
    record_progress,
    release,
    take,
)
from shared.messaging import send_command
from shared.services import Services

log = logging.getLogger(__name__)

Job = Callable[[Lease, Services], Iterator[Progress]]
"""Works and yields after every slice how far it is; a slice takes seconds and may be repeated after a crash.

Writes go through `shared.jobs.leases.fenced(lease)` unless repeating them is harmless. The first line of its module
says when it runs and what for (`noesis jobs list`).
"""

JOBS: dict[str, Job] = {
    "sweep": sweep.run,
    "campaigns": campaigns.run,
    "refresh-web-sources": refresh_web_sources.run,
    "dead-letter-check": dead_letter_check.run,
    "purge": purge.run,
    "purge-documents": purge_documents.run,
    "collect-blobs": collect_blobs.run,
    "index-care": index_care.run,
    "recall-probe": recall_probe.run,
    "schema-check": schema_check.run,
    "vacuum": vacuum.run,
    "reindex": reindex.run,
    "index-test": index_test.run,
}

WORK_SECONDS = 480.0
"""A turn ends itself here: below the service's timeout of 540 s, and that below the ack deadline of 600 s."""


def run_job(
    command: RunJob,
    services: Services,
    *,
    actor: str = SCHEDULE,
    seconds: float | None = WORK_SECONDS,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Mapping[str, Any] | None:
    """Run the job unless its slot has ended or another slot runs; returns its counts, None when it was handed over.

    `seconds` is how long this turn may take (None: as long as it takes), `watch` sees every slice.
    Raises PermanentError `unknown-job`, Superseded, and what the job raises, after giving the slot back.
    """
    job = JOBS.get(command.job)
    if job is None:
        raise PermanentError("unknown-job", "There is no such job.", "See `noesis jobs list`.")
    with operator_session() as session:
        lease = take(session, command.job, command.slot, actor)
    began = services.clock.now()
    progress = lease.before
    ended = False
    try:
        for progress in job(lease, services):
            with fenced(lease) as session:
                record_progress(session, lease, progress)
            watch(progress)
            if seconds is not None and (services.clock.now() - began).total_seconds() >= seconds:
                ended = True
                _hand_over(lease, command)
                return None
        with fenced(lease) as session:
            finish(session, lease)
        ended = True
    finally:
        if not ended:
            kind = sys.exc_info()[0]
            with operator_session() as session:
                release(session, lease, kind.__name__ if kind else "unknown")
    if any(progress.counts.values()):
        log.info("job done", extra={"job": command.job, **progress.counts})
    return progress.counts


def _hand_over(lease: Lease, command: RunJob) -> None:
    with fenced(lease) as session:
        hand_over(session, lease)
    # The row is what keeps it: if this message is lost, the sweep finds a slot that nobody works on.
    send_command(next_turn(command.job, command.slot, lease.epoch))
    log.info("job handed over", extra={"job": lease.job, "turn": lease.epoch})
