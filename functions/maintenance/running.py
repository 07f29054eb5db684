"""Runs a job by name for one slot of its schedule."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from functions.maintenance.jobs import sweep
from shared.database import operator_session
from shared.errors import PermanentError, TransientError
from shared.events import RunJob
from shared.jobs.leases import finish_slot, release_slot, take_slot

log = logging.getLogger(__name__)

JOBS: dict[str, Callable[[], dict[str, Any]]] = {"sweep": sweep.run}


def run_job(command: RunJob) -> None:
    """Run the job unless its slot is done or another slot runs. Raises PermanentError `unknown-job`, Superseded."""
    job = JOBS.get(command.job)
    if job is None:
        raise PermanentError("unknown-job", "There is no such job.", "See terraform/topology.yaml for the schedules.")
    with operator_session() as session:
        take_slot(session, command.job, command.slot)
    try:
        result = job()
    except TransientError:
        with operator_session() as session:
            release_slot(session, command.job, command.slot)
        raise
    with operator_session() as session:
        finish_slot(session, command.job, command.slot, result)
    if any(result.values()):
        log.info("job done", extra={"job": command.job, **result})
