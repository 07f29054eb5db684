"""The lexical channel at its edges: a corpus without a single word, and words between angle brackets.

Where no chunk has a word (pictures, signs, function words only) the mean length is 0, and so it is in statistics that
were counted while a tenant had nothing: BM25 divided by it, and every search of the tenant ended in an error.
PostgreSQL's parser takes `<branch>` for a tag and drops it with all that stands in it, in texts as in questions.
"""

from __future__ import annotations

from alembic import op

from schema.rag.r0009_lexical_writing import FUNCTIONS, search_function_now

revision = "r0012"
down_revision = "r0011"
branch_labels = None
depends_on = None

_UNKNOWN = "    if corpus_chunks is null then\n"
# Counted as empty: what has come since then is little, or statistics would have been refreshed.
_UNKNOWN_OR_EMPTY = "    if coalesce(corpus_chunks, 0) = 0 then\n"
_BEGIN = "    return query\n"
_GUARDED = """    -- Without words there is nothing to score, but each length is divided by the mean one.
    corpus_length := case when corpus_length > 0 then corpus_length else 1 end;
    return query
"""

_SEPARATORS = "'§', ' '), '|', ' '))"
_MORE_SEPARATORS = "'§', ' '), '|', ' '), '<', ' '))"
_REPLACED = "replace(replace(replace(replace(replace(\n"


def search_function_guarded() -> str:
    """The lexical channel of r0009, for which a corpus may be without words."""
    function = search_function_now()
    if [function.count(part) for part in (_UNKNOWN, _BEGIN)] != [1, 1]:
        raise AssertionError("r0009 is not the function this migration extends")
    return function.replace(_UNKNOWN, _UNKNOWN_OR_EMPTY).replace(_BEGIN, _GUARDED)


def stems_function() -> str:
    """`rag.stems` of r0009 for which `<` parts words like a hyphen."""
    _, found, rest = FUNCTIONS.partition("create or replace function rag.stems")
    function = found + rest.partition("create or replace function rag.plain")[0]
    if [function.count(part) for part in (_SEPARATORS, _REPLACED)] != [1, 1]:
        raise AssertionError("r0009 is not the function this migration extends")
    return function.replace(_SEPARATORS, _MORE_SEPARATORS).replace(_REPLACED, f"replace({_REPLACED}")


def upgrade() -> None:
    """Functions under the same names; chunks of before are found as they were, by what stands outside the brackets."""
    op.execute(search_function_guarded())
    op.execute(stems_function())


def downgrade() -> None:
    """The functions of r0009; chunks stored meanwhile keep their words."""
    op.execute(search_function_now())
    op.execute(FUNCTIONS)
