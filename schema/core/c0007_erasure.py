"""Marks of the blob collector, signed uploads, and tenants that are closed, erased and do not come back."""

from __future__ import annotations

from alembic import op

from schema.policies import platform, protect
from schema.roles import APPLICATION, OPERATOR

revision = "c0007"
down_revision = "c0006"
branch_labels = None
depends_on = "r0001"

BLOBS = """
create table core.blob_marks (
    tenant_id uuid not null,
    content_hash text not null,
    version text not null,
    marked_at timestamptz not null,
    primary key (tenant_id, content_hash)
);
create table core.uploads (
    tenant_id uuid not null references core.tenants on delete cascade,
    upload_id uuid not null,
    member_id uuid not null,
    file_name text not null,
    media_type text not null,
    content_hash text not null,
    bytes bigint not null constraint uploads_bytes_check check (bytes > 0),
    token_hash text not null,
    expires_at timestamptz not null,
    stored_at timestamptz,
    created_at timestamptz not null default now(),
    primary key (tenant_id, upload_id),
    foreign key (tenant_id, member_id) references core.members on delete cascade
);
create index uploads_expired_idx on core.uploads (expires_at);
create index versions_blob_idx on rag.versions (tenant_id, blob_uri) where blob_uri <> '';
"""

# Closing comes first and erasing takes a while; the tombstone outlives every message that is still on its way.
ERASURES = """
alter table core.tenants add column closed_at timestamptz;
create table core.erasures (
    tenant_id uuid primary key,
    slug text not null,
    state text not null constraint erasures_state_check check (state in ('closed', 'erasing', 'proving', 'erased')),
    requested_by text not null,
    requested_at timestamptz not null default now(),
    before jsonb not null default '{}',
    deleted jsonb not null default '{}',
    erased_at timestamptz,
    certificate jsonb
);
"""

FUNCTIONS = f"""
create or replace function core.memberships(wanted text)
returns table (tenant_id uuid, slug text, tenant_name text, member_id uuid, email text, name text, role text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select t.tenant_id, t.slug, t.name, m.member_id, m.email, m.name, m.role
    from core.members m join core.tenants t on t.tenant_id = m.tenant_id
    where m.email = lower(wanted) and t.closed_at is null
    order by t.slug
$$;

create function core.tenant_is_erased(tenant uuid) returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select exists (select from core.erasures e where e.tenant_id = tenant)
$$;
revoke all on function core.tenant_is_erased(uuid) from public;
grant execute on function core.tenant_is_erased(uuid) to {APPLICATION}, {OPERATOR};

-- The record is append-only for everybody; this is the one way to take something out of it, and only what a tenant
-- that is being erased has left in it: who (unless an operator or a job), what exactly, to which name.
create function core.reduce_audit(tenant uuid) returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    reduced bigint;
begin
    if not exists (select from core.erasures e where e.tenant_id = tenant) then
        raise exception 'the audit record is reduced only for a tenant that is being erased';
    end if;
    update core.audit a
        set details = '{{}}',
            actor = case when a.actor ~ '@' then 'member' else a.actor end,
            subject = case when a.subject ~ '^[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}$'
                           then a.subject else '' end,
            tenant_id = tenant
        where (a.tenant_id = tenant or a.tenant_id is null
               and (position(tenant::text in a.details::text) > 0 or position(tenant::text in a.subject) > 0))
          and a.action not in ('tenant-closed', 'tenant-erased');
    get diagnostics reduced = row_count;
    return reduced;
end
$$;
revoke all on function core.reduce_audit(uuid) from public;
grant execute on function core.reduce_audit(uuid) to {OPERATOR};
"""


def upgrade() -> None:
    """New tables, a column that may be null, an index; memberships of open tenants only."""
    for statements in (BLOBS, ERASURES, FUNCTIONS):
        op.execute(statements)
    # What the collector has seen is no business of a tenant, but a table with its id is guarded like every other.
    op.execute(protect("core.blob_marks", application="select"))
    op.execute(protect("core.uploads"))
    op.execute(platform("core.erasures"))
