"""Recall probes: how close the approximate index of a tenant comes to exact search."""

from __future__ import annotations

from alembic import op

from schema.policies import protect

revision = "r0003"
down_revision = "r0002"
branch_labels = None
depends_on = None

TABLES = """
create table rag.recall_probes (
    tenant_id uuid not null,
    space_id uuid not null,
    probed_at timestamptz not null default now(),
    queries integer not null,
    mean double precision not null,
    worst double precision not null,
    method text not null constraint recall_probes_method_check check (method in ('hnsw', 'ivfflat', 'exact')),
    primary key (tenant_id, space_id, probed_at),
    foreign key (tenant_id, space_id) references rag.tenant_spaces on delete cascade
);
"""


def upgrade() -> None:
    """The table of recall probes; operators may calibrate the evidence floor of a space and nothing else of it."""
    op.execute(TABLES)
    op.execute(protect("rag.recall_probes", application="select"))
    # The profile stays immutable; the floor is a measurement about it.
    op.execute("grant update (evidence_floor) on rag.vector_spaces to noesis_operator")
