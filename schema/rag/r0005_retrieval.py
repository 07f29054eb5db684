"""Search as of a time: when which version of a document answered, and the lexical channel that can be asked for it."""

from __future__ import annotations

from alembic import op

from schema.policies import protect
from schema.rag.r0002_lexical_search import INDEX, SEARCH
from schema.roles import APPLICATION

revision = "r0005"
down_revision = "r0004"
branch_labels = None
depends_on = None

# One row for each time a version answered: a rollback makes the same version answer twice.
TABLES = """
create table rag.answering_periods (
    tenant_id uuid not null,
    document_id uuid not null,
    version_id uuid not null,
    answering_from timestamptz not null,
    answering_until timestamptz,
    primary key (tenant_id, document_id, answering_from),
    constraint answering_periods_order_check check (answering_until >= answering_from),
    foreign key (tenant_id, version_id) references rag.versions on delete cascade
);
create unique index answering_periods_open_idx on rag.answering_periods (tenant_id, document_id)
    where answering_until is null;
create index answering_periods_version_idx on rag.answering_periods (tenant_id, version_id);
"""

# A trigger, so that no way in which a version comes to answer or stops answering (swap, withdrawal, deletion, restore,
# rollback) can forget it. By the clock, not by now(): a transaction that waited for the document's lock began before
# the one it waited for ended, and its period would overlap that one's.
TRIGGER = """
create function rag.record_answering() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    answers constant uuid := case when new.state = 'searchable' then new.current_version_id end;
    moment constant timestamptz := clock_timestamp();
begin
    update rag.answering_periods p set answering_until = greatest(moment, p.answering_from)
    where p.tenant_id = new.tenant_id and p.document_id = new.document_id and p.answering_until is null
      and p.version_id is distinct from answers;
    if answers is not null then
        insert into rag.answering_periods (tenant_id, document_id, version_id, answering_from)
        select new.tenant_id, new.document_id, answers, moment
        where not exists (select from rag.answering_periods p where p.tenant_id = new.tenant_id
                          and p.document_id = new.document_id and p.answering_until is null);
    end if;
    return null;
end
$$;
create trigger record_answering after insert or update of state, current_version_id on rag.documents
    for each row execute function rag.record_answering();
"""

# What answers today has answered since it was swapped in; of what answered before nobody kept a record.
BACKFILL = """
insert into rag.answering_periods (tenant_id, document_id, version_id, answering_from)
select d.tenant_id, d.document_id, v.version_id, v.updated_at
from rag.documents d join rag.versions v on v.tenant_id = d.tenant_id and v.version_id = d.current_version_id
where d.state = 'searchable';
"""

ARGUMENTS = """text, text, double precision, text[], text[], text[], text[], text[], jsonb, timestamptz, timestamptz,
    uuid[], integer"""

_CURRENT = "d.document_id = h.document_id and d.current_version_id = h.version_id"
_THEN = """d.document_id = h.document_id
              and case when as_of is null then d.current_version_id = h.version_id
                  else exists (select from rag.answering_periods a
                               where a.tenant_id = tenant and a.document_id = h.document_id
                                 and a.version_id = h.version_id and a.answering_from <= as_of
                                 and (a.answering_until is null or a.answering_until > as_of)) end"""


# A word that a chunk has five times or more: the fourth marker beside those of r0002 (once, twice, three times). Chunks
# stored before do not have it and count as three times.
_THRICE, _OFTEN = "least(l.occurrences, 3)", "case when l.occurrences >= 5 then 4 else least(l.occurrences, 3) end"
_LEVELS, _MORE_LEVELS = "generate_series(1, 3) level", "generate_series(1, 4) level"
_COUNTED, _COUNTED_NOW = "max(level) as occurrences", "max(case level when 4 then 5 else level end) as occurrences"


def trigger_function() -> str:
    """What indexes new chunks, as in r0002, with the fourth marker."""
    if INDEX.count(_THRICE) != 1:
        raise AssertionError("r0002 is not the index this migration extends")
    return f"""
create or replace function rag.index_terms() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
{INDEX.format(chunks="new_chunks").replace(_THRICE, _OFTEN)}
    return null;
end
$$;
"""


# A long chunk is only half as much at a disadvantage as in the literature: chunks are cut to one size, so that length
# says more about tables and lists than about rambling (docs/retrieval.md: +.4 German, +1 laws, on unseen questions).
_LENGTH, _LENGTH_NOW = "1 - 0.75 + 0.75 *", "1 - 0.5 + 0.5 *"


def search_function() -> str:
    """The lexical channel of r0002 with one more argument, which calls of the release before need not know."""
    head, body = SEARCH.split("returns table", maxsplit=1)
    body = body.split("revoke all", maxsplit=1)[0]
    head = head.replace("near uuid[], wanted integer)", "near uuid[], wanted integer, as_of timestamptz default null)")
    changes = {_CURRENT: _THEN, _LENGTH: _LENGTH_NOW, _LEVELS: _MORE_LEVELS, _COUNTED: _COUNTED_NOW}
    if "as_of" not in head or [body.count(old) for old in changes] != [1, 2, 1, 1]:
        raise AssertionError("r0002 is not the function this migration extends")
    for old, new in changes.items():
        body = body.replace(old, new)
    return f"""
drop function rag.lexical_candidates({ARGUMENTS});
{head}returns table{body}
revoke all on function rag.lexical_candidates({ARGUMENTS}, timestamptz) from public;
grant execute on function rag.lexical_candidates({ARGUMENTS}, timestamptz) to {APPLICATION};
"""


def upgrade() -> None:
    """Periods of answering and the trigger that writes them; the lexical channel as of a time and better tuned."""
    op.execute(TABLES)
    op.execute(protect("rag.answering_periods"))
    op.execute(BACKFILL)
    op.execute(TRIGGER)
    op.execute(trigger_function())
    op.execute(search_function())
