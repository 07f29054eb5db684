"""Daily: what nobody needs any more is deleted: old job runs, dead letters that were dealt with, traces of old runs.

Answers, citations and the audit record stay; so do open dead letters, however old.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import text

from shared.jobs.leases import Lease, Progress, fenced
from shared.services import Services

SLICE = 1_000

# What, after how long, and which rows; each statement deletes at most :limit rows of what is older than :age.
RULES: dict[str, tuple[str, str]] = {
    "job_runs": (
        "7 days",
        "delete from core.job_runs where (job, slot) in (select job, slot from core.job_runs "
        "where state in ('done', 'failed') and finished_at < now() - cast(:age as interval) limit :limit)",
    ),
    "dead_letters": (
        "30 days",
        "delete from core.dead_letters where letter_id in (select letter_id from core.dead_letters "
        "where coalesce(replayed_at, discarded_at) < now() - cast(:age as interval) limit :limit)",
    ),
    # A reload of the page shows the answer; the steps and pieces are for watching it come.
    "run_events": (
        "30 days",
        "delete from core.run_events where (tenant_id, run_id, seq) in ("
        "select e.tenant_id, e.run_id, e.seq from core.run_events e join core.runs r "
        "on r.tenant_id = e.tenant_id and r.run_id = e.run_id "
        "where r.finished_at < now() - cast(:age as interval) limit :limit)",
    ),
    # Replies of models: what counts of them stands in the answer, what they cost in the ledger.
    "model_calls": (
        "30 days",
        "delete from core.model_calls where (tenant_id, run_id, call_key) in ("
        "select m.tenant_id, m.run_id, m.call_key from core.model_calls m join core.runs r "
        "on r.tenant_id = m.tenant_id and r.run_id = m.run_id "
        "where r.finished_at < now() - cast(:age as interval) limit :limit)",
    ),
    # Which tools a run used stays on record; what they told it does not.
    "tool_results": (
        "30 days",
        "update core.tool_calls set result = null, arguments = '{}' where (tenant_id, run_id, call_key) in ("
        "select t.tenant_id, t.run_id, t.call_key from core.tool_calls t join core.runs r "
        "on r.tenant_id = t.tenant_id and r.run_id = t.run_id "
        "where t.result is not null and r.finished_at < now() - cast(:age as interval) limit :limit)",
    ),
    # Who decided what, and when, stays; what the tool was to be told does not.
    "approvals": (
        "30 days",
        "update core.approvals set arguments = '{}', edited = null, note = '' where (tenant_id, approval_id) in ("
        "select a.tenant_id, a.approval_id from core.approvals a join core.runs r "
        "on r.tenant_id = a.tenant_id and r.run_id = a.run_id "
        "where (a.arguments <> '{}' or a.edited is not null or a.note <> '') "
        "and r.finished_at < now() - cast(:age as interval) limit :limit)",
    ),
    "checkpoint_writes": (
        "30 days",
        "delete from core.checkpoint_writes w using ("
        "select c.tenant_id, c.thread_id from core.checkpoint_writes c join core.runs r "
        "on r.tenant_id = c.tenant_id and cast(r.run_id as text) = c.thread_id "
        "where r.finished_at < now() - cast(:age as interval) limit :limit) old "
        "where w.tenant_id = old.tenant_id and w.thread_id = old.thread_id",
    ),
    "checkpoint_parts": (
        "30 days",
        "delete from core.checkpoint_parts q using ("
        "select c.tenant_id, c.thread_id from core.checkpoint_parts c join core.runs r "
        "on r.tenant_id = c.tenant_id and cast(r.run_id as text) = c.thread_id "
        "where r.finished_at < now() - cast(:age as interval) limit :limit) old "
        "where q.tenant_id = old.tenant_id and q.thread_id = old.thread_id",
    ),
    "checkpoints": (
        "30 days",
        "delete from core.checkpoints c using ("
        "select p.tenant_id, p.thread_id from core.checkpoints p join core.runs r "
        "on r.tenant_id = p.tenant_id and cast(r.run_id as text) = p.thread_id "
        "where r.finished_at < now() - cast(:age as interval) limit :limit) old "
        "where c.tenant_id = old.tenant_id and c.thread_id = old.thread_id",
    ),
}


def run(lease: Lease, services: Services) -> Iterator[Progress]:
    """Delete by the rules, a thousand rows in a transaction; a further turn goes on at the rule in the cursor."""
    counts = {name: int(lease.before.counts.get(name, 0)) for name in RULES}
    begun = lease.before.cursor or next(iter(RULES))
    names = list(RULES)
    for number, name in enumerate(names):
        if number < names.index(begun):
            continue
        age, statement = RULES[name]
        while True:
            with fenced(lease) as session:
                deleted = session.execute(text(statement), {"age": age, "limit": SLICE}).rowcount  # type: ignore[attr-defined]
            counts[name] += deleted
            if not deleted:
                break
            yield Progress(number, len(names), counts, cursor=name)
        yield Progress(number + 1, len(names), counts, cursor=name)
