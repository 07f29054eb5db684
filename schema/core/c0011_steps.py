"""A step brings only what is new: large values of the state are parts, stored once and not with every checkpoint."""

from __future__ import annotations

from alembic import op

from schema.policies import protect
from schema.roles import APPLICATION

revision = "c0011"
down_revision = "c0010"
branch_labels = None
depends_on = None

# Uncompressed, because parts live for days and are written while somebody waits (pglz takes ten times as long as the
# write), and because erasure looks for the ids of documents in the bytes.
PARTS = """
create table core.checkpoint_parts (
    tenant_id uuid not null references core.tenants on delete cascade,
    thread_id text not null,
    checkpoint_ns text not null,
    channel text not null,
    first integer not null,
    kind text not null,
    value bytea not null,
    primary key (tenant_id, thread_id, checkpoint_ns, channel, first)
);
alter table core.checkpoint_parts alter column value set storage external;
"""

# What core.keep_step (c0008) does, with parts; that one stays for the release that is live while this is migrated.
# `taken` is the checkpoint whose place the step takes; null: whatever is stored of the thread goes. Parts come as one
# value, `at` and `size` cut it. A part that no checkpoint names any more is overwritten or goes with its thread.
# It does not wait for the disk, for the reasons that c0008 gives.
STEPS = f"""
create function core.store_step(
    mine uuid, run uuid, held integer, lease interval, events jsonb,
    thread text, ns text, step text, taken text, parent text, format text, body bytea, about jsonb,
    channels text[], firsts integer[], kinds text[], at integer[], size integer[], contents bytea
) returns boolean
language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
begin
    perform set_config('app.tenant_id', mine::text, true), set_config('synchronous_commit', 'off', true);
    update core.runs set lease_until = now() + lease
    where tenant_id = mine and run_id = run and epoch = held and state = 'running';
    if not found then
        return false;
    end if;
    if events is not null then
        insert into core.run_events (tenant_id, run_id, seq, kind, data)
        select mine, run, e.seq, e.kind, e.data
        from jsonb_to_recordset(events) as e(seq integer, kind text, data jsonb);
    end if;
    if step is null then
        return true;
    end if;
    if channels is not null then
        insert into core.checkpoint_parts (tenant_id, thread_id, checkpoint_ns, channel, first, kind, value)
        select mine, thread, ns, p.channel, p.first, p.kind, substring(contents from p.at for p.size)
        from unnest(channels, firsts, kinds, at, size) as p(channel, first, kind, at, size)
        on conflict (tenant_id, thread_id, checkpoint_ns, channel, first)
        do update set kind = excluded.kind, value = excluded.value;
    end if;
    if taken is not null then
        update core.checkpoints
        set checkpoint_id = step, parent_id = parent, kind = format, checkpoint = body, metadata = about,
            created_at = now()
        where tenant_id = mine and thread_id = thread and checkpoint_ns = ns and checkpoint_id = taken;
        if found then
            return true;
        end if;
    end if;
    delete from core.checkpoint_writes
    where tenant_id = mine and thread_id = thread and checkpoint_ns = ns and checkpoint_id < step;
    delete from core.checkpoints
    where tenant_id = mine and thread_id = thread and checkpoint_ns = ns and checkpoint_id < step;
    insert into core.checkpoints as c
        (tenant_id, thread_id, checkpoint_ns, checkpoint_id, parent_id, kind, checkpoint, metadata)
    values (mine, thread, ns, step, parent, format, body, about)
    on conflict (tenant_id, thread_id, checkpoint_ns, checkpoint_id)
    do update set kind = excluded.kind, checkpoint = excluded.checkpoint, metadata = excluded.metadata;
    return true;
end
$$;
revoke all on function core.store_step from public;
grant execute on function core.store_step to {APPLICATION};
"""


def upgrade() -> None:
    """Create the table and the function that fills it."""
    op.execute(PARTS)
    op.execute(STEPS)
    op.execute(protect("core.checkpoint_parts"))
