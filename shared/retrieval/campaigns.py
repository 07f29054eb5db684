"""Campaigns: a tenant's way from one vector space to another, as rows that any process can go on from.

    planned → filling ⇄ paused          rolled-back
                 ↓↑         ↘          ↗
               ready → switched → completed
    planned, filling, paused, ready → cancelled;  filling → failed

Every step changes the spaces (`shared.retrieval.spaces.change_spaces`), so no version becomes searchable between two
truths. How chunks get there: `filling`; what goes wrong: `mending`; the switch and after: `switching`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.audit import record
from shared.database import operator_session, tenant_session, write_one
from shared.documents.completion import finish_version
from shared.documents.storing import Batch
from shared.documents.turns import next_turns
from shared.documents.waiting import go_on
from shared.errors import PermanentError
from shared.retrieval.filling import Filling, lock_campaign, move_cursor, send, send_pending
from shared.retrieval.mending import forget_failures
from shared.retrieval.spaces import Space, active_space, change_spaces, space_by_id, state_in

KEPT = timedelta(days=7)
"""How long vectors of a campaign that failed are kept for the next one."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """A campaign as people see it; `spent` without the batches that are under way (`filling.spent` has them)."""

    tenant_id: UUID
    campaign_id: UUID
    source: Space
    target: Space
    state: str
    reason: str | None
    message: str | None
    next_action: str | None
    history: bool
    budget: Decimal | None
    spent: Decimal
    estimate: Mapping[str, Any]
    comparison: Mapping[str, Any] | None
    slots: int
    batch: int | None
    actor: str
    created_at: datetime
    started_at: datetime | None
    ready_at: datetime | None
    switched_at: datetime | None
    grace_until: datetime | None
    ended_at: datetime | None
    drop_after: datetime | None
    dropped_at: datetime | None

    @property
    def filling(self) -> Filling:
        """The part that filling works with."""
        ids = (self.tenant_id, self.campaign_id, self.source.space_id, self.target.space_id)
        return Filling(*ids, self.state, self.history, self.budget, None, self.slots, self.batch)


def latest(session: Session, tenant_id: UUID) -> Campaign:
    """The tenant's open campaign, else the last one. Raises PermanentError `no-campaign`."""
    row = session.execute(
        text(
            "select source_space_id, target_space_id, tenant_id, campaign_id, state, reason, message, next_action, "
            "history, budget_eur, spent_eur, estimate, comparison, slots, batch, actor, created_at, started_at, "
            "ready_at, switched_at, grace_until, ended_at, drop_after, dropped_at from rag.campaigns "
            "where tenant_id = :tenant order by (ended_at is null) desc, created_at desc limit 1"
        ),
        {"tenant": tenant_id},
    ).first()
    if row is None:
        raise PermanentError("no-campaign", "The tenant has no campaign.", "Plan one: `noesis campaigns plan`.")
    source, target = space_by_id(session, row.source_space_id), space_by_id(session, row.target_space_id)
    assert source is not None and target is not None  # noqa: PT018 # foreign keys
    return Campaign(row.tenant_id, row.campaign_id, source, target, *row[4:])


def locked(session: Session, tenant_id: UUID, *states: str) -> Campaign:
    """The tenant's latest campaign, locked with its spaces, if it is in one of the states.

    Raises PermanentError `campaign-state` otherwise.
    """
    change_spaces(session, tenant_id)
    campaign = latest(session, tenant_id)
    lock_campaign(session, tenant_id, campaign.target.space_id)
    campaign = latest(session, tenant_id)
    if campaign.state not in states:
        raise PermanentError(
            "campaign-state",
            f"The campaign is {campaign.state}; this is possible while it is {' or '.join(states)}.",
            "See `noesis campaigns status`.",
        )
    return campaign


def check_target(session: Session, tenant_id: UUID, target: Space) -> Space:
    """Whether a campaign to this space can be planned; returns the space that answers now.

    Raises PermanentError `same-space`, `other-chunker`, `space-being-dropped`, `campaign-under-way`, `nothing-to-fill`.
    """
    source = active_space(session, tenant_id)
    if source.space_id == target.space_id:
        raise PermanentError("same-space", f"The tenant's space is {target.name} already.", "Name another space.")
    if source.chunker != target.chunker:
        raise PermanentError(
            "other-chunker",
            f"{target.name} is for chunks cut by {target.chunker}, the tenant's are cut by {source.chunker}.",
            "Use a space with the same chunker; documents cut differently have to be submitted again.",
        )
    if state_in(session, tenant_id, target.space_id) == "retired":
        raise PermanentError(
            "space-being-dropped", f"What the tenant had in {target.name} is being dropped.", "Try again in minutes."
        )
    under_way = session.execute(
        text(
            "select state from rag.campaigns where tenant_id = :tenant "
            "and state in ('filling', 'paused', 'ready', 'switched')"
        ),
        {"tenant": tenant_id},
    ).scalar()
    if under_way is not None:
        raise PermanentError(
            "campaign-under-way",
            f"Another campaign of the tenant is {under_way}.",
            "Let it end, or cancel, roll back or complete it.",
        )
    filled = session.execute(
        text("select exists (select from rag.chunks where tenant_id = :tenant)"), {"tenant": tenant_id}
    ).scalar()
    if not filled:
        raise PermanentError("nothing-to-fill", "The tenant has no chunks.", "Submit documents first.")
    return source


def plan(
    operator: Session,
    tenant_id: UUID,
    target: Space,
    *,
    budget: Decimal | None,
    history: bool,
    estimate: Mapping[str, Any],
    actor: str,
) -> UUID:
    """Store a plan with its estimate; it replaces one that was not started.

    `budget` in EUR is the most the campaign may spend until the switch; None is for models that cost nothing.
    Raises PermanentError `bad-budget`, `budget-needed`, and like `check_target`.
    """
    if budget is not None and (not budget.is_finite() or budget <= 0):
        raise PermanentError("bad-budget", "A campaign's budget is more than 0 EUR.", "Give a larger budget.")
    if budget is None and Decimal(estimate.get("eur") or 0) > 0:
        raise PermanentError("budget-needed", f"{target.model} costs money.", "Set a budget with --budget EUR.")
    change_spaces(operator, tenant_id)
    source = check_target(operator, tenant_id, target)
    operator.execute(
        text("delete from rag.campaigns where tenant_id = :tenant and state = 'planned'"), {"tenant": tenant_id}
    )
    campaign_id = uuid4()
    operator.execute(
        text(
            "insert into rag.campaigns (tenant_id, campaign_id, source_space_id, target_space_id, state, history, "
            "budget_eur, estimate, actor) values (:tenant, :campaign, :source, :target, 'planned', :history, "
            ":budget, cast(:estimate as jsonb), :actor)"
        ),
        {
            "tenant": tenant_id,
            "campaign": campaign_id,
            "source": source.space_id,
            "target": target.space_id,
            "history": history,
            "budget": budget,
            "estimate": json.dumps(estimate),
            "actor": actor,
        },
    )
    return campaign_id


def start(operator: Session, tenant_id: UUID, *, slots: int, small: Batch, large: Batch, actor: str) -> int:
    """Begin to fill; returns how many batches were sent. `small` is a campaign's batch, `large` a document's."""
    campaign = locked(operator, tenant_id, "planned")
    check_start(operator, campaign)
    forget_failures(operator, tenant_id, campaign.target.space_id)  # of an earlier campaign to the same space
    set_state(operator, campaign, "filling", "started_at = now(), slots = :slots", slots=slots)
    note(operator, campaign, "campaign-started", actor, budget=campaign.budget)
    return _fill(operator, campaign, small, large)


def check_start(operator: Session, campaign: Campaign) -> None:
    """The tenant may have changed since the plan. Raises PermanentError `plan-outdated`, `space-being-dropped`."""
    if active_space(operator, campaign.tenant_id).space_id != campaign.source.space_id:
        raise PermanentError("plan-outdated", "Another space answers than when this was planned.", "Plan it again.")
    if state_in(operator, campaign.tenant_id, campaign.target.space_id) == "retired":
        raise PermanentError("space-being-dropped", "The space is still being dropped.", "Try again in minutes.")


def pause(session: Session, tenant_id: UUID, *, reason: str, message: str, next_action: str) -> Campaign:
    """Stop filling at once: nothing more is embedded for the new space, and new versions do not wait for it.

    Call `finish_held_versions` afterwards. Raises PermanentError `campaign-state`.
    """
    campaign = locked(session, tenant_id, "filling", "ready")
    set_state(
        session,
        campaign,
        "paused",
        "reason = :reason, message = :message, next_action = :next_action",
        reason=reason,
        message=message,
        next_action=next_action,
    )
    set_space(session, campaign.tenant_id, campaign.target.space_id, "paused")
    return campaign


def resume(
    operator: Session, tenant_id: UUID, *, budget: Decimal | None = None, small: Batch, large: Batch, actor: str
) -> int:
    """Go on filling, with a new budget if one is given; chunks that were refused are tried again."""
    campaign = locked(operator, tenant_id, "paused", "ready")
    forget_failures(operator, tenant_id, campaign.target.space_id)
    change = "reason = null, message = null, next_action = null, cursor = null"
    if budget is not None:
        if not budget.is_finite() or budget <= 0:
            raise PermanentError("bad-budget", "A campaign's budget is more than 0 EUR.", "Give a larger budget.")
        change += ", budget_eur = :budget"
    set_state(operator, campaign, "filling", change, **({"budget": budget} if budget is not None else {}))
    note(operator, campaign, "campaign-resumed", actor, budget=budget)
    return _fill(operator, campaign, small, large)


def cancel(operator: Session, tenant_id: UUID, *, now: datetime, actor: str) -> Campaign:
    """Give it up: the space that answers goes on answering, what was filled is dropped by the job `campaigns`.

    A plan that never began filled nothing: what an earlier campaign left in its space is kept as long as that one said.
    Call `finish_held_versions` afterwards.
    """
    campaign = locked(operator, tenant_id, "planned", "filling", "paused", "ready")
    if campaign.state == "planned":
        set_state(operator, campaign, "cancelled", "ended_at = :now", now=now)
    else:
        set_state(operator, campaign, "cancelled", "ended_at = :now, drop_after = :now", now=now)
        set_space(operator, tenant_id, campaign.target.space_id, "paused")
    note(operator, campaign, "campaign-cancelled", actor)
    return campaign


def fail(session: Session, tenant_id: UUID, *, reason: str, message: str, keep_until: datetime) -> Campaign:
    """End a campaign that cannot succeed; what was filled is kept until then, a new campaign takes it up."""
    campaign = locked(session, tenant_id, "filling", "ready")
    set_state(
        session,
        campaign,
        "failed",
        "ended_at = now(), drop_after = :until, reason = :reason, message = :message, next_action = :next_action",
        until=keep_until,
        reason=reason,
        message=message,
        next_action="See `noesis campaigns status`, mend the model's configuration, plan the campaign again.",
    )
    set_space(session, tenant_id, campaign.target.space_id, "paused")
    return campaign


def finish_held_versions(tenant_id: UUID, share: int) -> int:
    """Finish versions that waited only for a space that is live no longer; returns how many became searchable."""
    with tenant_session(tenant_id) as session:
        versions = session.scalars(
            text("select version_id from rag.versions where tenant_id = :tenant and state = 'ingested'"),
            {"tenant": tenant_id},
        ).all()
    finished = 0
    for version_id in versions:
        with tenant_session(tenant_id) as session:
            if finish_version(session, tenant_id, version_id):
                go_on(session, tenant_id, version_id)
                finished += 1
    if finished:
        with tenant_session(tenant_id) as session:
            next_turns(session, tenant_id, share)
    return finished


def open_campaigns(states: tuple[str, ...]) -> list[tuple[UUID, UUID, datetime | None]]:
    """Campaigns in these states of all tenants, as (tenant, target space, end of grace); oldest first."""
    with operator_session() as operator:
        rows = operator.execute(
            text(
                "select tenant_id, target_space_id, grace_until from rag.campaigns "
                "where state = any(cast(:states as text[])) order by created_at"
            ),
            {"states": "{" + ",".join(states) + "}"},
        )
        return [(row.tenant_id, row.target_space_id, row.grace_until) for row in rows]


def set_state(session: Session, campaign: Campaign, state: str, change: str, **values: Any) -> None:
    """Write a transition; `change` is more SQL of ours."""
    write_one(
        session,
        f"update rag.campaigns set state = :state, {change} where tenant_id = :tenant and campaign_id = :campaign",
        {"state": state, "tenant": campaign.tenant_id, "campaign": campaign.campaign_id} | values,
    )


def set_space(session: Session, tenant_id: UUID, space_id: UUID, state: str) -> None:
    """Write what a space is to the tenant; nothing happens when it is nothing to it (a plan that never began)."""
    session.execute(
        text("update rag.tenant_spaces set state = :state where tenant_id = :tenant and space_id = :space"),
        {"tenant": tenant_id, "space": space_id, "state": state},
    )


def _fill(operator: Session, campaign: Campaign, small: Batch, large: Batch) -> int:
    operator.execute(
        text(
            "insert into rag.tenant_spaces (tenant_id, space_id, state) values (:tenant, :space, 'filling') "
            "on conflict (tenant_id, space_id) do update set state = 'filling'"
        ),
        {"tenant": campaign.tenant_id, "space": campaign.target.space_id},
    )
    filling = lock_campaign(operator, campaign.tenant_id, campaign.target.space_id)
    assert filling is not None
    move_cursor(operator, filling, None)
    return send_pending(operator, filling, large) + send(operator, filling, small)


def note(operator: Session, campaign: Campaign, action: str, actor: str, **details: object) -> None:
    """Write into the audit record what was done with a campaign."""
    record(
        operator,
        actor=actor,
        action=action,
        subject=str(campaign.campaign_id),
        tenant_id=campaign.tenant_id,
        source=campaign.source.name,
        target=campaign.target.name,
        **details,
    )
