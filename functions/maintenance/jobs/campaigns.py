"""Every minute: changes of the embedding model go on: batches, indexes, `ready`, the end of grace periods, dropping.

An index is built here when this process has the owner's connection (MIGRATION_DATABASE_URL), otherwise the campaign
waits for `index-care` where there is one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from uuid import UUID

from sqlalchemy.exc import DBAPIError

from shared.containment import contained
from shared.database import operator_session, tenant_session
from shared.documents.storing import Batch
from shared.errors import PermanentError
from shared.jobs.leases import Lease, Progress
from shared.retrieval import campaigns, filling, indexes, switching, tending
from shared.retrieval.indexes import Corpus
from shared.retrieval.spaces import space_by_id
from shared.services import Services

log = logging.getLogger(__name__)

ACTOR = "job:campaigns"
NOT_TENDED = "campaign not tended"


def run(lease: Lease, services: Services) -> Iterator[Progress]:
    """One campaign, one index or one slice of vectors at a time; all of it may be repeated."""
    counts = {"tended": 0, "ready": 0, "indexed": 0, "completed": 0, "dropped_spaces": 0, "dropped_vectors": 0}
    with operator_session() as operator:
        tending.share_slots(operator, services.settings.campaign_batches)
    for tenant_id, space_id, _ in campaigns.open_campaigns(("filling", "ready", "switched")):
        counts["tended"] += 1
        with contained(tenant_id, NOT_TENDED):
            _look_after(tenant_id, space_id, services, counts)
        yield Progress(counts["tended"], None, _changes(counts))
    now = services.clock.now()
    for tenant_id, _, grace_until in campaigns.open_campaigns(("switched",)):
        if grace_until is not None and grace_until <= now:
            with contained(tenant_id, NOT_TENDED):
                counts["completed"] += _complete(tenant_id, services)
            yield Progress(counts["tended"], None, _changes(counts))
    with operator_session() as operator:
        doomed = switching.left_behind(operator, now)
    for tenant_id, campaign_id, space_id in doomed:
        with contained(tenant_id, NOT_TENDED):
            for deleted in _drop(tenant_id, campaign_id, space_id, services):
                counts["dropped_vectors"] += deleted
                yield Progress(counts["tended"], None, _changes(counts))
            counts["dropped_spaces"] += 1
    yield Progress(counts["tended"], counts["tended"], _changes(counts))


def _look_after(tenant_id: UUID, space_id: UUID, services: Services, counts: dict[str, int]) -> None:
    """Batches and, for a space that is full, its index and the state `ready`."""
    full = _tend(tenant_id, space_id, services)
    if full is None:
        return
    ready = _make_ready(tenant_id, space_id, full)
    if not ready and _build_index(tenant_id, space_id, full.done, services):
        counts["indexed"] += 1
        ready = _make_ready(tenant_id, space_id, full)
    counts["ready"] += ready


def _changes(counts: dict[str, int]) -> dict[str, int]:
    """Without what merely was looked at: a quiet minute is not worth an audit record."""
    return {name: count for name, count in counts.items() if name != "tended"}


def _tend(tenant_id: UUID, space_id: UUID, services: Services) -> filling.Progress | None:
    small = Batch(services.settings.campaign_batch_size, services.settings.batch_tokens)
    with tenant_session(tenant_id) as session:
        return tending.tend(session, tenant_id, space_id, small)


def _make_ready(tenant_id: UUID, space_id: UUID, full: filling.Progress) -> bool:
    with tenant_session(tenant_id) as session:
        return tending.make_ready(session, tenant_id, space_id, full)


def _build_index(tenant_id: UUID, space_id: UUID, vectors: int, services: Services) -> bool:
    """Whether the index was built now: not without the owner's connection, and not while somebody else builds it."""
    url = services.settings.migration_database_url
    with operator_session() as operator:
        space = space_by_id(operator, space_id)
    if url is None or space is None:
        return False
    try:
        with indexes.owner_connection(url.get_secret_value()) as owner:
            return indexes.build_missing(owner, Corpus(tenant_id, space_id, space.dimension, vectors, indexed=False))
    except DBAPIError:
        # One tenant's index must not keep the other campaigns waiting; the next minute tries again.
        log.warning("index not built", extra={"tenant": str(tenant_id)}, exc_info=True)
        return False


def _complete(tenant_id: UUID, services: Services) -> int:
    try:
        with operator_session() as operator:
            switching.complete(operator, tenant_id, now=services.clock.now(), actor=ACTOR)
    except PermanentError:
        return 0  # somebody rolled it back in this very moment
    campaigns.finish_held_versions(tenant_id, services.settings.documents_in_progress)
    return 1


def _drop(tenant_id: UUID, campaign_id: UUID, space_id: UUID, services: Services) -> Iterator[int]:
    """Vectors in slices, then the index, then the tenant's row: what a later campaign uses again stays."""
    with operator_session() as operator:
        retired = switching.retire(operator, tenant_id, space_id)
        space = space_by_id(operator, space_id)
    if retired:
        yield from switching.empty(tenant_id, space_id)
        url = services.settings.migration_database_url
        if url is not None and space is not None:
            # Without the owner's connection `index-care` finds it as an orphan.
            with indexes.owner_connection(url.get_secret_value()) as owner:
                indexes.drop(owner, Corpus(tenant_id, space_id, space.dimension, 0, indexed=True))
    with operator_session() as operator:
        switching.forget_space(operator, tenant_id, campaign_id, space_id)
