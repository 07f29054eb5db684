"""The lexical channel plans for itself: a search pins the planner to the tenant's indexes, which does not suit it."""

from __future__ import annotations

from alembic import op

from schema.rag.r0005_retrieval import ARGUMENTS

revision = "r0006"
down_revision = "r0005"
branch_labels = None
depends_on = None

# The counterpart of shared/retrieval/planning.py; enable_seqscan is off in the function since r0002.
SETTINGS = {
    "enable_bitmapscan": "on",
    "enable_hashjoin": "on",
    "enable_mergejoin": "on",
    "enable_material": "on",
    "enable_memoize": "on",
    "enable_incremental_sort": "on",
    "enable_sort": "on",
    "join_collapse_limit": "8",
    "from_collapse_limit": "8",
}


# Whoever deletes a version has the documents searched for references to it: without these, each deletion of a purge or
# an erasure reads all documents of the tenant (the other reference has its index in c0006).
INDEX = "create index documents_current_version_idx on rag.documents (tenant_id, current_version_id)"


def upgrade() -> None:
    """The function's own settings, which hold while it runs; an index behind a foreign key."""
    op.execute(INDEX)
    settings = " ".join(f"set {name} = {value}" for name, value in SETTINGS.items())
    op.execute(f"alter function rag.lexical_candidates({ARGUMENTS}, timestamptz) {settings}")
