"""Weekly: VACUUM and ANALYZE of every table, so that plans stay good and space is used again; counts broken indexes."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from functions.maintenance.jobs.ownership import owner
from shared.jobs.leases import Lease, Progress, kept
from shared.services import Services

log = logging.getLogger(__name__)

NEEDS_OWNER = True

_TABLES = (
    "select quote_ident(schemaname) || '.' || quote_ident(tablename) as name from pg_tables "
    "where schemaname in ('core', 'rag') order by 1"
)
_BROKEN = (
    "select count(*) from pg_index i join pg_class r on r.oid = i.indexrelid join pg_namespace n "
    "on n.oid = r.relnamespace where n.nspname in ('core', 'rag') and not i.indisvalid"
)


def run(lease: Lease, services: Services) -> Iterator[Progress]:
    """One table a slice, in the order of names; a further turn goes on after the table in the cursor.

    Raises PermanentError `job-needs-owner`. Readers and writers are not blocked.
    """
    begun = lease.before.cursor or ""
    # A large table or index takes longer than a lease.
    with kept(lease), owner(services) as connection:
        tables = list(connection.exec_driver_sql(_TABLES).scalars())
        broken = int(connection.exec_driver_sql(_BROKEN).scalar_one())
        if broken:
            log.warning("indexes are invalid: `noesis jobs run reindex` mends them", extra={"indexes": broken})
        done = sum(name <= begun for name in tables)
        for name in tables[done:]:
            # skip_locked: a table somebody holds is done next week rather than waited for.
            connection.exec_driver_sql(f"vacuum (analyze, skip_locked) {name}")
            done += 1
            yield Progress(done, len(tables), {"tables": done, "invalid_indexes": broken}, cursor=name)
