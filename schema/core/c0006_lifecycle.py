"""Documents are deleted, restored, rolled back and purged: who and when, tombstones, requests for two people, audit."""

from __future__ import annotations

from alembic import op

from schema.policies import protect
from schema.roles import APPLICATION, OPERATOR

revision = "c0006"
down_revision = "c0005"
branch_labels = None
depends_on = None

DOCUMENTS = """
alter table rag.documents
    add column deleted_at timestamptz,
    add column deleted_by text,
    add column deleted_version_id uuid,
    add column floor_version bigint,
    add column acts integer not null default 0,
    add constraint documents_deleted_version_fkey
        foreign key (tenant_id, deleted_version_id) references rag.versions;
create index documents_deleted_version_idx on rag.documents (tenant_id, deleted_version_id)
    where deleted_version_id is not null;
create index documents_deleted_idx on rag.documents (deleted_at) where state = 'deleted';
alter table rag.versions
    add column rejected_at timestamptz,
    add column rejected_by text,
    add column purged_at timestamptz;
create index versions_kept_idx on rag.versions (tenant_id, document_id, source_version)
    where state in ('superseded', 'failed') and chunks > 0 and purged_at is null;
create index versions_rejected_idx on rag.versions (tenant_id, document_id, content_hash) where rejected_at is not null;
"""

# What upstream withdrew before this release is deleted like the rest: purged 30 days after it.
BACKFILL = """
update rag.documents set deleted_at = updated_at, deleted_by = 'source:' || source where state = 'deleted';
"""

# A hash and a number: nothing in it says which document it was.
TOMBSTONES = """
create table rag.tombstones (
    tenant_id uuid not null references core.tenants on delete cascade,
    key bytea not null constraint tombstones_key_check check (octet_length(key) = 32),
    source_version bigint not null,
    deleted_at timestamptz not null,
    created_at timestamptz not null default now(),
    primary key (tenant_id, key)
);
"""

REQUESTS = """
create table core.purge_requests (
    tenant_id uuid not null references core.tenants on delete cascade,
    request_id uuid not null,
    documents uuid[] not null,
    total integer not null,
    note text not null default '',
    requested_by text not null,
    requested_at timestamptz not null default now(),
    approved_by text,
    approved_at timestamptz,
    finished_at timestamptz,
    primary key (tenant_id, request_id),
    constraint purge_requests_two_people_check check (approved_by <> requested_by),
    constraint purge_requests_approved_check check ((approved_by is null) = (approved_at is null))
);
"""

# The application may add to the record what its own tenant's people did, and read or change nothing of it.
AUDIT = f"""
create function core.record_act(act uuid, who text, what text, thing text, about jsonb) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    tenant constant uuid := nullif(current_setting('app.tenant_id', true), '')::uuid;
begin
    if tenant is null then
        raise exception 'no tenant is set' using errcode = 'insufficient_privilege';
    end if;
    insert into core.audit (audit_id, actor, action, subject, tenant_id, details)
    values (act, who, what, thing, tenant, about);
end
$$;
revoke all on function core.record_act(uuid, text, text, text, jsonb) from public;
grant execute on function core.record_act(uuid, text, text, text, jsonb) to {APPLICATION}, {OPERATOR};
create index audit_subject_idx on core.audit (tenant_id, subject);
"""


def upgrade() -> None:
    """New tables, columns that may be null or have a default, a function; old code goes on working with them."""
    for statements in (DOCUMENTS, BACKFILL, TOMBSTONES, REQUESTS, AUDIT):
        op.execute(statements)
    op.execute(protect("rag.tombstones", application="select, update"))
    op.execute(protect("core.purge_requests", application="select"))
