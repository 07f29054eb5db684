"""What the workers of both sweeps do: push what waits to the real doors, let time pass and sweep until all is quiet."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import functions_framework
from flask import Flask
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from shared import messaging
from shared.events import RunJob
from tests.chaos.crash_points import CrashPoints
from tests.chaos.forks import ROOT
from tests.chaos.wire import PUSHES, FileBus, Kept

ROUNDS = 12

OUTBOX_AGED = "update core.outbox set created_at = created_at - interval '1 hour' where tenant_id = :t"
LEDGER_AGED = "update core.ledger set lease_until = lease_until - interval '1 hour' where tenant_id = :t"
JOBS_AGED = "update core.job_runs set lease_until = lease_until - interval '1 hour' where cast(:t as uuid) is not null"


def doors(*names: str) -> dict[str, Flask]:
    """The functions of these names under functions-framework, to be called by WSGI."""
    create: Any = functions_framework.create_app  # it has no types
    return {name: create(name, str(ROOT / "functions" / name / "main.py"), "http") for name in names}


@dataclass(frozen=True, slots=True)
class Worker:
    """How a worker of a sweep delivers.

    `aged` are the statements by which an hour passes for a tenant, `unfinished` counts what is still to be done for
    it; `between` is called when nothing is due and says whether that brought anything to deliver.
    """

    apps: Mapping[str, Flask]
    aged: Sequence[str]
    unfinished: str
    between: Callable[[dict[str, Any]], bool] = lambda _job: False

    def recover(self, bus: FileBus, job: dict[str, Any], points: CrashPoints) -> int:
        """Deliver, let time pass and sweep until all is quiet; returns how many rounds that took.

        Raises AssertionError when it does not come to rest.
        """
        # What begins after a crash has no connection yet; the owner's passes time only, it is not part of the product.
        engine = create_engine(os.environ["MIGRATION_DATABASE_URL"], poolclass=NullPool)
        for number in range(ROUNDS):
            self.drain(bus, job, points)
            with engine.begin() as owner:
                if owner.execute(text(self.unfinished), {"t": job["tenant"]}).scalar_one() == 0 and not bus.waiting():
                    return number
                for statement in self.aged:
                    owner.execute(text(statement), {"t": job["tenant"]})
            bus.ripen()
            sweep(bus)
        raise AssertionError(f"not quiet after {ROUNDS} sweeps: {bus.waiting()}")

    def drain(self, bus: FileBus, job: dict[str, Any], points: CrashPoints) -> None:
        """Push until nothing waits that is due; what is refused comes again, after everything else."""
        for attempts in range(ROUNDS):
            while due := [kept for kept in bus.waiting() if kept.attempts <= attempts and not kept.later]:
                for kept in due:
                    self._deliver(bus, kept, job, points)
            if not self.between(job) and all(kept.later for kept in bus.waiting()):
                return

    def _deliver(self, bus: FileBus, kept: Kept, job: dict[str, Any], points: CrashPoints) -> None:
        """Push one message and do with it what its answer says."""
        if kept.topic not in PUSHES or PUSHES[kept.topic][0] not in self.apps:
            bus.acknowledge(kept)  # the sweep works for every tenant: this is for what another test left
            return
        service, path, _ = PUSHES[kept.topic]
        headers = {"Authorization": job["bearers"][kept.topic]}
        with self.apps[service].test_client() as client:
            status = client.post(path, json=kept.push(), headers=headers).status_code
        with points.step("ack", f"{status} {service}{path}"):
            if status < 300:
                bus.acknowledge(kept)
            else:
                bus.refuse(kept)


def sweep(bus: FileBus) -> None:
    """Order the job that Cloud Scheduler orders every minute."""
    command = RunJob(job="sweep", slot=datetime.now(UTC))
    data = command.data().decode()
    bus.publish(
        [messaging.Outgoing(messaging.PLATFORM, command.event_id, command.topic, data, command.attributes(), None)]
    )
