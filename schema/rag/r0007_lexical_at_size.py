"""The lexical channel for large tenants: the same candidates and scores with half the work.

Measured at 100,000 chunks: most time went into scoring common words again for every candidate and into a scan of the
index for each of the four markers of a term. docs/decisions/0023.
"""

from __future__ import annotations

from alembic import op

from schema.rag.r0002_lexical_search import COMPOUND_WEIGHT, POSTINGS_BUDGET, RARE, TYPO_SIMILARITY
from schema.rag.r0005_retrieval import ARGUMENTS
from schema.rag.r0006_plans import SETTINGS

revision = "r0007"
down_revision = "r0006"
branch_labels = None
depends_on = None

# Robertson, Zaragoza: The Probabilistic Relevance Framework, 2009, (3.15); why b is .5: r0005.
K1, B = 1.2, 0.5
# Sums of floats depend on the order of their parts, and the order of a hash on the plan: equal scores are made equal,
# so that the chunk's id decides between them.
_EVEN = "floor(({}) * 1e9 + 0.5) / 1e9"

_HEAD = """
create or replace function rag.lexical_candidates(
    question text, question_language text, foreign_weight double precision,
    members text[], groups text[], collections text[], sources text[], languages text[],
    about jsonb, since timestamptz, until timestamptz, near uuid[], wanted integer, as_of timestamptz default null)
returns table (chunk_id uuid, score double precision, matched bigint, expanded bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
{settings}
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
"""

# The question: its words, what they are part of or made of, what they may be typing errors of.
_WORDS = """
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
        select w.place, w.language, x.stem, {compound}::float8 as weight
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
              and rag.likeness(v.stem, w.stem) >= {similarity}
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
        select t.*, sum(coalesce(t.frequent, {rare})) over (
            order by t.asked desc, coalesce(t.frequent, {rare}), t.term) as work from terms t
"""

# Rare words find, common words only rank what was found: the work of a search has a bound.
_FOUND = """
    ), posted as materialized (
        select o.place, o.language, o.weight, o.term, o.frequent, rag.term(tenant, 2, o.language, o.stem) as twice,
               rag.term(tenant, 3, o.language, o.stem) as thrice, rag.term(tenant, 4, o.language, o.stem) as often
        from ordered o where o.work <= {budget} or o.frequent is null
    ), common as materialized (
        select o.place, o.language, o.term,
               o.weight * ln(1 + greatest(corpus_chunks - o.frequent, 0) / (o.frequent + 0.5)) * ({k1} + 1) as worth
        from ordered o where o.work > {budget} and o.frequent is not null and o.asked
    ), hits as materialized (
        select p.place, p.term, c.chunk_id, c.document_id, c.version_id, c.language, c.length, c.occurrences
        from posted p
        -- The term carries the tenant; fenced, because no other index than the one on terms may be taken for this.
        cross join lateral (
            select c.tenant_id, c.chunk_id, c.document_id, c.version_id, c.language, c.length,
                   -- From the row, and by ALL, which unlike @> does not unpack the array for each term.
                   case when p.twice <> all(c.terms) then 1 when p.thrice <> all(c.terms) then 2
                        when p.often <> all(c.terms) then 3 else 5 end as occurrences
            from rag.chunk_terms c
            where c.terms @> array[p.term]
            offset 0) c
        where c.tenant_id = tenant and c.language = p.language
    ), versions as materialized (
        -- One by one: with a list of documents, statistics of all tenants decide whether all of this one's are read.
        select h.version_id
        from (select distinct hits.document_id, hits.version_id from hits) h
        cross join lateral (
            select d.document_id from rag.documents d
            where d.tenant_id = tenant and d.document_id = h.document_id
              and case when as_of is null then d.current_version_id = h.version_id
                  else exists (select from rag.answering_periods a
                               where a.tenant_id = tenant and a.document_id = h.document_id
                                 and a.version_id = h.version_id and a.answering_from <= as_of
                                 and (a.answering_until is null or a.answering_until > as_of)) end
              and rag.visible(d, members, groups, collections, sources, about, since, until)
            offset 0) d
    ), seen as materialized (
        select h.* from hits h
        where h.version_id in (select v.version_id from versions v)
          and (cardinality(languages) = 0 or h.language = any(languages))
    ), worth as materialized (
        -- Its inverse document frequency; a rare term's is that among the chunks that may be seen.
        select p.place, p.term,
               p.weight * ln(1 + (greatest(corpus_chunks - n.chunks, 0) + 0.5) / (n.chunks + 0.5))
               * ({k1} + 1) as worth
        from (select s.term, count(*) as counted from seen s group by s.term) c
        join posted p on p.term = c.term
        cross join lateral (select coalesce(p.frequent, c.counted) as chunks) n
    ), scored as (
        select s.chunk_id, s.language, s.place,
               max(w.worth * s.occurrences
                   / (s.occurrences + {k1} * (1 - {b} + {b} * s.length / corpus_length))) as score
        from seen s join worth w on w.place = s.place and w.term = s.term
        group by s.chunk_id, s.language, s.place
    ), found as materialized (
        select s.chunk_id, s.language, {found} as score from scored s group by s.chunk_id, s.language
"""

_RANKED = """
    ), candidates as materialized (
        (select f.chunk_id, f.score from found f
         order by f.score * case when f.language = question_language then 1 else foreign_weight end desc, f.chunk_id
         limit wanted * 2)
        union
        select n.chunk_id, coalesce(f.score, 0) from unnest(near) n(chunk_id)
        left join found f on f.chunk_id = n.chunk_id
    ), total as (
        select k.chunk_id, {total} as score
        from candidates k
        cross join lateral (select c.language, c.length, c.terms from rag.chunk_terms c
                            where c.tenant_id = tenant and c.chunk_id = k.chunk_id offset 0) c
        cross join lateral (
            select coalesce(sum(p.worth), 0) / (1 + {k1} * (1 - {b} + {b} * c.length / corpus_length)) as score
            from (select max(o.worth) as worth from common o
                  where o.language = c.language and o.term = any(c.terms) group by o.place) p) m
    )
    select t.chunk_id, t.score, (select count(*) from found), (select count(*) from terms where not asked)
    from total t where t.score > 0
    order by t.score desc, t.chunk_id
    limit wanted + cardinality(near);
end
$$
"""


def search_function() -> str:
    """The lexical channel with the signature, the owner and the rights it has."""
    settings = "\n".join(f"set {name} = {value}" for name, value in SETTINGS.items())
    return (
        _HEAD.format(settings=settings)
        + _WORDS.format(compound=COMPOUND_WEIGHT, similarity=TYPO_SIMILARITY, rare=RARE)
        + _FOUND.format(budget=POSTINGS_BUDGET, k1=K1, b=B, found=_EVEN.format("sum(s.score)"))
        + _RANKED.format(
            k1=K1,
            b=B,
            total=_EVEN.format(
                "(k.score + m.score) * case when c.language = question_language then 1 else foreign_weight end"
            ),
        )
    )


def upgrade() -> None:
    """The function anew, under the same name: searches of the release before go on with it."""
    if not ARGUMENTS.endswith("integer"):
        raise AssertionError("r0005 is not the signature this migration replaces")
    op.execute(search_function())
