"""The table of job runs (schema `core`); it belongs to the platform, not to a tenant."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from shared.database import metadata

STATES = ("queued", "running", "done", "failed")

job_runs = Table(
    "job_runs",
    metadata,
    Column("job", Text, nullable=False),
    Column("slot", DateTime(timezone=True), nullable=False),
    Column("state", Text, nullable=False),
    Column("lease_until", DateTime(timezone=True), nullable=False),
    Column("result", JSONB, nullable=False, server_default=text("'{}'")),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    Column("finished_at", DateTime(timezone=True)),
    Column("epoch", Integer, nullable=False, server_default="0"),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("done", BigInteger, nullable=False, server_default="0"),
    Column("total", BigInteger),
    Column("cursor", JSONB),
    Column("actor", Text, nullable=False, server_default="schedule"),
    Column("error", Text),
    PrimaryKeyConstraint("job", "slot"),
    CheckConstraint(f"state in {STATES}", name="job_runs_state_check"),
    Index("job_runs_open_idx", "lease_until", postgresql_where=text("state in ('queued', 'running')")),
    schema="core",
)
"""`done` of `total` (null: not known yet) is the progress, `cursor` where the next turn goes on, `failures` counts
turns that ended badly, `actor` is `schedule` or the person who started it."""
