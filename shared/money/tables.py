"""The tables of money (schema `core`): prices, ledger, budgets, what is spent and reserved, provider gates."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Index,
    Integer,
    Numeric,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    text,
)

from shared.database import metadata

NOW = text("now()")
EUR = Numeric(18, 9)
"""Euros to the nano: a token of the cheapest model costs about 1e-8 EUR."""

prices = Table(
    "prices",
    metadata,
    Column("model", Text, nullable=False),
    Column("valid_from", DateTime(timezone=True), nullable=False),
    Column("eur_per_million", Numeric(14, 6), nullable=False),
    Column("eur_per_million_output", Numeric(14, 6)),
    PrimaryKeyConstraint("model", "valid_from"),
    CheckConstraint("eur_per_million >= 0", name="prices_eur_check"),
    CheckConstraint("eur_per_million_output >= 0", name="prices_output_check"),
    schema="core",
)
"""EUR per million input and output tokens (null: a model that writes nothing); the newest row that is not in the
future holds. Models that we bundle cost 0."""

ledger = Table(
    "ledger",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("call_key", Uuid, nullable=False),
    Column("model", Text, nullable=False),
    Column("document_id", Uuid),
    Column("version_id", Uuid),
    Column("run_id", Uuid),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("reserved_eur", EUR, nullable=False, server_default="0"),
    Column("tokens", BigInteger, nullable=False, server_default="0"),
    Column("output_tokens", BigInteger, nullable=False, server_default="0"),
    Column("cost_eur", EUR, nullable=False, server_default="0"),
    Column("booked_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("lease_until", DateTime(timezone=True), nullable=False, server_default=NOW),
    PrimaryKeyConstraint("tenant_id", "call_key"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    CheckConstraint("state in ('reserved', 'settled', 'released')", name="ledger_state_check"),
    Index("ledger_booked_idx", "tenant_id", "booked_at"),
    Index("ledger_document_idx", "tenant_id", "document_id"),
    Index("ledger_run_idx", "tenant_id", "run_id", postgresql_where=text("run_id is not null")),
    Index("ledger_lease_idx", "lease_until", postgresql_where=text("state = 'reserved'")),
    schema="core",
)
"""One row a call, however often it is tried: `tokens` (in), `output_tokens` and `cost_eur` are what the provider
counted, all attempts. A call is for a document (its version's embedding) or for a run (its answer).

It outlives the document on purpose: what was paid stays paid. `booked_at` decides day, month and hour.
"""

budgets = Table(
    "budgets",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("period", Text, nullable=False),
    Column("limit_eur", EUR, nullable=False),
    PrimaryKeyConstraint("tenant_id", "period"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    CheckConstraint("period in ('run', 'day', 'month')", name="budgets_period_check"),
    CheckConstraint("limit_eur >= 0", name="budgets_limit_check"),
    schema="core",
)

spending = Table(
    "spending",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("period", Text, nullable=False),
    Column("starts_at", DateTime(timezone=True), nullable=False),
    Column("reserved_eur", EUR, nullable=False, server_default="0"),
    Column("spent_eur", EUR, nullable=False, server_default="0"),
    Column("warned_limit", EUR),
    PrimaryKeyConstraint("tenant_id", "period", "starts_at"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    schema="core",
)
"""A tenant's counters, one row a day and month (UTC): spent + reserved never passes the budget. `warned_limit` is
the limit of which it was told that little is left."""

stage_spending = Table(
    "stage_spending",
    metadata,
    Column("period", Text, nullable=False),
    Column("starts_at", DateTime(timezone=True), nullable=False),
    Column("reserved_eur", EUR, nullable=False, server_default="0"),
    Column("spent_eur", EUR, nullable=False, server_default="0"),
    PrimaryKeyConstraint("period", "starts_at"),
    schema="core",
)
"""The same for all tenants together, for the cap of the stage."""

provider_gates = Table(
    "provider_gates",
    metadata,
    Column("model", Text, primary_key=True),
    Column("closed_until", DateTime(timezone=True), nullable=False),
    schema="core",
)
"""A model whose provider asked for time: nobody asks again before `closed_until`."""
