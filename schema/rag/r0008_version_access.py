"""Every version keeps its own access list: a wider one of a new version must not open the text of the old one."""

from __future__ import annotations

from alembic import op

from schema.rag.r0007_lexical_at_size import search_function

revision = "r0008"
down_revision = "r0007"
branch_labels = None
depends_on = None

# Null: received before this release, when only the document had a list; that one holds.
COLUMNS = "alter table rag.versions add column access_members text[], add column access_groups text[]"


# What answered at a moment had a list of its own, which may have been narrower than the document's is now.
_THEN = """                                 and a.version_id = h.version_id and a.answering_from <= as_of
                                 and (a.answering_until is null or a.answering_until > as_of)) end"""
_OPEN_THEN = """                                 and a.version_id = h.version_id and a.answering_from <= as_of
                                 and (a.answering_until is null or a.answering_until > as_of))
                       and exists (select from rag.versions v
                               where v.tenant_id = tenant and v.version_id = h.version_id
                                 and (v.access_members is null or (v.access_members = '{}' and v.access_groups = '{}')
                                      or v.access_members && members or v.access_groups && groups)) end"""


def search_function_then() -> str:
    """The lexical channel of r0007; as of a moment it reads the list of each version as well."""
    function = search_function()
    if function.count(_THEN) != 1:
        raise AssertionError("r0007 is not the function this migration extends")
    return function.replace(_THEN, _OPEN_THEN)


def upgrade() -> None:
    """Two columns that may be null: nothing is rewritten, and the release before needs not know of them."""
    op.execute(COLUMNS)
    op.execute(search_function_then())


def downgrade() -> None:
    """The lists of the documents stay as they are."""
    op.execute(search_function())
    op.execute("alter table rag.versions drop column access_members, drop column access_groups")
