"""Weekly: how much of what exact search finds does each tenant's approximate index find; mean and worst are stored."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from shared.containment import contained
from shared.database import operator_session, patiently
from shared.jobs.leases import SLICE_SECONDS, Lease, Progress, kept
from shared.retrieval import indexes, probing
from shared.services import Services

log = logging.getLogger(__name__)

MEAN_FLOOR, WORST_FLOOR = 0.97, 0.8
"""The guarantee for every tenant and for every single query (REQUIREMENTS, section 6)."""


def run(lease: Lease, services: Services) -> Iterator[Progress]:
    """One tenant and space a slice; what falls short of the guarantee is logged as a warning and counted.

    So is what fails for one, whose space may have been dropped meanwhile: the others are probed all the same.
    """
    with operator_session() as session, patiently(session, SLICE_SECONDS):
        found = indexes.corpora(session)
    begun, before = lease.before.done, lease.before.counts
    counts = {name: int(before.get(name, 0)) for name in ("probed", "below_guarantee", "failed")}
    # Exact search compares every vector, fifty times: at a million of them that is as long as a lease.
    with kept(lease):
        for done, corpus in enumerate(found[begun:], start=begun + 1):
            counts["probed"] = done
            recall = None
            with contained(corpus.tenant_id, "recall not probed", counts):
                with operator_session() as session, patiently(session, SLICE_SECONDS):
                    recall = probing.probe(session, corpus)
            if recall is not None and (recall.mean < MEAN_FLOOR or recall.worst < WORST_FLOOR):
                counts["below_guarantee"] += 1
                log.warning(
                    "recall below the guarantee",
                    extra={"tenant": str(corpus.tenant_id), "mean": recall.mean, "worst": recall.worst},
                )
            yield Progress(done, len(found), dict(counts))
