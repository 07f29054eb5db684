"""Model calls, money of answers, waiting runs, feedback."""

from __future__ import annotations

from alembic import op

from schema.policies import protect
from schema.roles import APPLICATION

revision = "c0008"
down_revision = "c0007"
branch_labels = None
depends_on = None

RUNS = """
alter table core.runs
    add column cost_eur numeric(18, 9) not null default 0,
    add column partial boolean not null default false,
    add column language text,
    add column prompts text,
    add column space_id uuid,
    add column waiting_for text constraint runs_waiting_check
        check (waiting_for in ('approval', 'budget', 'price', 'provider')),
    add column waiting_until timestamptz;
create index runs_waiting_idx on core.runs (waiting_until) where state = 'waiting';
create table core.model_calls (
    tenant_id uuid not null,
    run_id uuid not null,
    call_key text not null,
    model text not null,
    prompt text not null default '',
    reply jsonb not null,
    input_tokens integer not null,
    output_tokens integer not null,
    cost_eur numeric(18, 9) not null,
    created_at timestamptz not null default now(),
    primary key (tenant_id, run_id, call_key),
    foreign key (tenant_id, run_id) references core.runs on delete cascade
);
create table core.feedback (
    tenant_id uuid not null,
    run_id uuid not null,
    member_id uuid not null,
    rating smallint not null constraint feedback_rating_check check (rating in (-1, 1)),
    comment text not null default '',
    space_id uuid,
    citations jsonb not null default '[]',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (tenant_id, run_id, member_id),
    foreign key (tenant_id, run_id) references core.runs on delete cascade,
    foreign key (tenant_id, member_id) references core.members on delete cascade
);
create index feedback_created_idx on core.feedback (tenant_id, created_at);
"""

MONEY = """
alter table core.prices
    add column eur_per_million_output numeric(14, 6)
        constraint prices_output_check check (eur_per_million_output >= 0);
insert into core.prices (model, valid_from, eur_per_million, eur_per_million_output)
    values ('extractive', '2026-01-01 00:00+00', 0, 0) on conflict do nothing;
alter table core.ledger
    alter column document_id drop not null,
    alter column version_id drop not null,
    add column run_id uuid,
    add column output_tokens bigint not null default 0;
create index ledger_run_idx on core.ledger (tenant_id, run_id) where run_id is not null;
alter table core.budgets drop constraint budgets_period_check;
alter table core.budgets add constraint budgets_period_check check (period in ('run', 'day', 'month'));
alter table core.spending add column warned_limit numeric(18, 9);
"""


# One call is one transaction of whoever holds the run: renew the lease or be refused, then events and a step. It runs
# in the caller's rights, under the policies of the tenant that it is told: the same as tenant_session, in one round
# trip instead of six. It does not wait for the disk: what a step has paid or done is stored by itself before, and waits
# (replies, tool calls, approvals, the answer); should the server crash, not the worker, at most the last half second of
# steps is run again, for nothing.
STEPS = f"""
create function core.keep_step(
    mine uuid, run uuid, held integer, lease interval, events jsonb,
    thread text, ns text, step text, parent text, format text, body bytea, about jsonb
) returns boolean
language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
begin
    perform set_config('app.tenant_id', mine::text, true), set_config('synchronous_commit', 'off', true);
    update core.runs set lease_until = now() + lease
    where tenant_id = mine and run_id = run and epoch = held and state = 'running';
    if not found then
        return false;
    end if;
    if events is not null then
        insert into core.run_events (tenant_id, run_id, seq, kind, data)
        select mine, run, e.seq, e.kind, e.data
        from jsonb_to_recordset(events) as e(seq integer, kind text, data jsonb);
    end if;
    if step is not null then
        delete from core.checkpoint_writes
        where tenant_id = mine and thread_id = thread and checkpoint_ns = ns and checkpoint_id < step;
        delete from core.checkpoints
        where tenant_id = mine and thread_id = thread and checkpoint_ns = ns and checkpoint_id < step;
        insert into core.checkpoints as c
            (tenant_id, thread_id, checkpoint_ns, checkpoint_id, parent_id, kind, checkpoint, metadata)
        values (mine, thread, ns, step, parent, format, body, about)
        on conflict (tenant_id, thread_id, checkpoint_ns, checkpoint_id)
        do update set kind = excluded.kind, checkpoint = excluded.checkpoint, metadata = excluded.metadata;
    end if;
    return true;
end
$$;
revoke all on function core.keep_step from public;
grant execute on function core.keep_step to {APPLICATION};
"""


def upgrade() -> None:
    """Runs cost and may wait, finished model calls are kept, answers get feedback, chat has two prices."""
    op.execute(RUNS)
    op.execute(MONEY)
    op.execute(STEPS)
    for table in ("model_calls", "feedback"):
        op.execute(protect(f"core.{table}"))
