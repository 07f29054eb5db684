"""Prices, ledger, budgets and reservations; fair shares."""

from __future__ import annotations

from alembic import op

from schema.policies import platform, protect
from schema.roles import APPLICATION

revision = "c0004"
down_revision = "c0002"
branch_labels = None
depends_on = "r0001"

PRICES = """
create table core.prices (
    model text not null,
    valid_from timestamptz not null,
    eur_per_million numeric(14, 6) not null constraint prices_eur_check check (eur_per_million >= 0),
    primary key (model, valid_from)
);
insert into core.prices (model, valid_from, eur_per_million) values
    ('use-v3', '2026-01-01 00:00+00', 0),
    ('e5-small', '2026-01-01 00:00+00', 0);
"""

LEDGER = """
create table core.ledger (
    tenant_id uuid not null references core.tenants on delete cascade,
    call_key uuid not null,
    model text not null,
    document_id uuid not null,
    version_id uuid not null,
    state text not null constraint ledger_state_check check (state in ('reserved', 'settled', 'released')),
    attempts integer not null default 0,
    reserved_eur numeric(18, 9) not null default 0,
    tokens bigint not null default 0,
    cost_eur numeric(18, 9) not null default 0,
    booked_at timestamptz not null default now(),
    lease_until timestamptz not null default now(),
    primary key (tenant_id, call_key)
);
create index ledger_booked_idx on core.ledger (tenant_id, booked_at);
create index ledger_document_idx on core.ledger (tenant_id, document_id);
create index ledger_lease_idx on core.ledger (lease_until) where state = 'reserved';
"""

BUDGETS = """
create table core.budgets (
    tenant_id uuid not null references core.tenants on delete cascade,
    period text not null constraint budgets_period_check check (period in ('day', 'month')),
    limit_eur numeric(18, 9) not null constraint budgets_limit_check check (limit_eur >= 0),
    primary key (tenant_id, period)
);
create table core.spending (
    tenant_id uuid not null references core.tenants on delete cascade,
    period text not null,
    starts_at timestamptz not null,
    reserved_eur numeric(18, 9) not null default 0,
    spent_eur numeric(18, 9) not null default 0,
    primary key (tenant_id, period, starts_at)
);
create table core.stage_spending (
    period text not null,
    starts_at timestamptz not null,
    reserved_eur numeric(18, 9) not null default 0,
    spent_eur numeric(18, 9) not null default 0,
    primary key (period, starts_at)
);
create table core.provider_gates (
    model text primary key,
    closed_until timestamptz not null
);
"""

WAITING = """
alter table rag.versions
    add column waiting text constraint versions_waiting_check
        check (waiting in ('turn', 'provider', 'budget', 'price')),
    add column waiting_until timestamptz;
create index versions_in_progress_idx on rag.versions (tenant_id, updated_at)
    where state in ('received', 'ingested') and waiting is distinct from 'turn';
create table core.waiting_messages (
    tenant_id uuid not null,
    event_id uuid not null,
    document_id uuid not null,
    version_id uuid not null,
    topic text not null,
    data text not null,
    attributes jsonb not null,
    created_at timestamptz not null default now(),
    primary key (tenant_id, event_id),
    foreign key (tenant_id, version_id) references rag.versions on delete cascade
);
create index waiting_messages_turn_idx on core.waiting_messages (tenant_id, created_at);
"""


def upgrade() -> None:
    """Create the tables of money; versions say what they wait for; messages may wait for their tenant's turn."""
    for statements in (PRICES, LEDGER, BUDGETS, WAITING):
        op.execute(statements)
    op.execute(platform("core.prices", application="select"))
    # Only operators set what a tenant may spend.
    op.execute(protect("core.budgets", application="select"))
    for table in ("ledger", "spending", "waiting_messages"):
        op.execute(protect(f"core.{table}"))
    # Sums over all tenants and the state of a provider: no tenant's data, and every embedding worker must write them.
    for table in ("stage_spending", "provider_gates"):
        op.execute(platform(f"core.{table}", application="select"))
        op.execute(f"""
            create policy application_insert on core.{table} for insert to {APPLICATION} with check (true);
            create policy application_update on core.{table} for update to {APPLICATION} using (true) with check (true);
            grant insert, update on core.{table} to {APPLICATION};
        """)
