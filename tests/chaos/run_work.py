"""What a worker of the runs' sweep does: push what waits to the real doors, decide what people are asked, until quiet.

The doors are those of functions/*/main.py under functions-framework, called by WSGI with signed push requests; the
database is real, the model is a scripted one over HTTP.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from functions.agent import checkpointer, graph, journal, tools
from shared import llm, messaging
from shared.database import tenant_session
from shared.services import services
from shared.settings import get_settings
from shared.tenants.directory import memberships
from shared.tools.approvals import decide, pending_approvals
from tests.chaos.crash_points import CrashPoints
from tests.chaos.delivering import JOBS_AGED, LEDGER_AGED, OUTBOX_AGED, Worker, doors
from tests.chaos.wire import FileBus

APPS = doors("agent", "maintenance")
# Loaded once before the fork: every worker would pay for them anew.
_ = checkpointer, graph, llm, tools

# Every piece is written as it comes: a sweep needs the same sequence in every run, not one that hangs on the time.
journal.BATCH_SECONDS = 0.0
journal.LOOK_SECONDS = 0.0

AGED = (
    OUTBOX_AGED,
    "update core.runs set created_at = created_at - interval '1 hour', lease_until = lease_until - interval '1 hour', "
    "waiting_until = waiting_until - interval '1 hour' where tenant_id = :t",
    LEDGER_AGED,
    JOBS_AGED,
)
"""An hour passes: leases end, the outbox is due, what is stuck looks stuck."""

UNFINISHED = """
select (select count(*) from core.outbox where tenant_id = :t)
     + (select count(*) from core.waiting_messages where tenant_id = :t)
     + (select count(*) from core.runs where tenant_id = :t and state in ('queued', 'running', 'waiting'))
     + (select count(*) from core.ledger where tenant_id = :t and state = 'reserved')
"""


def agree(job: dict[str, Any]) -> bool:
    """Say yes to everything that is asked, as the administrator does; whether anything was."""
    if not job["approves"]:
        return False
    (administrator,) = memberships(job["email"])
    with tenant_session(administrator.tenant_id) as session:
        asked = pending_approvals(session, administrator)
        for approval in asked:
            decide(session, administrator, approval.approval_id, "approved")
    return bool(asked)


WORKER = Worker(APPS, AGED, UNFINISHED, between=agree)


def work(job: dict[str, Any], points: CrashPoints) -> Any:
    """Deliver what waits in `job["folder"]`; with `recover` also let time pass and sweep, until all is quiet.

    Returns how many rounds that took; raises AssertionError when it does not come to rest.
    """
    os.environ["CHAT_ABILITIES"] = job["abilities"]
    os.environ["RERANK_MODEL"] = job["reranker"]
    get_settings.cache_clear()
    services.cache_clear()
    bus = FileBus(Path(job["folder"]), points)
    messaging.use_bus(bus)
    if job.get("recover"):
        return WORKER.recover(bus, job, points)
    WORKER.drain(bus, job, points)
    return 0
