"""`noesis campaigns`: another embedding model for a tenant, while questions and documents go on."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from sqlalchemy import text

from cli.context import acting_as, actor, amount, chosen_tenant, hours, payer_for, tenant_option
from cli.screen import printable, screen, table_of
from shared.database import operator_session, tenant_session
from shared.documents.storing import Batch
from shared.retrieval import campaigns as steps
from shared.retrieval import comparing, estimating, filling, golden, mending, switching
from shared.retrieval.campaigns import Campaign
from shared.retrieval.spaces import Space, space_by_name
from shared.services import services
from shared.settings import get_settings


@click.group()
def campaigns() -> None:
    """Change a tenant's embedding model: plan, start, compare, switch; pause, cancel or roll back."""


@campaigns.command()
@click.argument("space")
@tenant_option
@click.option("--budget", help="EUR the campaign may spend at most; needed when the model costs something.")
@click.option("--history/--no-history", default=True, show_default=True, help="Earlier versions too.")
def plan(space: str, tenant: str, budget: str | None, history: bool) -> None:
    """Dry run of a campaign to SPACE: chunks, tokens, cost, time. Sends nothing of the tenant; stores the plan."""
    chosen, settings = chosen_tenant(tenant), get_settings()
    limit = None if budget is None else amount(budget)
    with operator_session() as session:
        target = space_by_name(session, space)
        source = steps.check_target(session, chosen.tenant_id, target)
        load = estimating.load_of(session, chosen.tenant_id, source, target, history=history)
        estimating.price_or_refuse(session, target, settings.noesis_stage, datetime.now(UTC))
    rate = estimating.try_model(services().models, target, payer_for(chosen.tenant_id), load.mean_tokens)
    with operator_session() as session:
        found = estimating.estimate(session, load, target, rate, settings.noesis_stage, datetime.now(UTC))
        steps.plan(
            session,
            chosen.tenant_id,
            target,
            budget=limit,
            history=history,
            estimate=found.as_json(),
            actor=actor(),
        )
    cost = "free (no price)" if found.eur is None else f"{found.eur.normalize():f} EUR"
    click.echo(f"{chosen.slug}: {source.name} → {target.name}")
    click.echo(f"chunks   {found.chunks:,} ({found.history:,} of earlier versions, {found.there:,} there already)")
    click.echo(f"tokens   {found.tokens:,}")
    click.echo(f"cost     {cost}, budget {'none' if limit is None else f'{limit.normalize():f} EUR'}")
    click.echo(f"time     {_span(found.seconds)} at {found.chunks_per_second:.1f} chunks a second, one after another")
    if limit is not None and found.eur is not None and limit < found.eur:
        click.echo("The budget does not cover the estimate: the campaign will pause when it is used up.")
    if target.evidence_floor is None:
        click.echo(f"{target.name} has no evidence floor: calibrate it before the switch (`noesis eval calibrate`).")
    click.echo("Planned. Start it with `noesis campaigns start`.")


@campaigns.command()
@tenant_option
def start(tenant: str) -> None:
    """Begin to fill the planned space; questions are answered from the old one."""
    chosen = chosen_tenant(tenant)
    small, large = _batches()
    with operator_session() as session:
        sent = steps.start(
            session, chosen.tenant_id, slots=get_settings().campaign_batches, small=small, large=large, actor=actor()
        )
    click.echo(f"{chosen.slug}: filling, {sent} batches sent. See `noesis campaigns status`.")


@campaigns.command("list")
@click.option("--all", "every", is_flag=True, help="Those that ended too.")
def list_(every: bool) -> None:
    """The campaigns of all tenants, latest first."""
    table = table_of("tenant", "from", "to", "state", "why", "spent EUR", "since (UTC)", whole=("tenant",))
    with operator_session() as session:
        rows = session.execute(
            text(
                "select t.slug, a.name as source, b.name as target, c.state, c.reason, c.spent_eur, c.created_at "
                "from rag.campaigns c join core.tenants t on t.tenant_id = c.tenant_id "
                "join rag.vector_spaces a on a.space_id = c.source_space_id "
                "join rag.vector_spaces b on b.space_id = c.target_space_id "
                "where :every or c.ended_at is null order by c.created_at desc"
            ),
            {"every": every},
        )
        for row in rows:
            since = f"{row.created_at:%Y-%m-%d %H:%M}"
            spent = f"{row.spent_eur.normalize():f}"
            names = (escape(row.source), escape(row.target))
            table.add_row(row.slug, *names, row.state, row.reason or "", spent, since)
    screen().print(table)


@campaigns.command()
@tenant_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(tenant: str, as_json: bool) -> None:
    """How far the tenant's campaign is, what it spent, what it waits for, which chunks the model refused."""
    chosen = chosen_tenant(tenant)
    with operator_session() as session:
        campaign = steps.latest(session, chosen.tenant_id)
        done = filling.progress(session, campaign.filling)
        spent = filling.spent(session, campaign.filling)
        refused = mending.failures(session, chosen.tenant_id, campaign.target.space_id)
        waits = mending.waits(session, campaign.filling)
    if as_json:
        click.echo(json.dumps(_as_json(campaign, done, spent, len(refused))))
        return
    click.echo(f"{chosen.slug}: {campaign.source.name} → {campaign.target.name}: {campaign.state}")
    if campaign.reason:
        click.echo(f"{campaign.message} {campaign.next_action or ''}".strip())
    if campaign.state in ("planned", "filling", "paused", "ready", "switched"):
        click.echo(f"chunks   {done.done:,} of {done.total:,}, {done.failed:,} refused{_left(campaign, done)}")
    click.echo(
        f"spent    {spent.normalize():f} EUR of {'no limit' if campaign.budget is None else _eur(campaign.budget)}"
    )
    for wait in waits:
        click.echo(f"waiting  {wait.batches} batches for {wait.waiting} until {wait.until:%Y-%m-%d %H:%M} UTC")
    if campaign.state == "switched":
        click.echo(f"rollback until {campaign.grace_until:%Y-%m-%d %H:%M} UTC")
    if campaign.target.evidence_floor is None:
        click.echo("evidence not calibrated for the new space: every passage counts as evidence there")
    if campaign.comparison:
        click.echo(f"compared {_compared(campaign.comparison)}")
    for row in refused:
        told = f"refused  {row.external_id}, chunk {row.ordinal}: {row.reason}. {row.message} {row.next_action}"
        click.echo(printable(told))


@campaigns.command()
@tenant_option
def pause(tenant: str) -> None:
    """Embed nothing more for the new space; documents do not wait for it."""
    chosen = chosen_tenant(tenant)
    with operator_session() as session:
        campaign = steps.pause(
            session,
            chosen.tenant_id,
            reason="operator",
            message="An operator paused the campaign.",
            next_action="Resume or cancel it.",
        )
        steps.note(session, campaign, "campaign-paused", actor())
    _finish_held(chosen.tenant_id)
    click.echo(f"{chosen.slug}: paused")


@campaigns.command()
@tenant_option
@click.option("--budget", help="A new limit in EUR for the whole campaign.")
def resume(tenant: str, budget: str | None) -> None:
    """Go on filling; chunks that the model refused are tried again."""
    chosen = chosen_tenant(tenant)
    small, large = _batches()
    limit = None if budget is None else amount(budget)
    with operator_session() as session:
        sent = steps.resume(session, chosen.tenant_id, budget=limit, small=small, large=large, actor=actor())
    click.echo(f"{chosen.slug}: filling, {sent} batches sent")


@campaigns.command()
@tenant_option
def cancel(tenant: str) -> None:
    """Give the campaign up and drop what was filled; the old space answers on."""
    chosen = chosen_tenant(tenant)
    with operator_session() as session:
        steps.cancel(session, chosen.tenant_id, now=datetime.now(UTC), actor=actor())
    _finish_held(chosen.tenant_id)
    click.echo(f"{chosen.slug}: cancelled")


@campaigns.command()
@tenant_option
@click.option("--questions", default=comparing.RECENT, show_default=True, type=click.IntRange(1, 1000), help="Latest.")
@click.option("--golden", "judged", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Judged ones.")
@click.option("--as", "email", default="", help="Who asks the golden set; default the administrator.")
def compare(tenant: str, questions: int, judged: Path | None, email: str) -> None:
    """Ask the tenant's latest questions, and a golden set, in both spaces; 95 % intervals."""
    chosen, models = chosen_tenant(tenant), services().models
    payer = payer_for(chosen.tenant_id)
    with operator_session() as session:
        campaign = steps.latest(session, chosen.tenant_id)
        done = filling.progress(session, campaign.filling)
    with tenant_session(chosen.tenant_id) as session:
        asked = comparing.recent_questions(session, chosen.tenant_id, questions)
    result: dict[str, Any] = {"chunks": done.done, "of": done.total}
    if asked or judged is None:
        found = comparing.compare(payer, asked, campaign.source, campaign.target, models)
        result["shadow"] = found.as_json()
    if judged is not None:
        principal = acting_as(chosen, email or f"admin@{chosen.slug}.example")
        old, new, gaps = comparing.compare_judged(
            principal, payer, golden.read_questions(judged), campaign.source, campaign.target, models
        )
        result["judged"] = {
            name: {"old": old.summary()[name].mean, "new": new.summary()[name].mean, "low": gap.low, "high": gap.high}
            for name, gap in gaps.items()
        }
    with operator_session() as session:
        comparing.store_comparison(session, chosen.tenant_id, campaign.campaign_id, result)
    _show(result, campaign.source, campaign.target)


@campaigns.command()
@tenant_option
@click.option(
    "--grace-hours",
    default=switching.GRACE.days * 24.0,
    show_default=True,
    type=click.FloatRange(0, 8760),
    help="How long back is possible.",
)
@click.option("--tolerate", default=0, type=click.IntRange(0), help="Refused chunks that need not be found.")
def switch(tenant: str, grace_hours: float, tolerate: int) -> None:
    """Answer from the new space from now on."""
    chosen = chosen_tenant(tenant)
    with operator_session() as session:
        campaign = switching.switch(
            session,
            chosen.tenant_id,
            now=datetime.now(UTC),
            grace=hours(grace_hours),
            tolerate=tolerate,
            actor=actor(),
        )
    click.echo(f"{chosen.slug}: answers from {campaign.target.name}; rollback for {grace_hours:g} hours")
    if campaign.target.evidence_floor is None:
        click.echo("Its evidence floor is not calibrated: every passage counts as evidence (`noesis eval calibrate`).")


@campaigns.command()
@tenant_option
@click.option("--tolerate", default=0, type=click.IntRange(0), help="Chunks that the old space may lack.")
def rollback(tenant: str, tolerate: int) -> None:
    """Answer from the old space again, at once."""
    chosen = chosen_tenant(tenant)
    with operator_session() as session:
        campaign = switching.rollback(
            session, chosen.tenant_id, now=datetime.now(UTC), tolerate=tolerate, actor=actor()
        )
    _finish_held(chosen.tenant_id)
    click.echo(f"{chosen.slug}: answers from {campaign.source.name} again")


@campaigns.command()
@tenant_option
def complete(tenant: str) -> None:
    """End the grace period now: no way back, the old space is dropped."""
    chosen = chosen_tenant(tenant)
    with operator_session() as session:
        campaign = switching.complete(session, chosen.tenant_id, now=datetime.now(UTC), actor=actor())
    _finish_held(chosen.tenant_id)
    click.echo(f"{chosen.slug}: {campaign.source.name} is given up")


def _batches() -> tuple[Batch, Batch]:
    settings = get_settings()
    small = Batch(settings.campaign_batch_size, settings.batch_tokens)
    return small, Batch(settings.batch_size, settings.batch_tokens)


def _finish_held(tenant_id: Any) -> None:
    steps.finish_held_versions(tenant_id, get_settings().documents_in_progress)


def _left(campaign: Campaign, done: filling.Progress) -> str:
    if campaign.state == "filling" and not done.left:
        return ": ready at the job's next turn, within a minute, and above 10,000 when the index is built"
    rate = campaign.estimate.get("chunks_per_second")
    if campaign.state != "filling" or not done.left or not rate:
        return ""
    return f", about {_span(done.left / float(rate))} left"


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _eur(value: Decimal) -> str:
    return f"{value.normalize():f} EUR"


def _as_json(campaign: Campaign, done: filling.Progress, spent: Decimal, refused: int) -> dict[str, Any]:
    return {
        "campaign_id": str(campaign.campaign_id),
        "source": campaign.source.name,
        "target": campaign.target.name,
        "state": campaign.state,
        "reason": campaign.reason,
        "total": done.total,
        "done": done.done,
        "failed": done.failed,
        "refused_shown": refused,
        "spent_eur": str(spent),
        "budget_eur": None if campaign.budget is None else str(campaign.budget),
        "estimate": campaign.estimate,
        "comparison": campaign.comparison,
    }


def _compared(result: Any) -> str:
    shadow = result.get("shadow")
    if shadow is None:
        return f"on a golden set, with {result['chunks']:,} of {result['of']:,} chunks filled"
    overlap = shadow["overlap"]
    return (
        f"on {shadow['questions']} questions, overlap@10 {overlap['mean']:.2f} ({overlap['low']:.2f}, "
        f"{overlap['high']:.2f}), with {result['chunks']:,} of {result['of']:,} chunks filled"
    )


def _show(result: dict[str, Any], old: Space, new: Space) -> None:
    console = screen()
    if result["chunks"] < result["of"]:
        console.print(f"Only {result['chunks']:,} of {result['of']:,} chunks are in {escape(new.name)} yet.")
    if shadow := result.get("shadow"):
        console.print(f"{shadow['questions']} questions of the tenant, {escape(old.name)} against {escape(new.name)}")
        for name in ("overlap", "same_first", "evidence_old", "evidence_new", "evidence_difference"):
            console.print(f"  {name.replace('_', ' '):20} {_interval(shadow[name])}")
        for side, space in (("old", old), ("new", new)):
            console.print(f"  {'best cosine ' + side:20} {_interval(shadow[f'top_similarity_{side}'])}")
            if not shadow[f"calibrated_{side}"]:
                console.print(f"  {escape(space.name)}: evidence not calibrated")
    if judged := result.get("judged"):
        table = table_of("golden set", "old", "new", "difference, 95 %")
        for name, row in judged.items():
            gap = f"{row['new'] - row['old']:+.3f} ({row['low']:+.3f}, {row['high']:+.3f})"
            table.add_row(name, f"{row['old']:.3f}", f"{row['new']:.3f}", gap)
        console.print(table)


def _interval(found: dict[str, float]) -> str:
    return f"{found['mean']:.3f} ({found['low']:.3f}, {found['high']:.3f})"
