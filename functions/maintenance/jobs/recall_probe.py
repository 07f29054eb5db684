"""Weekly: how much of what exact search finds does each tenant's approximate index find; mean and worst are stored."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from shared.database import operator_session, patiently
from shared.jobs.leases import SLICE_SECONDS, Lease, Progress, kept
from shared.retrieval import indexes, probing
from shared.services import Services

log = logging.getLogger(__name__)

MEAN_FLOOR, WORST_FLOOR = 0.97, 0.8
"""The guarantee for every tenant and for every single query (REQUIREMENTS, section 6)."""


def run(lease: Lease, services: Services) -> Iterator[Progress]:
    """One tenant and space a slice; what falls short of the guarantee is logged as a warning and counted."""
    with operator_session() as session, patiently(session, SLICE_SECONDS):
        found = indexes.corpora(session)
    short = 0
    begun = lease.before.done
    # Exact search compares every vector, fifty times: at a million of them that is as long as a lease.
    with kept(lease):
        for done, corpus in enumerate(found[begun:], start=begun + 1):
            with operator_session() as session, patiently(session, SLICE_SECONDS):
                recall = probing.probe(session, corpus)
            if recall.mean < MEAN_FLOOR or recall.worst < WORST_FLOOR:
                short += 1
                log.warning(
                    "recall below the guarantee",
                    extra={"tenant": str(corpus.tenant_id), "mean": recall.mean, "worst": recall.worst},
                )
            yield Progress(done, len(found), {"probed": done, "below_guarantee": short})
