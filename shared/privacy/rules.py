"""The rules of a tenant: which kinds are masked for models, which for traces and logs, its words, its sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from sqlalchemy.orm import Session

from shared.database import often
from shared.masking import KINDS, NO_WORDS, Vocabulary

Purpose = Literal["model", "traces"]
PURPOSES: tuple[Purpose, ...] = ("model", "traces")


@dataclass(frozen=True, slots=True)
class Rules:
    """What a tenant wants; `sample_rate` and `content` None: what the stage does."""

    model: frozenset[str] = frozenset(KINDS)
    traces: frozenset[str] = frozenset(KINDS)
    words: Vocabulary = NO_WORDS
    sample_rate: float | None = None
    content: bool | None = None

    def kinds(self, purpose: Purpose) -> frozenset[str]:
        """The kinds that are masked for a purpose."""
        return self.model if purpose == "model" else self.traces


DEFAULT = Rules()
"""Everything that is recognised is masked, everywhere."""


def rules_of(session: Session, tenant_id: UUID) -> Rules:
    """The rules as they are now; an unknown tenant has the default ones."""
    statement = often(
        "select 'rule' as what, kind as a, purpose as b, masked as c, null::numeric as d from core.masking_rules "
        "where tenant_id = :t union all "
        "select 'term', list, term, null, null from core.masking_terms where tenant_id = :t union all "
        "select 'trace', null, null, content, sample_rate from core.tracing_rules where tenant_id = :t"
    )
    rows = session.execute(statement, {"t": tenant_id}).all()
    unmasked = {(row.a, row.b) for row in rows if row.what == "rule" and not row.c}
    terms = [(row.a, row.b) for row in rows if row.what == "term"]
    trace = next((row for row in rows if row.what == "trace"), None)
    return Rules(
        model=frozenset(kind for kind in KINDS if (kind, "model") not in unmasked),
        traces=frozenset(kind for kind in KINDS if (kind, "traces") not in unmasked),
        words=Vocabulary(
            terms=tuple(sorted(term for which, term in terms if which == "mask")),
            allowed=frozenset(term for which, term in terms if which == "allow"),
        ),
        sample_rate=None if trace is None or trace.d is None else float(trace.d),
        content=None if trace is None else trace.c,
    )
