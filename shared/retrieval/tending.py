"""Looking after campaigns from outside: shares, lost batches, the moment a space is full. For the job `campaigns`."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import write_one
from shared.documents.storing import Batch
from shared.retrieval.filling import Filling, Progress, lock_campaign, move_cursor, progress, send
from shared.retrieval.mending import resend_lost
from shared.retrieval.spaces import space_by_id
from shared.retrieval.switching import indexed


def share_slots(operator: Session, all_slots: int) -> int:
    """Divide the batches that may be under way among the campaigns that fill, at least one each; returns how many fill.

    A fleet of tenants that changes models at once must not fill the line that documents wait in.
    """
    filling = operator.execute(text("select count(*) from rag.campaigns where state = 'filling'")).scalar_one()
    if filling:
        operator.execute(
            text("update rag.campaigns set slots = :slots where state = 'filling' and slots <> :slots"),
            {"slots": max(1, all_slots // filling)},
        )
    return int(filling)


def tend(session: Session, tenant_id: UUID, space_id: UUID, small: Batch) -> Progress | None:
    """Send what was lost and what there are slots for; progress when nothing is under way or left, else None.

    A campaign that was ready and has chunks to fill again (a restored version, say) goes back to filling.
    """
    filling = lock_campaign(session, tenant_id, space_id)
    if filling is None or filling.state not in ("filling", "ready", "switched"):
        return None
    resend_lost(session, filling)
    if filling.state == "switched":
        return None
    if filling.state == "ready":
        found = progress(session, filling)
        if found.left:
            _set(session, filling, "state = 'filling', cursor = null, ready_at = null")
        return None
    if send(session, filling, small) or _under_way(session, filling):
        return None
    found = progress(session, filling)
    if not found.left:
        return found
    # The cursor has passed versions that lack something after all: from the beginning.
    move_cursor(session, filling, None)
    return None


def make_ready(session: Session, tenant_id: UUID, space_id: UUID, found: Progress) -> bool:
    """A full space becomes `ready` if it is searched fast enough; else the campaign says that it waits for the index.

    `found` is what `tend` returned.
    """
    filling = lock_campaign(session, tenant_id, space_id)
    space = space_by_id(session, space_id)
    if filling is None or filling.state != "filling" or space is None:
        return False
    if indexed(session, tenant_id, space, found.done):
        _set(session, filling, "state = 'ready', ready_at = now(), reason = null, message = null, next_action = null")
        return True
    _set(
        session,
        filling,
        "reason = 'index', message = 'The new space is full; its index is built before the switch.', "
        "next_action = 'Wait, or run `noesis jobs run index-care` where MIGRATION_DATABASE_URL is set.'",
    )
    return False


def _under_way(session: Session, filling: Filling) -> bool:
    found: bool = session.execute(
        text(
            "select exists (select from rag.campaign_batches where tenant_id = :tenant "
            "and campaign_id = :campaign and not arrival)"
        ),
        filling.values(),
    ).scalar_one()
    return found


def _set(session: Session, filling: Filling, change: str) -> None:
    write_one(
        session,
        f"update rag.campaigns set {change} where tenant_id = :tenant and campaign_id = :campaign",
        {"tenant": filling.tenant_id, "campaign": filling.campaign_id},
    )
