"""The table of job runs (schema `core`); it belongs to the platform, not to a tenant."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, DateTime, PrimaryKeyConstraint, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from shared.database import metadata

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
    PrimaryKeyConstraint("job", "slot"),
    CheckConstraint("state in ('running', 'done')", name="job_runs_state_check"),
    schema="core",
)
