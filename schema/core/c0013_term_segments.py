"""Statistics of a corpus are counted a segment at a time, and a segment that has not changed is not counted again."""

from __future__ import annotations

from alembic import op

from schema.policies import protect

revision = "c0013"
down_revision = "c0012"
branch_labels = None
depends_on = None

# Terms are hashes, which nothing compresses; counts are mostly ones. Empty at first: index care fills it, and until
# then what was counted before answers.
SEGMENTS = """
create table rag.term_segments (
    tenant_id uuid not null references core.tenants on delete cascade,
    bits smallint not null,
    part integer not null,
    chunks integer not null,
    length bigint not null,
    fingerprint bigint not null,
    terms integer[] not null,
    counts integer[] not null,
    primary key (tenant_id, bits, part)
);
alter table rag.term_segments alter column terms set storage external;
"""


def upgrade() -> None:
    """A table that only index care and hard deletion know."""
    op.execute(SEGMENTS)
    op.execute(protect("rag.term_segments", application="select"))


def downgrade() -> None:
    """Counted from the beginning again."""
    op.execute("drop table rag.term_segments")
