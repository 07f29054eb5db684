"""The tables of privacy (schema `core`): what is masked for whom, a tenant's words, how much of its traces is kept."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Numeric,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
)

from shared.database import metadata

masking_rules = Table(
    "masking_rules",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("kind", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("masked", Boolean, nullable=False),
    PrimaryKeyConstraint("tenant_id", "kind", "purpose"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    CheckConstraint("purpose in ('model', 'traces')", name="masking_rules_purpose_check"),
    schema="core",
)
"""Only what differs from `shared.privacy.rules.DEFAULT`; `traces` is everything for operators: traces and logs."""

masking_terms = Table(
    "masking_terms",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("list", Text, nullable=False),
    Column("term", Text, nullable=False),
    PrimaryKeyConstraint("tenant_id", "list", "term"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    CheckConstraint("list in ('mask', 'allow')", name="masking_terms_list_check"),
    CheckConstraint("length(term) between 2 and 200", name="masking_terms_term_check"),
    schema="core",
)
"""A tenant's own words, lower case: `mask` are masked although nothing else tells, `allow` never are."""

tracing_rules = Table(
    "tracing_rules",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("sample_rate", Numeric(5, 4)),
    Column("content", Boolean),
    PrimaryKeyConstraint("tenant_id"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    CheckConstraint("sample_rate between 0 and 1", name="tracing_rules_sample_rate_check"),
    schema="core",
)
"""NULL is what the stage does: `sample_rate` the part of traces that is kept, `content` whether they carry texts."""
