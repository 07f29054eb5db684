"""Work that only the owner of the tables may do: DDL, VACUUM, migrations. It is not cut into slices.

In the cloud such a job is a Cloud Run job (`noesis jobs run NAME`) that Cloud Scheduler starts; its schedule says
`process: true` in terraform/topology.yaml. On a laptop every process has the owner's URL, so maintenance does it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from shared.errors import PermanentError
from shared.retrieval.indexes import owner_connection
from shared.services import Services


def owner_url(services: Services) -> str:
    """The owner's URL. Raises PermanentError `job-needs-owner` in a process without one."""
    url = services.settings.migration_database_url
    if url is None:
        raise PermanentError(
            "job-needs-owner",
            "This job needs the owner's connection to the database.",
            "Run it with `noesis jobs run` where MIGRATION_DATABASE_URL is set.",
        )
    return url.get_secret_value()


@contextmanager
def owner(services: Services) -> Iterator[Connection]:
    """The owner's connection without transactions. Raises like `owner_url`."""
    with owner_connection(owner_url(services)) as connection:
        yield connection
