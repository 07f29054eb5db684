"""Daily: would the migrations of this release apply? Tried and rolled back; what is pending is an alarm."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from functions.maintenance.jobs.ownership import owner_url
from shared.jobs.leases import Lease, Progress
from shared.services import Services

log = logging.getLogger(__name__)

NEEDS_OWNER = True


def run(lease: Lease, services: Services) -> Iterator[Progress]:
    """One slice: the dry run of `noesis migrate`. Raises what a migration that does not apply raises."""
    # Imported late: Alembic costs 0.2 s and only this job needs it.
    from schema import migrate

    pending = migrate.upgrade(owner_url(services), dry_run=True)
    if pending:
        log.warning("migrations are pending", extra={"revisions": ",".join(pending)})
    yield Progress(1, 1, {"pending": len(pending)})
