"""The doors of maintenance: jobs from the scheduler, and messages that nobody could handle."""

from __future__ import annotations

import functions_framework

from functions.maintenance.archiving import archive_exhausted
from functions.maintenance.running import run_job
from shared.doors import Delivery, by_path, handles, receives_raw, services
from shared.events import RunJob


@handles(RunJob)
def jobs(command: RunJob, delivery: Delivery) -> None:
    """Run a job for its slot."""
    run_job(command, services())


@receives_raw
def dead_letters(delivery: Delivery) -> None:
    """Archive a message whose deliveries are used up."""
    archive_exhausted(delivery)


maintenance = functions_framework.http(by_path(root=jobs, dead_letters=dead_letters))
