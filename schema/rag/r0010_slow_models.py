"""A campaign remembers how large a batch its model manages."""

from __future__ import annotations

from alembic import op

revision = "r0010"
down_revision = "r0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Empty until a model was too slow."""
    op.execute("alter table rag.campaigns add column batch integer constraint campaigns_batch_check check (batch > 0)")


def downgrade() -> None:
    """Batches are as large as the setting says again."""
    op.execute("alter table rag.campaigns drop column batch")
