"""Changing a tenant's rules: for operators' commands now, for administrators' pages later. Every change is audited.

The audit names kinds, lists and lengths, never a term: a term may be what must not be told.
"""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.audit import record
from shared.errors import PermanentError
from shared.masking import KINDS, SECRETS
from shared.masking.finding import lower
from shared.messaging import storable
from shared.privacy.rules import Purpose

List = Literal["mask", "allow"]

MOST_TERMS = 500
"""Terms of one list: each costs a pass over every text."""


def set_rule(operator: Session, tenant_id: UUID, actor: str, kind: str, purpose: Purpose, *, masked: bool) -> None:
    """Switch a kind on or off for models, or for traces and logs.

    Raises PermanentError `unknown-kind`, and `kind-always-masked` for secrets in traces and logs.
    """
    if kind not in KINDS:
        raise PermanentError("unknown-kind", f"There is no kind {kind}.", f"Kinds: {', '.join(KINDS)}.")
    if kind in SECRETS and purpose == "traces" and not masked:
        raise PermanentError(
            "kind-always-masked", "Keys and passwords are always masked in traces and logs.", "Leave it on."
        )
    operator.execute(
        text(
            "insert into core.masking_rules (tenant_id, kind, purpose, masked) values (:t, :kind, :purpose, :masked) "
            "on conflict (tenant_id, kind, purpose) do update set masked = excluded.masked"
        ),
        {"t": tenant_id, "kind": kind, "purpose": purpose, "masked": masked},
    )
    _told(operator, tenant_id, actor, "masking-rule-set", kind=kind, purpose=purpose, masked=masked)


def add_term(operator: Session, tenant_id: UUID, actor: str, which: List, term: str) -> None:
    """Put a literal term on the list of what is masked, or of what never is; case does not matter.

    Raises PermanentError `unusable-term` (2 to 200 characters, with a letter or digit) and `too-many-terms`.
    """
    cleaned = lower(" ".join(storable(term).split()))
    if not 2 <= len(cleaned) <= 200 or not any(c.isalnum() for c in cleaned):
        raise PermanentError("unusable-term", "A term has 2 to 200 characters.", "Give a word, a name or an address.")
    values = {"t": tenant_id, "list": which, "term": cleaned}
    # The tenant's row is what two who add at the same time wait for; without it both would count 499.
    operator.execute(text("select 1 from core.tenants where tenant_id = :t for update"), values)
    count = operator.execute(
        text("select count(*) from core.masking_terms where tenant_id = :t and list = :list"), values
    ).scalar_one()
    if count >= MOST_TERMS:
        raise PermanentError("too-many-terms", f"A list has at most {MOST_TERMS} terms.", "Remove one first.")
    operator.execute(
        text("insert into core.masking_terms (tenant_id, list, term) values (:t, :list, :term) on conflict do nothing"),
        values,
    )
    _told(operator, tenant_id, actor, "masking-term-added", list=which, characters=len(cleaned))


def remove_term(operator: Session, tenant_id: UUID, actor: str, which: List, term: str) -> None:
    """Take a term off a list. Raises PermanentError `unknown-term`."""
    cleaned = lower(" ".join(storable(term).split()))
    gone = operator.execute(
        text("delete from core.masking_terms where tenant_id = :t and list = :list and term = :term returning 1"),
        {"t": tenant_id, "list": which, "term": cleaned},
    ).scalar()
    if gone is None:
        raise PermanentError("unknown-term", "This term is not on the list.", "See `noesis masking list`.")
    _told(operator, tenant_id, actor, "masking-term-removed", list=which, characters=len(cleaned))


def set_tracing(
    operator: Session,
    tenant_id: UUID,
    actor: str,
    *,
    sample_rate: float | Literal["unchanged"] | None = "unchanged",
    content: bool | Literal["unchanged"] | None = "unchanged",
) -> None:
    """Set which part of the tenant's traces is kept and whether they carry texts; None is the stage's.

    What is not given stays. Raises PermanentError `unusable-rate`.
    """
    changes = {
        name: value for name, value in (("sample_rate", sample_rate), ("content", content)) if value != "unchanged"
    }
    rate = changes.get("sample_rate")
    if isinstance(rate, int | float) and not 0 <= rate <= 1:
        raise PermanentError("unusable-rate", "A sample rate lies between 0 and 1.", "Give 0.05 for 5 %.")
    for name, value in changes.items():
        operator.execute(
            text(
                f"insert into core.tracing_rules (tenant_id, {name}) values (:t, :value) "
                f"on conflict (tenant_id) do update set {name} = excluded.{name}"
            ),
            {"t": tenant_id, "value": value},
        )
    _told(operator, tenant_id, actor, "tracing-rule-set", **changes)


def _told(operator: Session, tenant_id: UUID, actor: str, action: str, **details: object) -> None:
    record(operator, actor=actor, action=action, subject=str(tenant_id), tenant_id=tenant_id, **details)
