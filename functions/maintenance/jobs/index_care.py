"""Daily: statistics of lexical search are refreshed, approximate indexes built and dropped as tenants grew or shrank.

Index builds need the owner's connection (MIGRATION_DATABASE_URL). Where this process has none, they are counted as
`waiting` and left to `noesis jobs run index-care`, which runs as a Cloud Run job in the cloud.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from uuid import UUID

from shared.containment import contained
from shared.database import operator_session, patiently
from shared.jobs.leases import SLICE_SECONDS, Lease, Progress, kept
from shared.retrieval import indexes, statistics
from shared.services import Services

NEEDS_OWNER = True

COUNTED = ("refreshed", "forgotten_words", "failed", "built", "dropped", "waiting")


def run(lease: Lease, services: Services) -> Iterator[Progress]:
    """A segment of a tenant's statistics or one index a slice; all of it may be repeated."""
    url = services.settings.migration_database_url
    with operator_session() as session, patiently(session, SLICE_SECONDS):
        tenants = statistics.stale(session)
        found = indexes.corpora(session)
    plan = indexes.plan(found)
    work = len(plan.build) + len(plan.drop)
    counts = {name: int(lease.before.counts.get(name, 0)) for name in COUNTED} | {"waiting": 0}
    # Giving out the statistics of a million chunks takes minutes, and nothing of a build can be told before its end.
    with kept(lease):
        done = 0
        for done, total in _in_turns(tenants, counts):
            yield Progress(done, total + work, dict(counts))
        if url is None:
            counts["waiting"] = work
            yield Progress(done, done + work, dict(counts))
            return
        for indexed in _care_for_indexes(url.get_secret_value(), counts):
            yield Progress(done + indexed, done + max(work, indexed), dict(counts))


def _care_for_indexes(url: str, counts: dict[str, int]) -> Iterator[int]:
    """Drop what is too much and build what is missing; yields how many were seen to.

    By what is there now: hours may have passed with statistics, and a campaign builds indexes of its own. What fails
    for one is logged, counted and tried again tomorrow.
    """
    with operator_session() as session, patiently(session, SLICE_SECONDS):
        found = indexes.corpora(session)
    plan = indexes.plan(found)
    with indexes.owner_connection(url) as owner:
        counts["dropped"] += indexes.remove_orphans(owner, found)
        for number, corpus in enumerate((*plan.drop, *plan.build), start=1):
            with contained(corpus.tenant_id, "index not built or dropped", counts):
                if corpus.indexed:
                    indexes.drop(owner, corpus)
                    counts["dropped"] += 1
                else:
                    counts["built"] += indexes.build_missing(owner, corpus)
            yield number


def _in_turns(tenants: Sequence[UUID], counts: dict[str, int]) -> Iterator[tuple[int, int]]:
    """A step of each tenant's statistics after the other's, so that small ones do not wait for a large one to end.

    Yields (steps done, steps known of). What goes wrong with one is logged, counted and tried again tomorrow.
    """
    waiting = deque((tenant_id, _refresh(tenant_id, counts)) for tenant_id in tenants)
    steps = dict.fromkeys(tenants, (0, 1))
    while waiting:
        tenant_id, refreshing = waiting.popleft()
        step = None  # also where the tenant's statistics are done
        with contained(tenant_id, "statistics not refreshed", counts):
            step = next(refreshing, None)
        if step is None:
            continue
        steps[tenant_id] = step
        waiting.append((tenant_id, refreshing))
        yield sum(done for done, _ in steps.values()), sum(total for _, total in steps.values())


def _refresh(tenant_id: UUID, counts: dict[str, int]) -> Iterator[tuple[int, int]]:
    done = total = 0
    for done, total in statistics.refreshing(tenant_id):
        yield done, total + 1
    counts["refreshed"] += 1
    before = 0
    for forgotten in statistics.forgetting(tenant_id):
        counts["forgotten_words"] += forgotten - before
        before = forgotten
        yield done, total + 1
    yield done + 1, total + 1
