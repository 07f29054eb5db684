"""Collections, documents, versions, chunks, vector spaces, embeddings."""

from __future__ import annotations

from alembic import op

from schema.policies import platform, protect

revision = "r0001"
down_revision = None
branch_labels = ("rag",)
depends_on = "c0001"

DOCUMENTS = """
create table rag.collections (
    tenant_id uuid not null references core.tenants on delete cascade,
    collection_id uuid not null,
    name text not null,
    primary key (tenant_id, collection_id),
    unique (tenant_id, name)
);
create table rag.documents (
    tenant_id uuid not null references core.tenants on delete cascade,
    document_id uuid not null,
    collection_id uuid not null,
    source text not null,
    external_id text not null,
    title text not null,
    state text not null constraint documents_state_check
        check (state in ('received', 'ingested', 'searchable', 'failed', 'deleted')),
    reason text,
    message text,
    next_action text,
    current_version_id uuid,
    withdrawn_version bigint,
    access_members text[] not null default '{}',
    access_groups text[] not null default '{}',
    metadata jsonb not null default '{}',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (tenant_id, document_id),
    unique (tenant_id, source, external_id),
    foreign key (tenant_id, collection_id) references rag.collections
);
create index documents_updated_idx on rag.documents (tenant_id, updated_at);
create table rag.versions (
    tenant_id uuid not null,
    version_id uuid not null,
    document_id uuid not null,
    source_version bigint not null,
    state text not null constraint versions_state_check
        check (state in ('received', 'ingested', 'searchable', 'superseded', 'unchanged', 'failed')),
    content_hash text not null,
    blob_uri text not null,
    bytes bigint not null,
    file_name text not null,
    media_type text not null,
    language text not null default 'simple',
    chunks integer not null default 0,
    reason text,
    message text,
    next_action text,
    traceparent text not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (tenant_id, version_id),
    unique (tenant_id, document_id, source_version),
    foreign key (tenant_id, document_id) references rag.documents on delete cascade
);
alter table rag.documents add constraint documents_current_version_fkey
    foreign key (tenant_id, current_version_id) references rag.versions;
create index versions_pending_idx on rag.versions (tenant_id, updated_at) where state = 'ingested';
create table rag.chunks (
    tenant_id uuid not null,
    chunk_id uuid not null,
    version_id uuid not null,
    document_id uuid not null,
    ordinal integer not null,
    text text not null,
    text_hash text not null,
    start_offset integer not null,
    end_offset integer not null,
    tokens integer not null,
    language text not null,
    heading_path text[] not null,
    position jsonb not null,
    primary key (tenant_id, chunk_id),
    unique (tenant_id, version_id, ordinal),
    foreign key (tenant_id, version_id) references rag.versions on delete cascade,
    foreign key (tenant_id, document_id) references rag.documents on delete cascade
);
create index chunks_document_idx on rag.chunks (tenant_id, document_id, text_hash);
"""

SPACES = """
create table rag.vector_spaces (
    space_id uuid primary key,
    name text not null unique,
    model text not null,
    dimension integer not null,
    evidence_floor double precision,
    created_at timestamptz not null default now(),
    unique (space_id, dimension)
);
create table rag.tenant_spaces (
    tenant_id uuid not null references core.tenants on delete cascade,
    space_id uuid not null references rag.vector_spaces,
    state text not null constraint tenant_spaces_state_check check (state in ('filling', 'active', 'retired')),
    primary key (tenant_id, space_id)
);
create unique index tenant_spaces_active_idx on rag.tenant_spaces (tenant_id) where state = 'active';
create table rag.embeddings (
    tenant_id uuid not null,
    space_id uuid not null,
    chunk_id uuid not null,
    embedding vector not null,
    dimension integer not null generated always as (vector_dims(embedding)) stored,
    primary key (tenant_id, space_id, chunk_id),
    foreign key (tenant_id, chunk_id) references rag.chunks on delete cascade,
    foreign key (tenant_id, space_id) references rag.tenant_spaces on delete cascade,
    foreign key (space_id, dimension) references rag.vector_spaces (space_id, dimension)
);
create index embeddings_chunk_idx on rag.embeddings (tenant_id, chunk_id);
"""


def upgrade() -> None:
    """Create everything in schema rag."""
    op.execute(DOCUMENTS)
    op.execute(SPACES)
    for table in ("collections", "documents", "versions", "chunks", "tenant_spaces", "embeddings"):
        op.execute(protect(f"rag.{table}"))
    # A profile is immutable: even operators only add and drop.
    op.execute(platform("rag.vector_spaces", application="select", operator="select, insert, delete"))
