"""Dead letters that can be replayed, job runs with epoch and progress, the audit record."""

from __future__ import annotations

from alembic import op

from schema.policies import platform

revision = "c0002"
down_revision = "c0001"
branch_labels = None
depends_on = None

DEAD_LETTERS = """
alter table core.dead_letters
    drop constraint dead_letters_class_check,
    add constraint dead_letters_class_check check (class in ('permanent', 'transient', 'poison', 'budget')),
    add column event_id uuid,
    add column replays integer not null default 0,
    add column automatic_replays integer not null default 0,
    add column replay_id uuid,
    add column discarded_at timestamptz;
create index dead_letters_replay_idx on core.dead_letters (replay_id) where replay_id is not null;
"""

JOB_RUNS = """
alter table core.job_runs
    drop constraint job_runs_state_check,
    add constraint job_runs_state_check check (state in ('queued', 'running', 'done', 'failed')),
    add column epoch integer not null default 0,
    add column failures integer not null default 0,
    add column done bigint not null default 0,
    add column total bigint,
    add column cursor jsonb,
    add column actor text not null default 'schedule',
    add column error text;
create index job_runs_open_idx on core.job_runs (lease_until) where state in ('queued', 'running');
"""

AUDIT = """
create table core.audit (
    audit_id uuid primary key,
    at timestamptz not null default now(),
    actor text not null,
    action text not null,
    subject text not null,
    tenant_id uuid,
    details jsonb not null default '{}'
);
create index audit_at_idx on core.audit (at);
"""


def upgrade() -> None:
    """Add columns and the audit table; the code that is live now goes on working with them."""
    op.execute(DEAD_LETTERS)
    op.execute(JOB_RUNS)
    op.execute(AUDIT)
    # Append-only: nobody but the owner of the schema changes or removes what happened.
    op.execute(platform("core.audit", operator="select, insert"))
