"""Tenants, outbox, dead letters, conversations, checkpoints, jobs."""

from __future__ import annotations

from alembic import op

from schema.policies import platform, protect
from schema.roles import APPLICATION, OPERATOR

revision = "c0001"
down_revision = None
branch_labels = ("core",)
depends_on = None

TENANTS = """
create table core.tenants (
    tenant_id uuid primary key,
    slug text not null unique constraint tenants_slug_check check (slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    name text not null,
    created_at timestamptz not null default now()
);
create table core.members (
    tenant_id uuid not null references core.tenants on delete cascade,
    member_id uuid not null,
    email text not null,
    name text not null,
    role text not null constraint members_role_check check (role in ('member', 'curator', 'admin', 'operator')),
    created_at timestamptz not null default now(),
    primary key (tenant_id, member_id),
    unique (tenant_id, email)
);
create index members_email_idx on core.members (email);
create table core.groups (
    tenant_id uuid not null references core.tenants on delete cascade,
    group_id uuid not null,
    name text not null,
    primary key (tenant_id, group_id),
    unique (tenant_id, name)
);
create table core.group_members (
    tenant_id uuid not null,
    group_id uuid not null,
    member_id uuid not null,
    primary key (tenant_id, group_id, member_id),
    foreign key (tenant_id, group_id) references core.groups on delete cascade,
    foreign key (tenant_id, member_id) references core.members on delete cascade
);
create index group_members_member_idx on core.group_members (tenant_id, member_id);
create table core.sources (
    tenant_id uuid not null references core.tenants on delete cascade,
    source text not null,
    primary key (tenant_id, source)
);
"""

# Signing in must find the tenants of a person before a tenant is known; nothing else may look across tenants.
MEMBERSHIPS = f"""
create function core.memberships(wanted text)
returns table (tenant_id uuid, slug text, tenant_name text, member_id uuid, email text, name text, role text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select t.tenant_id, t.slug, t.name, m.member_id, m.email, m.name, m.role
    from core.members m join core.tenants t on t.tenant_id = m.tenant_id
    where m.email = lower(wanted)
    order by t.slug
$$;
revoke all on function core.memberships(text) from public;
grant execute on function core.memberships(text) to {APPLICATION};
"""

MESSAGES = """
create table core.outbox (
    tenant_id uuid not null references core.tenants on delete cascade,
    event_id uuid not null,
    topic text not null,
    data text not null,
    attributes jsonb not null,
    not_before timestamptz,
    created_at timestamptz not null default now(),
    primary key (tenant_id, event_id)
);
create index outbox_created_idx on core.outbox (created_at);
create table core.dead_letters (
    letter_id uuid primary key,
    origin text not null,
    message_id text not null,
    tenant_id uuid,
    name text,
    class text not null constraint dead_letters_class_check check (class in ('permanent', 'transient', 'poison')),
    reason text not null,
    message text not null,
    attempts integer not null,
    attributes jsonb not null,
    data bytea not null,
    traceparent text,
    archived_at timestamptz not null default now(),
    replayed_at timestamptz
);
create index dead_letters_archived_idx on core.dead_letters (archived_at);
"""

CONVERSATIONS = """
create table core.conversations (
    tenant_id uuid not null,
    conversation_id uuid not null,
    member_id uuid not null,
    title text not null,
    created_at timestamptz not null default now(),
    primary key (tenant_id, conversation_id),
    foreign key (tenant_id, member_id) references core.members on delete cascade
);
create index conversations_member_idx on core.conversations (tenant_id, member_id, created_at);
create table core.runs (
    tenant_id uuid not null,
    run_id uuid not null,
    conversation_id uuid not null,
    member_id uuid not null,
    question text not null,
    state text not null constraint runs_state_check
        check (state in ('queued', 'running', 'waiting', 'answered', 'failed', 'cancelled')),
    epoch integer not null default 0,
    crashes integer not null default 0,
    lease_until timestamptz,
    answer text,
    no_evidence boolean,
    model text,
    input_tokens integer,
    output_tokens integer,
    reason text,
    message text,
    traceparent text not null,
    created_at timestamptz not null default now(),
    finished_at timestamptz,
    primary key (tenant_id, run_id),
    foreign key (tenant_id, conversation_id) references core.conversations on delete cascade,
    foreign key (tenant_id, member_id) references core.members on delete cascade
);
create index runs_conversation_idx on core.runs (tenant_id, conversation_id, created_at);
create index runs_open_idx on core.runs (created_at) where state in ('queued', 'running');
create table core.run_events (
    tenant_id uuid not null,
    run_id uuid not null,
    seq integer not null,
    kind text not null,
    data jsonb not null,
    created_at timestamptz not null default now(),
    primary key (tenant_id, run_id, seq),
    foreign key (tenant_id, run_id) references core.runs on delete cascade
);
create table core.citations (
    tenant_id uuid not null,
    run_id uuid not null,
    number integer not null,
    document_id uuid not null,
    version_id uuid not null,
    chunk_id uuid not null,
    title text not null,
    heading_path jsonb not null,
    page integer,
    quote text not null,
    quote_start integer not null,
    quote_end integer not null,
    primary key (tenant_id, run_id, number),
    foreign key (tenant_id, run_id) references core.runs on delete cascade
);
create table core.checkpoints (
    tenant_id uuid not null references core.tenants on delete cascade,
    thread_id text not null,
    checkpoint_ns text not null,
    checkpoint_id text not null,
    parent_id text,
    kind text not null,
    checkpoint bytea not null,
    metadata jsonb not null,
    created_at timestamptz not null default now(),
    primary key (tenant_id, thread_id, checkpoint_ns, checkpoint_id)
);
create table core.checkpoint_writes (
    tenant_id uuid not null references core.tenants on delete cascade,
    thread_id text not null,
    checkpoint_ns text not null,
    checkpoint_id text not null,
    task_id text not null,
    task_path text not null,
    position integer not null,
    channel text not null,
    kind text not null,
    value bytea not null,
    primary key (tenant_id, thread_id, checkpoint_ns, checkpoint_id, task_id, position)
);
create table core.job_runs (
    job text not null,
    slot timestamptz not null,
    state text not null constraint job_runs_state_check check (state in ('running', 'done')),
    lease_until timestamptz not null,
    result jsonb not null default '{}',
    started_at timestamptz not null default now(),
    finished_at timestamptz,
    primary key (job, slot)
);
"""

TENANT_TABLES = (
    "members",
    "groups",
    "group_members",
    "sources",
    "outbox",
    "conversations",
    "runs",
    "run_events",
    "citations",
    "checkpoints",
    "checkpoint_writes",
)


def upgrade() -> None:
    """Create everything in schema core."""
    op.execute(TENANTS)
    op.execute(MEMBERSHIPS)
    op.execute(MESSAGES)
    op.execute(CONVERSATIONS)
    op.execute(protect("core.tenants", application="select"))
    for table in TENANT_TABLES:
        op.execute(protect(f"core.{table}"))
    op.execute(platform("core.dead_letters", application="insert"))
    op.execute(platform("core.job_runs"))
    # `noesis status` and readiness ask which schema is live.
    op.execute(f"grant select on alembic_version to {APPLICATION}, {OPERATOR}")
