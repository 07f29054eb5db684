"""Pages and sitemaps that are fetched: state, schedule, validators; one turn after the other for every site."""

from __future__ import annotations

from alembic import op

from schema.policies import platform, protect
from schema.roles import APPLICATION, OPERATOR

revision = "c0005"
down_revision = "c0004"
branch_labels = None
depends_on = "r0001"

SOURCES = """
create table core.web_sources (
    tenant_id uuid not null references core.tenants on delete cascade,
    web_source_id uuid not null,
    parent_id uuid,
    url text not null,
    kind text not null constraint web_sources_kind_check check (kind in ('page', 'sitemap')),
    collection text not null default 'default',
    refresh_every interval not null default interval '1 day',
    next_fetch_at timestamptz not null default now(),
    fetched_at timestamptz,
    etag text not null default '',
    last_modified text not null default '',
    failures integer not null default 0,
    reason text,
    message text,
    next_action text,
    created_at timestamptz not null default now(),
    primary key (tenant_id, web_source_id),
    unique (tenant_id, url),
    foreign key (tenant_id, parent_id) references core.web_sources on delete cascade
);
create index web_sources_due_idx on core.web_sources (next_fetch_at) where kind = 'sitemap';
"""

PAGES = """
create table core.web_pages (
    tenant_id uuid not null,
    page_id uuid not null,
    web_source_id uuid not null,
    url text not null,
    origin text not null,
    state text not null default 'new'
        constraint web_pages_state_check check (state in ('new', 'fetched', 'failed', 'gone', 'excluded')),
    document_id uuid not null,
    content_hash text not null default '',
    etag text not null default '',
    last_modified text not null default '',
    missing integer not null default 0,
    failures integer not null default 0,
    reason text,
    message text,
    next_action text,
    next_fetch_at timestamptz not null default now(),
    fetched_at timestamptz,
    created_at timestamptz not null default now(),
    primary key (tenant_id, page_id),
    unique (tenant_id, url),
    foreign key (tenant_id, web_source_id) references core.web_sources on delete cascade
);
create index web_pages_due_idx on core.web_pages (next_fetch_at) where state <> 'excluded';
create index web_pages_source_idx on core.web_pages (tenant_id, web_source_id);
"""

HOSTS = """
create table core.web_hosts (
    origin text primary key,
    next_turn_at timestamptz not null default now(),
    crawl_delay double precision,
    robots_state text constraint web_hosts_robots_check check (robots_state in ('rules', 'all', 'none')),
    robots text not null default '',
    robots_until timestamptz
);
create table core.web_turns (
    origin text not null references core.web_hosts on delete cascade,
    turn_key uuid not null,
    turn_at timestamptz not null,
    primary key (origin, turn_key)
);
"""

# A site's patience is one for all tenants, whose rows the application may not see: so the turns are given out by
# definer functions, and no tenant learns who else reads a site.
FUNCTIONS = f"""
create function core.take_web_turn(site text, key uuid, delay double precision) returns timestamptz
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    turn timestamptz;
begin
    insert into core.web_hosts (origin) values (site) on conflict do nothing;
    perform 1 from core.web_hosts h where h.origin = site for update;
    select t.turn_at into turn from core.web_turns t where t.origin = site and t.turn_key = key;
    if found then
        return turn;
    end if;
    update core.web_hosts h
        set next_turn_at = greatest(h.next_turn_at, clock_timestamp())
            + make_interval(secs => greatest(coalesce(h.crawl_delay, delay), delay))
        where h.origin = site
        returning h.next_turn_at - make_interval(secs => greatest(coalesce(h.crawl_delay, delay), delay)) into turn;
    insert into core.web_turns (origin, turn_key, turn_at) values (site, key, turn);
    delete from core.web_turns t where t.origin = site and t.turn_at < clock_timestamp() - interval '1 day';
    return turn;
end
$$;
revoke all on function core.take_web_turn(text, uuid, double precision) from public;
grant execute on function core.take_web_turn(text, uuid, double precision) to {APPLICATION}, {OPERATOR};

create function core.web_robots(site text) returns table (state text, body text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select h.robots_state, h.robots from core.web_hosts h where h.origin = site and h.robots_until > now()
$$;
revoke all on function core.web_robots(text) from public;
grant execute on function core.web_robots(text) to {APPLICATION}, {OPERATOR};

create function core.keep_web_robots(
    site text, said text, body text, delay double precision, kept interval
) returns void
language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
    insert into core.web_hosts as h (origin, robots_state, robots, crawl_delay, robots_until)
    values (site, said, body, delay, now() + kept)
    on conflict (origin) do update set robots_state = excluded.robots_state, robots = excluded.robots,
        crawl_delay = excluded.crawl_delay, robots_until = excluded.robots_until
$$;
revoke all on function core.keep_web_robots(text, text, text, double precision, interval) from public;
grant execute on function core.keep_web_robots(text, text, text, double precision, interval)
    to {APPLICATION}, {OPERATOR};
"""


def upgrade() -> None:
    """New tables and functions only."""
    op.execute(SOURCES)
    op.execute(PAGES)
    op.execute(HOSTS)
    op.execute(FUNCTIONS)
    op.execute(protect("core.web_sources"))
    op.execute(protect("core.web_pages"))
    op.execute(platform("core.web_hosts"))
    op.execute(platform("core.web_turns"))
