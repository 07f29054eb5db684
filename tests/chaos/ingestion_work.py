"""What a worker of the ingestion sweep does: push what waits to the real doors, until nothing waits.

The doors are those of functions/*/main.py under functions-framework, called by WSGI with signed push requests; the
database, the parser process and the object store are real.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import functions_framework
from flask import Flask
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from functions.ingest import chunking, ingestion
from functions.ingest.parsing import language, sandbox
from shared import llm, messaging
from shared.events import RunJob
from tests.chaos.crash_points import CrashPoints
from tests.chaos.forks import ROOT
from tests.chaos.wire import PUSHES, FileBus, Kept

_create: Any = functions_framework.create_app  # it has no types
APPS: dict[str, Flask] = {
    name: _create(name, str(ROOT / "functions" / name / "main.py"), "http")
    for name in ("ingest", "embed", "maintenance")
}
# Loaded once before the fork: every worker would pay for them anew.
_ = chunking, ingestion, sandbox, llm, language._model()

ROUNDS = 12
AGED = (
    "update core.outbox set created_at = created_at - interval '1 hour' where tenant_id = :t",
    "update rag.versions set updated_at = updated_at - interval '1 hour', "
    "waiting_until = waiting_until - interval '1 hour' where tenant_id = :t",
    "update core.ledger set lease_until = lease_until - interval '1 hour' where tenant_id = :t",
    "update core.job_runs set lease_until = lease_until - interval '1 hour' where cast(:t as uuid) is not null",
    "delete from core.provider_gates where cast(:t as uuid) is not null",
)
"""An hour passes: leases end, the outbox is due, what is stuck looks stuck."""

UNFINISHED = """
select (select count(*) from core.outbox where tenant_id = :t)
     + (select count(*) from core.waiting_messages where tenant_id = :t)
     + (select count(*) from rag.versions where tenant_id = :t and state in ('received', 'ingested')
        and not exists (select from rag.versions n where n.tenant_id = :t and n.document_id = versions.document_id
                        and n.source_version > versions.source_version))
     + (select count(*) from core.ledger where tenant_id = :t and state = 'reserved')
"""


def work(job: dict[str, Any], points: CrashPoints) -> Any:
    """Deliver what waits in `job["folder"]`; with `recover` also let time pass and sweep, until all is quiet.

    Returns how many rounds that took; raises AssertionError when it does not come to rest.
    """
    bus = FileBus(Path(job["folder"]), points)
    messaging.use_bus(bus)
    if not job.get("recover"):
        if job.get("sweep"):
            sweep(bus)
        drain(bus, job, points)
        return 0
    # What begins after a crash has no connection yet; the owner's passes time only, it is not part of the product.
    engine = create_engine(os.environ["MIGRATION_DATABASE_URL"], poolclass=NullPool)
    for number in range(ROUNDS):
        drain(bus, job, points)
        with engine.begin() as owner:
            if owner.execute(text(UNFINISHED), {"t": job["tenant"]}).scalar_one() == 0 and not bus.waiting():
                return number
            for statement in AGED:
                owner.execute(text(statement), {"t": job["tenant"]})
        bus.ripen()
        sweep(bus)
    raise AssertionError(f"not quiet after {ROUNDS} sweeps: {bus.waiting()}")


def sweep(bus: FileBus) -> None:
    """Order the job that Cloud Scheduler orders every minute."""
    command = RunJob(job="sweep", slot=datetime.now(UTC))
    bus.publish([messaging.Outgoing(messaging.PLATFORM, command.event_id, command.topic, command.data().decode(),
                                    command.attributes(), None)])  # fmt: skip


def drain(bus: FileBus, job: dict[str, Any], points: CrashPoints) -> None:
    """Push until nothing waits that is due; what is refused comes again, after everything else."""
    for attempts in range(ROUNDS):
        while due := [kept for kept in bus.waiting() if kept.attempts <= attempts and not kept.later]:
            for kept in due:
                deliver(bus, kept, job, points)
        if all(kept.later for kept in bus.waiting()):
            return


def deliver(bus: FileBus, kept: Kept, job: dict[str, Any], points: CrashPoints) -> None:
    """Push one message and do with it what its answer says."""
    if kept.topic not in PUSHES or PUSHES[kept.topic][0] not in APPS:
        bus.acknowledge(kept)  # the sweep works for every tenant: this is for a run that another test left
        return
    service, path, _ = PUSHES[kept.topic]
    headers = {"Authorization": job["bearers"][kept.topic]}
    with APPS[service].test_client() as client:
        status = client.post(path, json=kept.push(), headers=headers).status_code
    with points.step("ack", f"{status} {service}{path}"):
        if status < 300:
            bus.acknowledge(kept)
        else:
            bus.refuse(kept)
