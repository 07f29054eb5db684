"""Rules of privacy: what is masked for models, traces and logs, a tenant's words, sampling of its traces."""

from __future__ import annotations

from alembic import op

from schema.policies import protect

revision = "c0010"
down_revision = "c0009"
branch_labels = None
depends_on = None

RULES = """
create table core.masking_rules (
    tenant_id uuid not null references core.tenants on delete cascade,
    kind text not null,
    purpose text not null constraint masking_rules_purpose_check check (purpose in ('model', 'traces')),
    masked boolean not null,
    primary key (tenant_id, kind, purpose)
);
create table core.masking_terms (
    tenant_id uuid not null references core.tenants on delete cascade,
    list text not null constraint masking_terms_list_check check (list in ('mask', 'allow')),
    term text not null constraint masking_terms_term_check check (length(term) between 2 and 200),
    primary key (tenant_id, list, term)
);
create table core.tracing_rules (
    tenant_id uuid primary key references core.tenants on delete cascade,
    sample_rate numeric(5, 4) constraint tracing_rules_sample_rate_check check (sample_rate between 0 and 1),
    content boolean
);
"""


def upgrade() -> None:
    """Create the tables; the services read them, operators (and later administrators, through them) write."""
    op.execute(RULES)
    for table in ("masking_rules", "masking_terms", "tracing_rules"):
        op.execute(protect(f"core.{table}", application="select"))
