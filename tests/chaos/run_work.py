"""What a worker of the runs' sweep does: push what waits to the real doors, decide what people are asked, until quiet.

The doors are those of functions/*/main.py under functions-framework, called by WSGI with signed push requests; the
database is real, the model is a scripted one over HTTP.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import functions_framework
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from functions.agent import checkpointer, graph, journal, tools
from shared import llm, messaging
from shared.database import tenant_session
from shared.events import RunJob
from shared.services import services
from shared.settings import get_settings
from shared.tenants.directory import memberships
from shared.tools.approvals import decide, pending_approvals
from tests.chaos.crash_points import CrashPoints
from tests.chaos.forks import ROOT
from tests.chaos.wire import PUSHES, FileBus, Kept

_create: Any = functions_framework.create_app  # it has no types
APPS = {
    name: _create(target=name, source=str(ROOT / "functions" / name / "main.py"), signature_type="http")
    for name in ("agent", "maintenance")
}
# Loaded once before the fork: every worker would pay for them anew.
_ = checkpointer, graph, llm, tools

# Every piece is written as it comes: a sweep needs the same sequence in every run, not one that hangs on the time.
journal.BATCH_SECONDS = 0.0
journal.LOOK_SECONDS = 0.0

ROUNDS = 12
AGED = (
    "update core.outbox set created_at = created_at - interval '1 hour' where tenant_id = :t",
    "update core.runs set created_at = created_at - interval '1 hour', lease_until = lease_until - interval '1 hour', "
    "waiting_until = waiting_until - interval '1 hour' where tenant_id = :t",
    "update core.ledger set lease_until = lease_until - interval '1 hour' where tenant_id = :t",
    "update core.job_runs set lease_until = lease_until - interval '1 hour' where cast(:t as uuid) is not null",
)
"""An hour passes: leases end, the outbox is due, what is stuck looks stuck."""

UNFINISHED = """
select (select count(*) from core.outbox where tenant_id = :t)
     + (select count(*) from core.waiting_messages where tenant_id = :t)
     + (select count(*) from core.runs where tenant_id = :t and state in ('queued', 'running', 'waiting'))
     + (select count(*) from core.ledger where tenant_id = :t and state = 'reserved')
"""


def work(job: dict[str, Any], points: CrashPoints) -> Any:
    """Deliver what waits in `job["folder"]`; with `recover` also let time pass and sweep, until all is quiet.

    Returns how many rounds that took; raises AssertionError when it does not come to rest.
    """
    os.environ["CHAT_ABILITIES"] = job["abilities"]
    get_settings.cache_clear()
    services.cache_clear()
    bus = FileBus(Path(job["folder"]), points)
    messaging.use_bus(bus)
    if not job.get("recover"):
        drain(bus, job, points)
        return 0
    engine = create_engine(os.environ["MIGRATION_DATABASE_URL"], poolclass=NullPool)
    for number in range(ROUNDS):
        drain(bus, job, points)
        with engine.begin() as owner:
            if owner.execute(text(UNFINISHED), {"t": job["tenant"]}).scalar_one() == 0 and not bus.waiting():
                return number
            for statement in AGED:
                owner.execute(text(statement), {"t": job["tenant"]})
        bus.ripen()
        command = RunJob(job="sweep", slot=datetime.now(UTC))
        bus.publish([messaging.Outgoing(messaging.PLATFORM, command.event_id, command.topic, command.data().decode(),
                                        command.attributes(), None)])  # fmt: skip
    raise AssertionError(f"not quiet after {ROUNDS} sweeps: {bus.waiting()}")


def drain(bus: FileBus, job: dict[str, Any], points: CrashPoints) -> None:
    """Push until nothing waits that is due, then agree to what people are asked, and push again."""
    for attempts in range(ROUNDS):
        while due := [kept for kept in bus.waiting() if kept.attempts <= attempts and not kept.later]:
            for kept in due:
                deliver(bus, kept, job, points)
        if not agree(job) and all(kept.later for kept in bus.waiting()):
            return


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


def deliver(bus: FileBus, kept: Kept, job: dict[str, Any], points: CrashPoints) -> None:
    """Push one message and do with it what its answer says."""
    service, path, _ = PUSHES[kept.topic]
    headers = {"Authorization": job["bearers"][kept.topic]}
    with APPS[service].test_client() as client:
        status = client.post(path, json=kept.push(), headers=headers).status_code
    with points.step("ack", f"{status} {service}{path}"):
        if status < 300:
            bus.acknowledge(kept)
        else:
            bus.refuse(kept)
