"""Lexical search with statistics of the tenant's own corpus: terms of chunks, vocabulary, BM25 in a definer function.

PostgreSQL's ts_rank knows no inverse document frequency and a GIN index is never used under row-level security (FACTS),
so the terms of a chunk are kept as numbers that carry the tenant: posting lists of two tenants are never the same list,
and neither result, count nor time of one depends on the other's rows.
"""

from __future__ import annotations

from alembic import op

from schema.policies import protect
from schema.roles import APPLICATION

revision = "r0002"
down_revision = "r0001"
branch_labels = None
depends_on = None

# A row of chunk_terms is read in every search: small, and kept together in the page instead of in a TOAST table, as
# the vectors are (a vector of 512 numbers is just above TOAST's limit, and every distance would fetch it from there).
TABLES = """
create table rag.chunk_terms (
    tenant_id uuid not null,
    chunk_id uuid not null,
    document_id uuid not null,
    version_id uuid not null,
    language text not null,
    length integer not null,
    terms integer[] not null,
    primary key (tenant_id, chunk_id),
    foreign key (tenant_id, chunk_id) references rag.chunks on delete cascade
) with (toast_tuple_target = 8160);
alter table rag.chunk_terms alter column terms set storage main;
create index chunk_terms_version_idx on rag.chunk_terms (tenant_id, version_id) include (chunk_id);
create index chunk_terms_terms_idx on rag.chunk_terms using gin (terms) with (fastupdate = off);
alter table rag.embeddings alter column embedding set storage main;
alter table rag.embeddings set (toast_tuple_target = 8160);
create table rag.vocabulary (
    tenant_id uuid not null references core.tenants on delete cascade,
    language text not null,
    stem text collate "C" not null,
    backwards text collate "C" not null generated always as (tenant_id::text || language || reverse(stem)) stored,
    spellings integer[] not null,
    primary key (tenant_id, language, stem)
);
create index vocabulary_backwards_idx on rag.vocabulary (backwards);
create index vocabulary_spellings_idx on rag.vocabulary using gin (spellings) with (fastupdate = off);
create table rag.term_statistics (
    tenant_id uuid not null references core.tenants on delete cascade,
    term integer not null,
    chunks integer not null,
    primary key (tenant_id, term)
);
create table rag.corpus_statistics (
    tenant_id uuid not null references core.tenants on delete cascade,
    chunks integer not null,
    average_length double precision not null,
    refreshed_at timestamptz not null default now(),
    primary key (tenant_id)
);
"""

# Letters whose accents fall before stemming ("café" and "cafe" have different stems); ä, ö, ü, ß mean something to the
# German stemmer, and rag.plain sees to the rest afterwards.
ACCENTED = "áàâãåāăąçćčďđéèêëēėęěğíìîïīıłľñńňóòôõøōőřŕśšşșťțţúùûūůűýÿźżž"
PLAIN = "aaaaaaaacccddeeeeeeeegiiiiiillnnnooooooorrsssstttuuuuuuyyzzz"

# Terms. A term is a stem of a language in a tenant; "2:" and "3:" mark that a chunk has it at least so often.
TERMS = f"""
create function rag.term(tenant uuid, occurrences integer, language text, stem text) returns integer
language sql immutable parallel safe as $$
    select (hashtextextended(occurrences || ':' || language || ':' || stem,
                             hashtextextended(tenant::text, 0)) % 2147483647)::integer
$$;
create function rag.stems(language text, content text) returns tsvector
language sql immutable parallel safe as $$
    select to_tsvector(case language when 'de' then 'german'::regconfig when 'en' then 'english'::regconfig
                                     else 'simple'::regconfig end,
                       -- translate() compares every letter with every one of its list: a long one only where needed.
                       case when lower(content) ~ '[{ACCENTED}]'
                            then translate(lower(content), '{ACCENTED}-/_§|', '{PLAIN}     ')
                            else translate(lower(content), '-/_§|', '     ') end)
$$;
create function rag.plain(word text) returns text
language sql immutable parallel safe as $$
    -- Without accents, by Unicode's decomposition: no extension is needed for it.
    select translate(replace(replace(replace(regexp_replace(normalize(word, NFKD), '[\\u0300-\\u036f]', '', 'g'),
                                             'ß', 'ss'), 'æ', 'ae'), 'œ', 'oe'), 'øłđ', 'old')
$$;
create function rag.likeness(one text, other text) returns double precision
language sql immutable parallel safe as $$
    -- Shared trigrams of all, words padded by two blanks before and one behind, as pg_trgm's similarity() counts them.
    with a as (select distinct substr('  ' || one || ' ', i, 3) as piece from generate_series(1, length(one) + 1) i),
         b as (select distinct substr('  ' || other || ' ', i, 3) as piece from generate_series(1, length(other) + 1) i)
    select count(a.piece) filter (where b.piece is not null)::float8 / greatest(count(*), 1)
    from a full join b on a.piece = b.piece
$$;
create function rag.spellings(tenant uuid, stem text) returns integer[]
language sql stable as $$
    -- The word and the word without one letter each: two words share one of these when an edit or two part them
    -- (symmetric deletion, Garbe 2012).
    select array_agg(distinct rag.term(tenant, 0, 'spelling', spelling))
    from (select stem as spelling
          union all
          select overlay(stem placing '' from place for 1) from generate_series(1, length(stem)) place) as near
$$;
"""

# One statement for all chunks of a COPY: how the trigger indexes them, and the migration those that are there already.
INDEX = """
    with lexemes as materialized (
        select n.tenant_id, n.chunk_id, n.language,
               rag.plain(u.lexeme) as stem,
               coalesce(cardinality(u.positions), 1) as occurrences
        from {chunks} n
        cross join lateral unnest(rag.stems(n.language, array_to_string(n.heading_path, ' ') || ' ' || n.text)) u
    ), words as (
        insert into rag.vocabulary (tenant_id, language, stem, spellings)
        -- As rag.spellings has it, for all new words at once: calling it for each takes ten times as long.
        select l.tenant_id, l.language, l.stem,
               array_agg(distinct rag.term(l.tenant_id, 0, 'spelling',
                                           case place when 0 then l.stem
                                                      else overlay(l.stem placing '' from place for 1) end))
        from (select distinct tenant_id, language, stem from lexemes
              where length(stem) between 4 and 40 and stem !~ '[0-9]') l
        cross join lateral generate_series(0, length(l.stem)) place
        -- OFFSET 0: looked up word by word. As a join, a plan made while the table was small reads all of a tenant's
        -- words for each new one (measured: 2.5 s for 40 chunks of a new tenant).
        where not exists (select from rag.vocabulary v
                          where v.tenant_id = l.tenant_id and v.language = l.language and v.stem = l.stem offset 0)
        group by l.tenant_id, l.language, l.stem
        -- In one order, so that two documents with the same new words wait for each other and never deadlock.
        order by l.tenant_id, l.language, l.stem
        on conflict do nothing
    )
    insert into rag.chunk_terms (tenant_id, chunk_id, document_id, version_id, language, length, terms)
    select n.tenant_id, n.chunk_id, n.document_id, n.version_id, n.language,
           coalesce(t.length, 0), coalesce(t.terms, '{{}}')
    from {chunks} n
    left join (
        select l.tenant_id, l.chunk_id, sum(l.occurrences) filter (where level = 1) as length,
               array_agg(distinct rag.term(l.tenant_id, level, l.language, l.stem)) as terms
        from lexemes l cross join lateral generate_series(1, least(l.occurrences, 3)) level
        group by l.tenant_id, l.chunk_id
    ) t on t.tenant_id = n.tenant_id and t.chunk_id = n.chunk_id;
"""

TRIGGER = f"""
create function rag.index_terms() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
{INDEX.format(chunks="new_chunks")}
    return null;
end
$$;
create trigger index_terms after insert on rag.chunks
    referencing new table as new_chunks for each statement execute function rag.index_terms();
"""

# Visibility in one place, inlined by the planner: what the dense and the lexical channel both ask of a document.
VISIBLE = """
create function rag.visible(d rag.documents, members text[], groups text[], collections text[], sources text[],
                            about jsonb, since timestamptz, until timestamptz) returns boolean
language sql stable as $$
    select d.state = 'searchable'
       and ((d.access_members = '{}' and d.access_groups = '{}')
            or d.access_members && members or d.access_groups && groups)
       and (cardinality(collections) = 0 or d.collection_id = any(collections::uuid[]))
       and (cardinality(sources) = 0 or d.source = any(sources))
       and (about is null or d.metadata @> about)
       and (since is null or d.updated_at >= since)
       and (until is null or d.updated_at < until)
$$;
"""

# Named so that a reader finds the formula: Robertson, Zaragoza: The Probabilistic Relevance Framework, 2009, (3.15).
BM25_K1, BM25_B = 1.2, 0.75
COMPOUND_WEIGHT = 0.6
TYPO_SIMILARITY = 0.35
POSTINGS_BUDGET = 1500
RARE = 100

SEARCH = f"""
create function rag.lexical_candidates(
    question text, question_language text, foreign_weight double precision,
    members text[], groups text[], collections text[], sources text[], languages text[],
    about jsonb, since timestamptz, until timestamptz, near uuid[], wanted integer)
returns table (chunk_id uuid, score double precision, matched bigint, expanded bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
    -- The tenant comes from the setting and from nowhere else (a version with an argument answered for another one).
    tenant constant uuid := nullif(current_setting('app.tenant_id', true), '')::uuid;
    corpus_chunks double precision;
    corpus_length double precision;
begin
    if tenant is null then
        return;
    end if;
    select s.chunks, s.average_length into corpus_chunks, corpus_length
    from rag.corpus_statistics s where s.tenant_id = tenant;
    if corpus_chunks is null then
        select count(*), avg(t.length) into corpus_chunks, corpus_length
        from rag.chunk_terms t where t.tenant_id = tenant;
    end if;
    return query
    with spelled as (
        -- The question as it is, with umlauts for digraphs, and with digraphs for umlauts: a word keeps its place.
        select distinct form from unnest(array[
            lower(question),
            replace(replace(replace(lower(question), 'ae', 'ä'), 'oe', 'ö'), 'ue', 'ü'),
            replace(replace(replace(replace(lower(question), 'ä', 'ae'), 'ö', 'oe'), 'ü', 'ue'), 'ß', 'ss')]) form
    ), spoken as (
        -- Function words of the question's language are no search words in any other.
        select distinct unnest(u.positions) as place
        from unnest(rag.stems(question_language, lower(question))) u
    ), words as materialized (
        select l.language, rag.plain(u.lexeme) as stem,
               min(p.place) as place
        from unnest(array['de', 'en', 'simple']) l(language)
        cross join spelled s
        cross join lateral unnest(rag.stems(l.language, s.form)) u
        cross join lateral unnest(u.positions) p(place)
        where p.place <= 256 and p.place in (select spoken.place from spoken)
        group by 1, 2
    ), known as (
        -- A word is known when one of its spellings is; only unknown ones are taken for typing errors.
        select w.*, bool_or(exists (select from rag.vocabulary v where v.tenant_id = tenant and v.stem = w.stem
                                    and v.language = any(array['de', 'en', 'simple'])))
                    over (partition by w.place) as known
        from words w
        where length(w.stem) between 4 and 40 and w.stem !~ '[0-9]'
    ), compounds as (
        select w.place, w.language, x.stem, {COMPOUND_WEIGHT}::float8 as weight
        from words w
        cross join lateral (
            (select v.stem from (
                select v.stem from rag.vocabulary v
                where v.tenant_id = tenant and v.language = 'de'
                  and v.stem > w.stem and v.stem < w.stem || chr(1114111) limit 200) v
             where length(v.stem) > length(w.stem) + 2 order by length(v.stem), v.stem limit 12)
            union
            (select v.stem from (
                select v.stem, v.tenant_id from rag.vocabulary v
                where v.backwards > tenant::text || 'de' || reverse(w.stem)
                  and v.backwards < tenant::text || 'de' || reverse(w.stem) || chr(1114111) limit 200) v
             where v.tenant_id = tenant and length(v.stem) > length(w.stem) + 2
             order by length(v.stem), v.stem limit 12)
            union
            select v.stem from rag.vocabulary v
            where v.tenant_id = tenant and v.language = 'de' and v.stem = any(array(
                select left(w.stem, n) from generate_series(4, length(w.stem) - 3) n
                union all
                select right(w.stem, n) from generate_series(4, length(w.stem) - 3) n))
        ) x
        where w.language = 'de' and length(w.stem) between 4 and 40 and w.stem !~ '[0-9]'
    ), typos as (
        select w.place, w.language, v.stem, rag.likeness(v.stem, w.stem)::float8 as weight
        from known w
        cross join lateral (
            select v.stem from (
                select v.stem, v.tenant_id, v.language from rag.vocabulary v
                where v.spellings && rag.spellings(tenant, w.stem) offset 0) v
            where v.tenant_id = tenant and v.language = w.language
              and rag.likeness(v.stem, w.stem) >= {TYPO_SIMILARITY}
            order by rag.likeness(v.stem, w.stem) desc, v.stem limit 6) v
        where not w.known and (question_language = 'simple' or w.language in (question_language, 'simple'))
    ), terms as materialized (
        select t.place, t.language, t.stem, max(t.weight) as weight, rag.term(tenant, 1, t.language, t.stem) as term,
               max(s.chunks) as frequent, bool_or(t.asked) as asked
        from (select place, language, stem, 1::float8 as weight, true as asked from words
              union all select place, language, stem, weight, false from compounds
              union all select place, language, stem, weight, false from typos) t
        left join rag.term_statistics s
            on s.tenant_id = tenant and s.term = rag.term(tenant, 1, t.language, t.stem)
        group by t.place, t.language, t.stem
    ), ordered as (
        select t.*, sum(coalesce(t.frequent, {RARE})) over (
            order by t.asked desc, coalesce(t.frequent, {RARE}), t.term) as work from terms t
    ), posted as materialized (
        -- Rare words find, common words only rank what was found: the work of a search has a bound.
        select o.* from ordered o where o.work <= {POSTINGS_BUDGET} or o.frequent is null
    ), hits as materialized (
        select p.place, p.term, p.weight, p.frequent, c.chunk_id, c.document_id, c.version_id, c.language, c.length,
               max(level) as occurrences
        from posted p
        cross join generate_series(1, 3) level
        -- The term carries the tenant; fenced, because no other index than the one on terms may be taken for this.
        cross join lateral (
            select c.tenant_id, c.chunk_id, c.document_id, c.version_id, c.language, c.length
            from rag.chunk_terms c
            where c.terms @> array[rag.term(tenant, level, p.language, p.stem)]
            offset 0) c
        where c.tenant_id = tenant and c.language = p.language
        group by p.place, p.term, p.weight, p.frequent, c.chunk_id, c.document_id, c.version_id, c.language, c.length
    ), versions as materialized (
        select h.version_id
        from (select distinct hits.document_id, hits.version_id from hits) h
        cross join lateral (
            select d.document_id from rag.documents d
            where d.tenant_id = tenant and d.document_id = h.document_id and d.current_version_id = h.version_id
              and rag.visible(d, members, groups, collections, sources, about, since, until)
            offset 0) d
    ), seen as materialized (
        select h.* from hits h
        where h.version_id in (select v.version_id from versions v)
          and (cardinality(languages) = 0 or h.language = any(languages))
    ), counted as (
        select s.*, coalesce(s.frequent, count(*) over (partition by s.term)) as chunks from seen s
    ), scored as (
        select c.chunk_id, c.place, c.language, max(c.length) as length,
               max(c.weight * ln(1 + greatest(corpus_chunks - c.chunks, 0) / (c.chunks + 0.5) + 0.5 / (c.chunks + 0.5))
                   * c.occurrences * ({BM25_K1} + 1)
                   / (c.occurrences + {BM25_K1} * (1 - {BM25_B} + {BM25_B} * c.length / corpus_length))) as score
        from counted c group by c.chunk_id, c.place, c.language
    ), found as materialized (
        select s.chunk_id, s.language, sum(s.score) as score, count(*) as places
        from scored s group by s.chunk_id, s.language
    ), candidates as materialized (
        (select f.chunk_id, f.score from found f
         order by f.score * case when f.language = question_language then 1 else foreign_weight end desc, f.chunk_id
         limit wanted * 2)
        union
        select n.chunk_id, coalesce(f.score, 0) from unnest(near) n(chunk_id)
        left join found f on f.chunk_id = n.chunk_id
    ), common as (
        select k.chunk_id, o.place,
               max(o.weight * ln(1 + greatest(corpus_chunks - o.frequent, 0) / (o.frequent + 0.5))
                   * ({BM25_K1} + 1)
                   / (1 + {BM25_K1} * (1 - {BM25_B} + {BM25_B} * c.length / corpus_length))) as score
        from candidates k
        cross join lateral (select c.language, c.length, c.terms from rag.chunk_terms c
                            where c.tenant_id = tenant and c.chunk_id = k.chunk_id offset 0) c
        cross join ordered o
        where o.work > {POSTINGS_BUDGET} and o.frequent is not null and o.asked
          and c.language = o.language and c.terms @> array[o.term]
        group by k.chunk_id, o.place
    ), total as (
        select k.chunk_id,
               (k.score + coalesce((select sum(m.score) from common m where m.chunk_id = k.chunk_id), 0))
               * case when c.language = question_language then 1 else foreign_weight end as score
        from candidates k join rag.chunk_terms c on c.tenant_id = tenant and c.chunk_id = k.chunk_id
    )
    select t.chunk_id, t.score, (select count(*) from found), (select count(*) from terms where not asked)
    from total t where t.score > 0
    order by t.score desc, t.chunk_id
    limit wanted + cardinality(near);
end
$$;
revoke all on function rag.lexical_candidates(text, text, double precision, text[], text[], text[], text[], text[],
    jsonb, timestamptz, timestamptz, uuid[], integer) from public;
grant execute on function rag.lexical_candidates(text, text, double precision, text[], text[], text[], text[], text[],
    jsonb, timestamptz, timestamptz, uuid[], integer) to {APPLICATION};
"""


def upgrade() -> None:
    """Tables, trigger and function; existing chunks are indexed."""
    op.execute(TABLES)
    for table in ("chunk_terms", "vocabulary", "term_statistics", "corpus_statistics"):
        op.execute(protect(f"rag.{table}"))
    op.execute(TERMS)
    op.execute(TRIGGER)
    op.execute(VISIBLE)
    op.execute(SEARCH)
    op.execute(INDEX.format(chunks="rag.chunks"))
