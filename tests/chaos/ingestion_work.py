"""What a worker of the ingestion sweep does: push what waits to the real doors, until nothing waits.

The doors are those of functions/*/main.py under functions-framework, called by WSGI with signed push requests; the
database, the parser process and the object store are real.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from functions.ingest import chunking, ingestion
from functions.ingest.parsing import language, sandbox
from shared import llm, messaging
from tests.chaos.crash_points import CrashPoints
from tests.chaos.delivering import JOBS_AGED, LEDGER_AGED, OUTBOX_AGED, Worker, doors, sweep
from tests.chaos.wire import FileBus

APPS = doors("ingest", "embed", "maintenance")
# Loaded once before the fork: every worker would pay for them anew.
_ = chunking, ingestion, sandbox, llm, language._model()

AGED = (
    OUTBOX_AGED,
    "update rag.versions set updated_at = updated_at - interval '1 hour', "
    "waiting_until = waiting_until - interval '1 hour' where tenant_id = :t",
    LEDGER_AGED,
    JOBS_AGED,
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


WORKER = Worker(APPS, AGED, UNFINISHED)


def work(job: dict[str, Any], points: CrashPoints) -> Any:
    """Deliver what waits in `job["folder"]`; with `recover` also let time pass and sweep, until all is quiet.

    Returns how many rounds that took; raises AssertionError when it does not come to rest.
    """
    bus = FileBus(Path(job["folder"]), points)
    messaging.use_bus(bus)
    if job.get("recover"):
        return WORKER.recover(bus, job, points)
    if job.get("sweep"):
        sweep(bus)
    WORKER.drain(bus, job, points)
    return 0
