"""Vector spaces: a model and its dimension, the same profile for every tenant that uses it."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.errors import PermanentError

NAMESPACE = UUID("0c6c9d0e-3c8b-4a55-8f4e-8a2c1f1f5a01")

MEASURED_FLOORS = {"use-v3-512": 0.235}
"""Evidence floors of the bundled models, measured by `python -m benchmarks.retrieval_evidence` (docs/retrieval.md)."""


@dataclass(frozen=True, slots=True)
class Space:
    """A vector space: `dimension` numbers a text, cosine distance; vectors are made by `model`."""

    space_id: UUID
    name: str
    model: str
    dimension: int
    evidence_floor: float | None = None
    """From which strength on passages are evidence (`shared.retrieval.evidence`); None: not calibrated."""


def ensure_space(operator: Session, model: str, dimension: int) -> Space:
    """The space of a model and dimension, made when it does not exist. For operators."""
    name = f"{model}-{dimension}"
    space = Space(uuid5(NAMESPACE, name), name, model, dimension, MEASURED_FLOORS.get(name))
    operator.execute(
        text(
            "insert into rag.vector_spaces (space_id, name, model, dimension, evidence_floor) "
            "values (:id, :name, :model, :dimension, :floor) on conflict do nothing"
        ),
        {"id": space.space_id, "name": name, "model": model, "dimension": dimension, "floor": space.evidence_floor},
    )
    return space


def activate_first(operator: Session, tenant_id: UUID, space: Space) -> None:
    """Give a tenant that has no active space this one; a tenant that has one keeps it. For operators."""
    operator.execute(
        text(
            "insert into rag.tenant_spaces (tenant_id, space_id, state) select :tenant, :space, 'active' "
            "where not exists (select from rag.tenant_spaces where tenant_id = :tenant and state = 'active') "
            "on conflict do nothing"
        ),
        {"tenant": tenant_id, "space": space.space_id},
    )


def live_spaces(session: Session, tenant_id: UUID) -> list[Space]:
    """The spaces that a searchable version must be complete in: active or filling."""
    rows = session.execute(
        text(
            "select s.space_id, s.name, s.model, s.dimension, s.evidence_floor from rag.tenant_spaces t "
            "join rag.vector_spaces s on s.space_id = t.space_id "
            "where t.tenant_id = :tenant and t.state in ('active', 'filling') order by s.name"
        ),
        {"tenant": tenant_id},
    )
    return [Space(*row) for row in rows]


def active_space(session: Session, tenant_id: UUID) -> Space:
    """The space that answers. Raises PermanentError `no-vector-space` when the tenant has none."""
    row = session.execute(
        text(
            "select s.space_id, s.name, s.model, s.dimension, s.evidence_floor from rag.tenant_spaces t "
            "join rag.vector_spaces s on s.space_id = t.space_id where t.tenant_id = :tenant and t.state = 'active'"
        ),
        {"tenant": tenant_id},
    ).first()
    if row is None:
        raise PermanentError("no-vector-space", "The tenant has no active vector space.", "Ask an operator.")
    return Space(*row)
