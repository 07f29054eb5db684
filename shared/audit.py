"""What people and jobs did to the platform, for good: an append-only record that names who, what, to which thing.

Never content: ids, counts, codes.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Column, DateTime, Index, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from shared.database import metadata

audit = Table(
    "audit",
    metadata,
    Column("audit_id", Uuid, primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("tenant_id", Uuid),
    Column("details", JSONB, nullable=False, server_default=text("'{}'")),
    Index("audit_at_idx", "at"),
    Index("audit_subject_idx", "tenant_id", "subject"),
    schema="core",
)
"""`action` is noun and verb (`job-done`, `dead-letter-replayed`), `subject` the id of the thing."""


def record(
    operator: Session, *, actor: str, action: str, subject: str, tenant_id: UUID | None = None, **details: Any
) -> None:
    """Write one entry in the operator's transaction: it is there exactly when what it tells is."""
    operator.execute(
        text(
            "insert into core.audit (audit_id, actor, action, subject, tenant_id, details) "
            "values (:id, :actor, :action, :subject, :tenant, cast(:details as jsonb))"
        ),
        {
            "id": uuid4(),
            "actor": actor,
            "action": action,
            "subject": subject,
            "tenant": tenant_id,
            "details": json.dumps(details, default=str),
        },
    )


def record_own(session: Session, *, actor: str, action: str, subject: str, **details: Any) -> None:
    """Write one entry about the session's own tenant, in its transaction.

    The application role may neither read nor change the record: a definer function adds the entry and takes the
    tenant from the session's setting. Raises DBAPIError (42501) in a session without a tenant.
    """
    session.execute(
        text("select core.record_act(:id, :actor, :action, :subject, cast(:details as jsonb))"),
        {
            "id": uuid4(),
            "actor": actor,
            "action": action,
            "subject": subject,
            "details": json.dumps(details, default=str),
        },
    )


def entries_about(operator: Session, tenant_id: UUID, subject: str) -> list[tuple[datetime, str, str]]:
    """What was done to a thing of a tenant, oldest first, as (at, actor, action). For operators."""
    rows = operator.execute(
        text("select at, actor, action from core.audit where tenant_id = :tenant and subject = :subject order by at"),
        {"tenant": tenant_id, "subject": subject},
    )
    return [(row.at, row.actor, row.action) for row in rows]
