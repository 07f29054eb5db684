"""The switch, the way back, and the end of the space that is left behind.

Switch and rollback are two updates in one transaction that nobody who completes a version can come between. During
the grace period the old space stays `filling`: new versions get vectors in both, so the way back loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import operator_session
from shared.errors import PermanentError
from shared.retrieval.campaigns import Campaign, locked, note, set_space, set_state
from shared.retrieval.filling import Filling, Progress, progress
from shared.retrieval.indexes import BUILD_FROM, is_there
from shared.retrieval.spaces import Space, change_spaces, state_in

RUNS = timedelta(minutes=15)
"""Longer than any run (a service's timeout is at most 540 s): who read the old space as active is done with it then."""

GRACE = timedelta(days=7)
LONGEST_GRACE = timedelta(days=90)
SLICE = 2_000
"""Vectors deleted in a transaction."""


def switch(
    operator: Session, tenant_id: UUID, *, now: datetime, grace: timedelta = GRACE, tolerate: int = 0, actor: str
) -> Campaign:
    """Answer from the new space from now on; questions under way end in the old one.

    `tolerate` so many chunks that the new model refused: they will not be found. Raises PermanentError
    `campaign-state`, `campaign-not-ready`, `chunks-failed`, `bad-grace`.
    """
    if not RUNS <= grace <= LONGEST_GRACE:
        raise PermanentError(
            "bad-grace", "The grace period is 15 minutes to 90 days: questions under way need the old space.", ""
        )
    campaign = locked(operator, tenant_id, "ready")
    found = progress(operator, campaign.filling)
    if found.left or not indexed(operator, tenant_id, campaign.target, found.done):
        raise PermanentError(
            "campaign-not-ready",
            f"{found.left} chunks came since and are being embedded, or the new space's index is not built.",
            "Try again in minutes.",
        )
    _bear(found, tolerate)
    set_space(operator, tenant_id, campaign.source.space_id, "filling")
    set_space(operator, tenant_id, campaign.target.space_id, "active")
    set_state(operator, campaign, "switched", "switched_at = :now, grace_until = :until", now=now, until=now + grace)
    note(operator, campaign, "campaign-switched", actor, refused_chunks=found.failed)
    return campaign


def rollback(operator: Session, tenant_id: UUID, *, now: datetime, tolerate: int = 0, actor: str) -> Campaign:
    """Answer from the old space again, at once; what the new one has is kept until the grace period is over.

    Raises PermanentError `campaign-state`, `grace-over`, `rollback-incomplete`.
    """
    campaign = locked(operator, tenant_id, "switched")
    if campaign.grace_until is None or now >= campaign.grace_until:
        raise PermanentError("grace-over", "The grace period is over.", "Plan a campaign back.")
    found = progress(operator, _backwards(campaign))
    if found.left > tolerate:
        raise PermanentError(
            "rollback-incomplete",
            f"{found.left} chunks have no vector in the old space: they would not be found.",
            "Say so with --tolerate, or wait until they are embedded.",
        )
    set_space(operator, tenant_id, campaign.target.space_id, "paused")
    set_space(operator, tenant_id, campaign.source.space_id, "active")
    until = max(campaign.grace_until, now + RUNS)
    set_state(operator, campaign, "rolled-back", "ended_at = :now, drop_after = :until", now=now, until=until)
    note(operator, campaign, "campaign-rolled-back", actor, refused_chunks=found.failed)
    return campaign


def complete(operator: Session, tenant_id: UUID, *, now: datetime, actor: str) -> Campaign:
    """End the grace period: new versions need the old space no more, and it is dropped by the job `campaigns`."""
    campaign = locked(operator, tenant_id, "switched")
    assert campaign.switched_at is not None
    after = max(now, campaign.switched_at + RUNS)
    set_space(operator, tenant_id, campaign.source.space_id, "paused")
    set_state(operator, campaign, "completed", "ended_at = :now, drop_after = :after", now=now, after=after)
    note(operator, campaign, "campaign-completed", actor)
    return campaign


def indexed(session: Session, tenant_id: UUID, space: Space, vectors: int) -> bool:
    """Whether the space is searched fast enough: few vectors, or a valid index of its own."""
    return vectors < BUILD_FROM or is_there(session, tenant_id, space.space_id)


def left_behind(operator: Session, now: datetime) -> list[tuple[UUID, UUID, UUID]]:
    """Spaces that ended campaigns leave behind and that may go now, as (tenant, campaign, space)."""
    rows = operator.execute(
        text(
            "select tenant_id, campaign_id, case state when 'completed' then source_space_id else target_space_id end "
            "as space_id from rag.campaigns where ended_at is not null and dropped_at is null and drop_after <= :now "
            "order by drop_after"
        ),
        {"now": now},
    )
    return [(row.tenant_id, row.campaign_id, row.space_id) for row in rows]


def retire(operator: Session, tenant_id: UUID, space_id: UUID) -> bool:
    """Take a space out of use for good; False when a later campaign uses it again, or it is gone."""
    change_spaces(operator, tenant_id)
    if state_in(operator, tenant_id, space_id) not in ("paused", "retired"):
        return False
    again = operator.execute(
        text(
            "select exists (select from rag.campaigns where tenant_id = :tenant and target_space_id = :space "
            "and state in ('filling', 'paused', 'ready', 'switched'))"
        ),
        {"tenant": tenant_id, "space": space_id},
    ).scalar()
    if again:
        return False
    set_space(operator, tenant_id, space_id, "retired")
    return True


def empty(tenant_id: UUID, space_id: UUID) -> Iterator[int]:
    """Delete a retired space's vectors, a slice a transaction; yields how many each had."""
    after = UUID(int=0)  # in the order of the key, so that no slice reads what the others left dead
    while True:
        with operator_session() as operator:
            deleted = operator.scalars(
                text(
                    "with doomed as (select chunk_id from rag.embeddings where tenant_id = :tenant "
                    "and space_id = :space and chunk_id > :after order by chunk_id limit :slice) "
                    "delete from rag.embeddings e using doomed d where e.tenant_id = :tenant "
                    "and e.space_id = :space and e.chunk_id = d.chunk_id returning e.chunk_id"
                ),
                {"tenant": tenant_id, "space": space_id, "after": after, "slice": SLICE},
            ).all()
        if not deleted:
            return
        after = max(deleted)
        yield len(deleted)


def forget_space(operator: Session, tenant_id: UUID, campaign_id: UUID, space_id: UUID) -> None:
    """Note that what a campaign left behind is gone, and forget that the tenant had the space if it is retired."""
    operator.execute(
        text("delete from rag.tenant_spaces where tenant_id = :tenant and space_id = :space and state = 'retired'"),
        {"tenant": tenant_id, "space": space_id},
    )
    operator.execute(
        text("update rag.campaigns set dropped_at = now() where tenant_id = :tenant and campaign_id = :campaign"),
        {"tenant": tenant_id, "campaign": campaign_id},
    )


def _backwards(campaign: Campaign) -> Filling:
    return replace(campaign.filling, source_space_id=campaign.target.space_id, target_space_id=campaign.source.space_id)


def _bear(found: Progress, tolerate: int) -> None:
    if found.failed > tolerate:
        raise PermanentError(
            "chunks-failed",
            f"The new model refused {found.failed} chunks: they would not be found.",
            "Try them again with `noesis campaigns resume`, or bear it with --tolerate.",
        )
