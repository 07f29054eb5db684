"""Campaigns: whole profiles of vector spaces, what moves a tenant from one to another, chunks a model refuses."""

from __future__ import annotations

from alembic import op

from schema.policies import protect

revision = "r0004"
down_revision = "r0003"
branch_labels = None
depends_on = None

# What is there was cut and embedded with these.
PROFILE = """
alter table rag.vector_spaces
    add column chunker text not null default 'structure-1/800/80',
    add column query_prefix text not null default '',
    add column passage_prefix text not null default '',
    add constraint vector_spaces_dimension_check check (dimension between 1 and 4000),
    add constraint vector_spaces_profile_key unique (model, dimension, chunker, query_prefix, passage_prefix);
create function rag.keep_profile() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if (new.space_id, new.name, new.model, new.dimension, new.chunker, new.query_prefix, new.passage_prefix)
       is distinct from
       (old.space_id, old.name, old.model, old.dimension, old.chunker, old.query_prefix, old.passage_prefix) then
        raise exception 'the profile of a vector space never changes: make another space'
            using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;
create trigger keep_profile before update on rag.vector_spaces
    for each row execute function rag.keep_profile();
alter table rag.tenant_spaces drop constraint tenant_spaces_state_check;
alter table rag.tenant_spaces add constraint tenant_spaces_state_check
    check (state in ('filling', 'active', 'paused', 'retired'));
"""

CAMPAIGNS = """
create table rag.campaigns (
    tenant_id uuid not null references core.tenants on delete cascade,
    campaign_id uuid not null,
    source_space_id uuid not null references rag.vector_spaces,
    target_space_id uuid not null references rag.vector_spaces,
    state text not null constraint campaigns_state_check check (state in (
        'planned', 'filling', 'paused', 'ready', 'switched', 'rolled-back', 'completed', 'cancelled', 'failed')),
    reason text,
    message text,
    next_action text,
    history boolean not null default true,
    budget_eur numeric(18, 9) constraint campaigns_budget_check check (budget_eur > 0),
    spent_eur numeric(18, 9) not null default 0,
    estimate jsonb not null default '{}',
    comparison jsonb,
    cursor uuid,
    slots integer not null default 1,
    actor text not null,
    created_at timestamptz not null default now(),
    started_at timestamptz,
    ready_at timestamptz,
    switched_at timestamptz,
    grace_until timestamptz,
    ended_at timestamptz,
    drop_after timestamptz,
    dropped_at timestamptz,
    primary key (tenant_id, campaign_id),
    constraint campaigns_spaces_check check (source_space_id <> target_space_id)
);
create unique index campaigns_open_idx on rag.campaigns (tenant_id)
    where state in ('planned', 'filling', 'paused', 'ready', 'switched');
create table rag.campaign_batches (
    tenant_id uuid not null,
    campaign_id uuid not null,
    batch_id uuid not null,
    version_id uuid not null,
    chunk_ids uuid[] not null,
    arrival boolean not null default false,
    attempts integer not null default 1,
    sent_at timestamptz not null default now(),
    waiting text,
    waiting_until timestamptz,
    paid_before_eur numeric(18, 9) not null default 0,
    primary key (tenant_id, campaign_id, batch_id),
    foreign key (tenant_id, campaign_id) references rag.campaigns on delete cascade,
    foreign key (tenant_id, version_id) references rag.versions on delete cascade
);
create table rag.embedding_failures (
    tenant_id uuid not null,
    space_id uuid not null,
    chunk_id uuid not null,
    reason text not null,
    message text not null,
    next_action text not null,
    failed_at timestamptz not null default now(),
    primary key (tenant_id, space_id, chunk_id),
    foreign key (tenant_id, space_id) references rag.tenant_spaces on delete cascade,
    foreign key (tenant_id, chunk_id) references rag.chunks on delete cascade
);
"""


def upgrade() -> None:
    """Profiles, campaigns with their batches, refused chunks."""
    op.execute(PROFILE)
    op.execute(CAMPAIGNS)
    for table in ("campaigns", "campaign_batches", "embedding_failures"):
        op.execute(protect(f"rag.{table}"))
