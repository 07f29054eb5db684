"""Monthly: every index of ours is rebuilt beside reads and writes, broken ones first removed; then ANALYZE."""

from __future__ import annotations

from collections.abc import Iterator

from functions.maintenance.jobs.ownership import owner
from shared.jobs.leases import Lease, Progress, kept
from shared.retrieval.indexes import concurrently
from shared.services import Services

NEEDS_OWNER = True

# What a REINDEX CONCURRENTLY that was killed leaves behind (PostgreSQL manual, REINDEX, "Rebuilding Indexes
# Concurrently"): both kinds may be dropped, the original is still there or the new one already took its place.
_LEFTOVERS = (
    "select quote_ident(n.nspname) || '.' || quote_ident(r.relname) from pg_index i "
    "join pg_class r on r.oid = i.indexrelid join pg_namespace n on n.oid = r.relnamespace "
    "where n.nspname in ('core', 'rag') and not i.indisvalid and r.relname ~ '_cc(new|old)[0-9]*$'"
)
_INDEXES = (
    "select quote_ident(n.nspname) || '.' || quote_ident(r.relname) as name from pg_index i "
    "join pg_class r on r.oid = i.indexrelid join pg_namespace n on n.oid = r.relnamespace "
    "where n.nspname in ('core', 'rag') order by 1"
)


def run(lease: Lease, services: Services) -> Iterator[Progress]:
    """One index a slice, in the order of names; a further turn goes on after the index in the cursor.

    Raises PermanentError `job-needs-owner`; after 15 minutes of waiting the turn ends, and the next goes on.
    """
    begun = lease.before.cursor or ""
    counts = {"rebuilt": int(lease.before.counts.get("rebuilt", 0)), "removed": 0}
    # A large table or index takes longer than a lease.
    with kept(lease), owner(services) as connection:
        for name in list(connection.exec_driver_sql(_LEFTOVERS).scalars()):
            concurrently(connection, f"drop index concurrently if exists {name}")
            counts["removed"] += 1
        indexes = list(connection.exec_driver_sql(_INDEXES).scalars())
        done = sum(name <= begun for name in indexes)
        for name in indexes[done:]:
            concurrently(connection, f"reindex index concurrently {name}")
            done += 1
            counts["rebuilt"] += 1
            yield Progress(done, len(indexes), dict(counts), cursor=name)
        connection.exec_driver_sql("analyze")
        yield Progress(done, len(indexes), counts, cursor=indexes[-1] if indexes else "")
