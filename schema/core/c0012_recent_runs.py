"""A member's last questions are read from an index: a tenant of years asks for twenty of a million."""

from __future__ import annotations

from alembic import op

revision = "c0012"
down_revision = "c0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One more index; it is written once a question."""
    op.execute("create index runs_member_idx on core.runs (tenant_id, member_id, created_at)")


def downgrade() -> None:
    """Without it."""
    op.execute("drop index core.runs_member_idx")
