"""A document whose content lies on the web may wait for its site, and says so."""

from __future__ import annotations

from alembic import op

revision = "c0014"
down_revision = "c0013"
branch_labels = None
depends_on = None


def _causes(causes: str) -> None:
    op.execute(
        "alter table rag.versions drop constraint versions_waiting_check, "
        f"add constraint versions_waiting_check check (waiting in ({causes}))"
    )


def upgrade() -> None:
    """One cause more."""
    _causes("'turn', 'site', 'provider', 'budget', 'price'")


def downgrade() -> None:
    """What waits for a site is not shown as waiting."""
    op.execute("update rag.versions set waiting = null, waiting_until = null where waiting = 'site'")
    _causes("'turn', 'provider', 'budget', 'price'")
