"""A run that failed because its deliveries were used up is queued again: the way back of `runs.fail`."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session


def resume_run(session: Session, tenant_id: UUID, run_id: UUID, reason: str) -> bool:
    """Bring a run that failed for `reason` back to `queued`, where its checkpoints let it go on.

    False, and nothing changed, when it did not fail for this reason (answered, cancelled, another failure).
    """
    ids = {"tenant": tenant_id, "run": run_id}
    epoch = session.execute(
        text(
            "update core.runs set state = 'queued', reason = null, message = null, lease_until = null, "
            "finished_at = null where tenant_id = :tenant and run_id = :run and state = 'failed' "
            "and reason = :reason returning epoch"
        ),
        ids | {"reason": reason},
    ).scalar()
    if epoch is None:
        return False
    # Readers stop at `failed`; whoever reads the run from its beginning must get to what comes now.
    session.execute(
        text(
            "update core.run_events set kind = 'draft-restarted', "
            "data = jsonb_build_object('attempt', cast(:attempt as integer)) "
            "where tenant_id = :tenant and run_id = :run and kind = 'failed'"
        ),
        ids | {"attempt": epoch + 1},
    )
    return True
