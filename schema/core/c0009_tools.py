"""Tools: what a tenant allows, calls and their outcomes, approvals that wait for a person, cases as the example."""

from __future__ import annotations

from alembic import op

from schema.policies import protect

revision = "c0009"
down_revision = "c0008"
branch_labels = None
depends_on = None

TOOLS = """
create table core.tenant_tools (
    tenant_id uuid not null references core.tenants on delete cascade,
    name text not null,
    enabled boolean not null,
    roles text[] not null default '{}',
    asking text not null constraint tenant_tools_asking_check check (asking in ('always', 'untrusted', 'never')),
    approvers text[] not null,
    four_eyes boolean not null default true,
    patience_hours integer not null default 168
        constraint tenant_tools_patience_check check (patience_hours between 1 and 8760),
    settings jsonb not null default '{}',
    updated_at timestamptz not null default now(),
    primary key (tenant_id, name)
);
"""

CALLS = """
create table core.tool_calls (
    tenant_id uuid not null,
    run_id uuid not null,
    call_key text not null,
    name text not null,
    state text not null constraint tool_calls_state_check check (state in ('reserved', 'finished')),
    arguments jsonb not null,
    ok boolean,
    reason text,
    result jsonb,
    attempts integer not null default 1,
    created_at timestamptz not null default now(),
    finished_at timestamptz,
    primary key (tenant_id, run_id, call_key),
    foreign key (tenant_id, run_id) references core.runs on delete cascade
);
"""

APPROVALS = """
create table core.approvals (
    tenant_id uuid not null,
    approval_id uuid not null,
    run_id uuid not null,
    call_key text not null,
    tool text not null,
    arguments jsonb not null,
    asked_for uuid not null,
    approvers text[] not null,
    four_eyes boolean not null,
    state text not null default 'pending' constraint approvals_state_check check (
        state in ('pending', 'approved', 'edited', 'refused', 'expired', 'cancelled')),
    edited jsonb,
    note text not null default '',
    decided_by uuid,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    decided_at timestamptz,
    primary key (tenant_id, approval_id),
    unique (tenant_id, run_id, call_key),
    foreign key (tenant_id, run_id) references core.runs on delete cascade
);
create index approvals_pending_idx on core.approvals (expires_at) where state = 'pending';
"""

CASES = """
create table core.cases (
    tenant_id uuid not null references core.tenants on delete cascade,
    case_number text not null,
    title text not null,
    status text not null default 'open'
        constraint cases_status_check check (status in ('open', 'in-progress', 'waiting', 'closed')),
    note text not null default '',
    revision integer not null default 1,
    access_groups text[] not null default '{}',
    changed_by text not null,
    updated_at timestamptz not null default now(),
    primary key (tenant_id, case_number)
);
"""


def upgrade() -> None:
    """New tables only."""
    for statement in (TOOLS, CALLS, APPROVALS, CASES):
        op.execute(statement)
    # What a tenant allows is an administrator's word: a run reads it and can never change it.
    op.execute(protect("core.tenant_tools", application="select"))
    op.execute(protect("core.tool_calls"))
    op.execute(protect("core.approvals"))
    op.execute(protect("core.cases"))
