"""`noesis budgets` and `noesis costs`: what tenants may spend, what models cost, what was spent."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

import click
from rich.markup import escape
from sqlalchemy import text

from cli.context import chosen_tenant, tenant_option
from cli.screen import json_option, print_json, screen, table_of
from shared.audit import record
from shared.conversations.waiting import wake_runs
from shared.database import operator_session, tenant_session
from shared.documents.storing import Batch
from shared.documents.waiting import wake
from shared.money.budgets import STAGE_CAPS, read_budgets, run_limit, set_budget
from shared.money.prices import set_price
from shared.settings import get_settings
from shared.tenants.directory import list_tenants

Day = Literal["run", "day", "month"]


@click.group()
def budgets() -> None:
    """Limits of tenants in EUR a question, day and month, prices of models; past a limit work waits."""


@budgets.command()
def show() -> None:
    """Every tenant's limits, what is spent and reserved of them, and how many documents and questions wait."""
    now = datetime.now(UTC)
    table = table_of("tenant", "period", "limit EUR", "spent", "reserved", "waiting", whole=("tenant",))
    with operator_session() as session:
        waiting = {
            row.tenant_id: row.count
            for row in session.execute(
                text(
                    "select tenant_id, count(*) as count from (select tenant_id from rag.versions "
                    "where state = 'ingested' and waiting in ('budget', 'price') union all "
                    "select tenant_id from core.runs where state = 'waiting' and waiting_for in ('budget', 'price')) w "
                    "group by tenant_id"
                )
            )
        }
        for tenant in list_tenants(session):
            for budget in read_budgets(session, tenant.tenant_id, now):
                table.add_row(
                    tenant.slug,
                    budget.period,
                    "none" if budget.limit is None else _eur(budget.limit),
                    _eur(budget.spent),
                    _eur(budget.reserved),
                    str(waiting.get(tenant.tenant_id, 0)) if budget.period == "day" else "",
                )
            limit = run_limit(session, tenant.tenant_id)
            if limit is not None:
                table.add_row(tenant.slug, "run", _eur(limit), "", "", "")
    screen().print(table)
    cap = STAGE_CAPS.get(get_settings().noesis_stage)
    click.echo(f"Cap of this stage: {f'below {cap[1]} EUR a {cap[0]}' if cap else 'none'}.")


@budgets.command("set")
@click.argument("period", type=click.Choice(["run", "day", "month"]))
@click.argument("limit")
@tenant_option
def set_(period: Day, limit: str, tenant: str) -> None:
    """Set a tenant's LIMIT in EUR for a PERIOD (run: one question), or `none`; what waits for it goes on at once."""
    chosen = chosen_tenant(tenant)
    amount = None if limit == "none" else _amount(limit)
    with operator_session() as session:
        set_budget(session, chosen.tenant_id, period, amount)
        record(
            session,
            actor=_actor(),
            action="budget-set",
            subject=str(chosen.tenant_id),
            tenant_id=chosen.tenant_id,
            period=period,
            limit=limit,
        )
    woken = _wake("budget")
    click.echo(f"{chosen.slug}: {limit} EUR a {period}. Documents and questions that go on: {woken}.")


@budgets.command()
@click.argument("model")
@click.argument("eur_per_million")
@click.option("--output", "output", help="EUR per million output tokens, for a chat model.")
@click.option("--from", "valid_from", type=click.DateTime(), help="Valid from (UTC); default: now.")
def price(model: str, eur_per_million: str, output: str | None, valid_from: datetime | None) -> None:
    """Enter what a MODEL costs: EUR per million input tokens, and output tokens if it writes."""
    if not model.strip():
        raise click.BadParameter("a model has a name", param_hint="MODEL")
    start = valid_from.replace(tzinfo=UTC) if valid_from else datetime.now(UTC)
    with operator_session() as session:
        set_price(session, model, _amount(eur_per_million), start, None if output is None else _amount(output))
        entered: dict[str, Any] = {"eur_per_million": eur_per_million, "output": output, "start": start}
        record(session, actor=_actor(), action="price-set", subject=model, **entered)
    woken = _wake("price")
    click.echo(f"{model}: {eur_per_million} EUR per million tokens from {start:%Y-%m-%d %H:%M}. Go on: {woken}.")


@click.command()
@click.option("--days", default=30, show_default=True, type=click.IntRange(1, 3660), help="How far back.")
@json_option
def costs(days: int, as_json: bool) -> None:
    """What documents and answers have cost, by tenant and model."""
    headers = ("tenant", "model", "calls", "documents", "questions", "tokens in", "out", "EUR", "EUR per million")
    table = table_of(*headers, whole=("tenant",))
    with operator_session() as session:
        rows = session.execute(
            text(
                "select t.slug, l.model, count(*) as calls, count(distinct l.document_id) as documents, "
                "count(distinct l.run_id) as questions, sum(l.tokens) as tokens, sum(l.output_tokens) as output, "
                "sum(l.cost_eur) as eur, max(p.eur_per_million) as price, "
                "max(p.eur_per_million_output) as output_price "
                "from core.ledger l left join lateral (select * from core.prices p where p.model = l.model "
                "and p.valid_from <= now() order by p.valid_from desc limit 1) p on true "
                "join core.tenants t on t.tenant_id = l.tenant_id "
                "where l.booked_at > now() - make_interval(days => :days) group by t.slug, l.model "
                "order by eur desc, tokens desc"
            ),
            {"days": days},
        ).all()
        if as_json:
            print_json([dict(row._mapping) for row in rows])
            return
        for row in rows:
            shown = "no price: counted as free" if row.price is None else _eur(row.price)
            if row.output_price is not None:
                shown += f" / {_eur(row.output_price)}"
            counts = (str(row.calls), str(row.documents), str(row.questions), f"{row.tokens:,}", f"{row.output:,}")
            table.add_row(row.slug, escape(row.model), *counts, _eur(row.eur), shown)
    screen().print(table)


def _wake(cause: Literal["budget", "price"]) -> int:
    """Set going what waited for it, of every tenant; whoever still may not go on waits again."""
    settings = get_settings()
    batch = Batch(settings.batch_size, settings.batch_tokens)
    with operator_session() as session:
        tenants = [
            row.tenant_id
            for row in session.execute(
                text(
                    "select tenant_id from rag.versions where state = 'ingested' and waiting = :cause union "
                    "select tenant_id from core.runs where state = 'waiting' and waiting_for = :cause"
                ),
                {"cause": cause},
            )
        ]
    woken = 0
    for tenant_id in tenants:
        with tenant_session(tenant_id) as session:
            woken += wake(session, tenant_id, [cause], batch)
        with tenant_session(tenant_id) as session:
            woken += wake_runs(session, tenant_id, [cause])
    return woken


def _amount(given: str) -> Decimal:
    try:
        amount = Decimal(given)
    except InvalidOperation:
        amount = Decimal(-1)
    if not amount.is_finite() or not 0 <= amount < 10_000_000:
        raise click.BadParameter(f"{given} is not an amount in EUR")
    return amount


def _eur(amount: Decimal) -> str:
    return f"{amount.normalize():f}"


def _actor() -> str:
    return f"operator:{getpass.getuser()}"
