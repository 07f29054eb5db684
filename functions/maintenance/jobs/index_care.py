"""Daily: statistics of lexical search are refreshed, approximate indexes built and dropped as tenants grew or shrank.

Index builds need the owner's connection (MIGRATION_DATABASE_URL). Where this process has none, they are counted as
`waiting` and left to `noesis jobs run index-care`, which runs as a Cloud Run job in the cloud.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared.database import operator_session, patiently
from shared.jobs.leases import SLICE_SECONDS, Lease, Progress
from shared.retrieval import indexes, statistics
from shared.services import Services

NEEDS_OWNER = True


def run(lease: Lease, services: Services) -> Iterator[Progress]:
    """One tenant's statistics or one index a slice; all of it may be repeated."""
    url = services.settings.migration_database_url
    with operator_session() as session:
        tenants = statistics.stale(session)
        found = indexes.corpora(session)
    plan = indexes.plan(found)
    total = len(tenants) + len(plan.build) + len(plan.drop)
    counts = {"refreshed": 0, "forgotten_words": 0, "built": 0, "dropped": 0, "waiting": 0}
    for done, tenant_id in enumerate(tenants, start=1):
        with operator_session() as session, patiently(session, SLICE_SECONDS):
            statistics.refresh(session, tenant_id)
            counts["forgotten_words"] += statistics.prune(session, tenant_id)
        counts["refreshed"] += 1
        yield Progress(done, total, dict(counts))
    if url is None:
        counts["waiting"] = len(plan.build) + len(plan.drop)
        yield Progress(len(tenants), total, dict(counts))
        return
    with indexes.owner_connection(url.get_secret_value()) as owner:
        counts["dropped"] += indexes.remove_orphans(owner, found)
        for corpus in plan.drop:
            indexes.drop(owner, corpus)
            counts["dropped"] += 1
            yield Progress(len(tenants) + counts["dropped"], total, dict(counts))
        for corpus in plan.build:
            counts["built"] += indexes.build_once(owner, corpus)
            yield Progress(len(tenants) + counts["dropped"] + counts["built"], total, dict(counts))
