"""Storing the words of chunks in half the time: the same terms, words and scores.

Measured where the time of `rag.index_terms` went (ADR 0024): half of it into starting an executor for each call of
`rag.term`, which PostgreSQL did not inline, the rest into indexes and text analysis. Nothing is indexed anew.
"""

from __future__ import annotations

from alembic import op

from schema.rag import r0002_lexical_search as r0002
from schema.rag.r0005_retrieval import trigger_function
from schema.rag.r0008_version_access import search_function_then

revision = "r0009"
down_revision = "r0008"
branch_labels = None
depends_on = None

# The markers "at least twice, three times, five times" are read from the row since r0007: postings of their own, one in
# five, only cost time. Null: stored before this release; the markers are among the terms then.
COLUMN = "alter table rag.chunk_terms add column markers integer[]"

# The same values as in r0002. `integer || text` is not immutable, and what an immutable function may not contain keeps
# it from being inlined; most stems are plain already; text without `-` is passed by replace() at a glance, while
# translate() compares every letter with each of its list.
FUNCTIONS = f"""
create or replace function rag.term(tenant uuid, occurrences integer, language text, stem text) returns integer
language sql immutable parallel safe as $$
    select (hashtextextended(occurrences::text || ':' || language || ':' || stem,
                             hashtextextended(tenant::text, 0)) % 2147483647)::integer
$$;
create or replace function rag.stems(language text, content text) returns tsvector
language sql immutable parallel safe as $$
    select to_tsvector(case language when 'de' then 'german'::regconfig when 'en' then 'english'::regconfig
                                     else 'simple'::regconfig end,
                       replace(replace(replace(replace(replace(
                           case when lower(content) ~ '[{r0002.ACCENTED}]'
                                then translate(lower(content), '{r0002.ACCENTED}', '{r0002.PLAIN}')
                                else lower(content) end,
                           '-', ' '), '/', ' '), '_', ' '), '§', ' '), '|', ' '))
$$;
create or replace function rag.plain(word text) returns text
language sql immutable parallel safe as $$
    -- Without accents, by Unicode's decomposition; a word of ASCII has none.
    select case when octet_length(word) = length(word) then word
           else translate(replace(replace(replace(regexp_replace(normalize(word, NFKD), '[\\u0300-\\u036f]', '', 'g'),
                                                  'ß', 'ss'), 'æ', 'ae'), 'œ', 'oe'), 'øłđ', 'old') end
$$;
"""

# Each chunk's text is analysed once; terms are gathered chunk by chunk instead of by a sort of all of them, and words
# by the document. Without sequential scans: the plan is kept as long as the connection, and one made while the
# vocabulary was empty would read all of it for each word.
TRIGGER = """
create or replace function rag.index_terms() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
    with stemmed as materialized (
        select n.tenant_id, n.chunk_id, n.document_id, n.version_id, n.language,
               rag.stems(n.language, array_to_string(n.heading_path, ' ') || ' ' || n.text) as stems
        from new_chunks n
    ), words as (
        insert into rag.vocabulary (tenant_id, language, stem, spellings)
        -- As rag.spellings has it, without the call.
        select w.tenant_id, w.language, w.stem,
               (select array_agg(distinct rag.term(w.tenant_id, 0, 'spelling',
                                                   case p.place when 0 then w.stem
                                                        else overlay(w.stem placing '' from p.place for 1) end))
                from (select generate_series(0, length(w.stem)) as place) p)
        -- OFFSET 0: first each word once, then its letters, then whether it is known, looked up word by word (r0002).
        from (select l.tenant_id, l.language, rag.plain(l.lexeme) as stem
              from (select distinct s.tenant_id, s.language, u.lexeme
                    from stemmed s cross join lateral unnest(s.stems) u offset 0) l offset 0) w
        where length(w.stem) between 4 and 40 and w.stem !~ '[0-9]'
          and not exists (select from rag.vocabulary v
                          where v.tenant_id = w.tenant_id and v.language = w.language and v.stem = w.stem offset 0)
        -- In one order, so that two documents with the same new words wait for each other and never deadlock.
        order by w.tenant_id, w.language, w.stem
        on conflict do nothing
    )
    insert into rag.chunk_terms (tenant_id, chunk_id, document_id, version_id, language, length, terms, markers)
    select s.tenant_id, s.chunk_id, s.document_id, s.version_id, s.language,
           coalesce(t.length, 0), coalesce(t.terms, '{}'), coalesce(t.markers, '{}')
    from stemmed s
    cross join lateral (
        select sum(coalesce(cardinality(u.positions), 1)) as length,
               array_agg(distinct rag.term(s.tenant_id, 1, s.language, rag.plain(u.lexeme))) as terms,
               array_agg(rag.term(s.tenant_id, 2, s.language, rag.plain(u.lexeme)))
                   filter (where cardinality(u.positions) >= 2)
               || array_agg(rag.term(s.tenant_id, 3, s.language, rag.plain(u.lexeme)))
                   filter (where cardinality(u.positions) >= 3)
               || array_agg(rag.term(s.tenant_id, 4, s.language, rag.plain(u.lexeme)))
                   filter (where cardinality(u.positions) >= 5) as markers
        from unnest(s.stems) u
    ) t;
    return null;
end
$$;
"""

_MARKERS = "<> all(c.terms)"
_MARKERS_NOW = "<> all(coalesce(c.markers, c.terms))"


def search_function_now() -> str:
    """The lexical channel of r0008, which reads how often a word stands in a chunk from its markers."""
    function = search_function_then()
    if function.count(_MARKERS) != 3:
        raise AssertionError("r0008 is not the function this migration extends")
    return function.replace(_MARKERS, _MARKERS_NOW)


def upgrade() -> None:
    """A column that may be null, and functions under the same names; rows of before are found as they were."""
    op.execute(COLUMN)
    op.execute(search_function_now())
    op.execute(FUNCTIONS)
    op.execute(TRIGGER)


def downgrade() -> None:
    """The markers go back among the terms; the functions are those of r0002, r0005 and r0008."""
    kept = r0002.TERMS.split("create function rag.likeness", maxsplit=1)[0]
    op.execute(kept.replace("create function", "create or replace function"))
    op.execute(trigger_function())
    op.execute(search_function_then())
    op.execute("update rag.chunk_terms set terms = terms || markers where markers is not null")
    op.execute("alter table rag.chunk_terms drop column markers")
