"""Vector spaces: immutable profiles (model, dimension, chunker, prefixes) that tenants share, and who uses which.

Which spaces of a tenant are live changes only while nobody makes a version answer: whoever completes a version holds
the spaces (`hold_spaces`), whoever starts, stops or switches a space changes them (`change_spaces`). Lock order:
document, version, spaces, campaign, ledger, counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from shared.database import often
from shared.errors import PermanentError
from shared.retrieval.questions import written
from shared.settings import Settings

NAMESPACE = UUID("0c6c9d0e-3c8b-4a55-8f4e-8a2c1f1f5a01")

MEASURED_FLOORS = {"use-v3-512": 0.235, "e5-small-384": 0.79}
"""Evidence floors of the bundled models, measured by `python -m benchmarks.retrieval_evidence` (docs/retrieval.md)."""


@dataclass(frozen=True, slots=True)
class Chunker:
    """How documents are cut before they are embedded; `size` and `overlap` in tokens (`functions.ingest.chunking`)."""

    size: int = 800
    overlap: int = 80
    name: str = "structure-1"
    """Name and version of the method: it gets another one when the same parameters would cut differently."""

    def __str__(self) -> str:
        return f"{self.name}/{self.size}/{self.overlap}"

    @classmethod
    def parse(cls, written: str) -> Chunker:
        """What `str` wrote."""
        name, size, overlap = written.split("/")
        return cls(int(size), int(overlap), name)


DEFAULT_CHUNKER = Chunker()


@dataclass(frozen=True, slots=True)
class Space:
    """A vector space: `dimension` numbers a text, cosine distance; vectors are made by `model`."""

    space_id: UUID
    name: str
    model: str
    dimension: int
    evidence_floor: float | None = None
    """From which strength on passages are evidence (`shared.retrieval.evidence`); None: not calibrated."""
    chunker: str = str(DEFAULT_CHUNKER)
    query_prefix: str = ""
    passage_prefix: str = ""

    def as_query(self, question: str) -> str:
        """What the model is shown of a question; beside it goes `input_type`, for providers that know it."""
        return self.query_prefix + written(question)

    def as_passage(self, passage: str) -> str:
        """What the model is shown of a chunk."""
        return self.passage_prefix + passage


COLUMNS = "s.space_id, s.name, s.model, s.dimension, s.evidence_floor, s.chunker, s.query_prefix, s.passage_prefix"
"""The fields of a Space in order, of rag.vector_spaces as `s`."""


def _space(row: Row[Any]) -> Space:
    fields: tuple[Any, ...] = tuple(row)
    return Space(*fields)  # COLUMNS are the fields in order


def profile(
    model: str,
    dimension: int,
    chunker: Chunker = DEFAULT_CHUNKER,
    query_prefix: str = "",
    passage_prefix: str = "",
) -> Space:
    """The space of a profile: the same profile is the same space, everywhere and for ever."""
    name = f"{model}-{dimension}"
    if (chunker, query_prefix, passage_prefix) != (DEFAULT_CHUNKER, "", ""):
        rest = f"{chunker}\n{query_prefix}\n{passage_prefix}"
        name += f"-{sha256(rest.encode()).hexdigest()[:8]}"
    space_id = uuid5(NAMESPACE, name)
    floor = MEASURED_FLOORS.get(name)
    return Space(space_id, name, model, dimension, floor, str(chunker), query_prefix, passage_prefix)


def ensure_space(
    operator: Session,
    model: str,
    dimension: int,
    chunker: Chunker = DEFAULT_CHUNKER,
    query_prefix: str = "",
    passage_prefix: str = "",
) -> Space:
    """The space of a profile, made when it does not exist. For operators."""
    space = profile(model, dimension, chunker, query_prefix, passage_prefix)
    operator.execute(
        text(
            "insert into rag.vector_spaces (space_id, name, model, dimension, evidence_floor, chunker, query_prefix, "
            "passage_prefix) values (:id, :name, :model, :dimension, :floor, :chunker, :query, :passage) "
            "on conflict do nothing"
        ),
        {
            "id": space.space_id,
            "name": space.name,
            "model": model,
            "dimension": dimension,
            "floor": space.evidence_floor,
            "chunker": space.chunker,
            "query": query_prefix,
            "passage": passage_prefix,
        },
    )
    return space


def space_for_new_tenants(operator: Session, settings: Settings) -> Space:
    """The space that EMBEDDINGS_MODEL and its companions describe; tenants that have a space keep theirs."""
    return ensure_space(
        operator,
        settings.embeddings_model,
        settings.embeddings_dim,
        Chunker(settings.chunk_size, settings.chunk_overlap),
        settings.embeddings_query_prefix,
        settings.embeddings_passage_prefix,
    )


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


HOLD = "pg_advisory_xact_lock_shared(hashtextextended(:name, 0))"
"""What `hold_spaces` does, for a statement that takes another lock before; its parameter is `lock_name`."""


def hold_spaces(session: Session, tenant_id: UUID) -> None:
    """Until the transaction ends nobody changes which spaces of the tenant are live; any number may hold them.

    To be called before the live spaces are read by whoever makes a version answer, stores chunks or vectors; what is
    read has to be a statement of its own.
    """
    session.execute(text(f"select {HOLD}"), lock_name(tenant_id))


def change_spaces(session: Session, tenant_id: UUID) -> None:
    """Wait until nobody holds the tenant's spaces, and let nobody do so until the transaction ends."""
    session.execute(text("select pg_advisory_xact_lock(hashtextextended(:name, 0))"), lock_name(tenant_id))


def lock_name(tenant_id: UUID) -> dict[str, str]:
    """The parameter of `HOLD`, and of its opposite."""
    return {"name": f"spaces:{tenant_id}"}


def live_spaces(session: Session, tenant_id: UUID) -> list[Space]:
    """The spaces that a searchable version must be complete in: active or filling."""
    rows = session.execute(
        often(
            f"select {COLUMNS} from rag.tenant_spaces t join rag.vector_spaces s on s.space_id = t.space_id "
            "where t.tenant_id = :tenant and t.state in ('active', 'filling') order by s.name"
        ),
        {"tenant": tenant_id},
    )
    return [_space(row) for row in rows]


def state_in(session: Session, tenant_id: UUID, space_id: UUID) -> str | None:
    """What a space is to a tenant: `active`, `filling`, `paused`, `retired`; None: nothing."""
    found: str | None = session.execute(
        text("select state from rag.tenant_spaces where tenant_id = :tenant and space_id = :space"),
        {"tenant": tenant_id, "space": space_id},
    ).scalar()
    return found


def active_space(session: Session, tenant_id: UUID) -> Space:
    """The space that answers. Raises PermanentError `no-vector-space` when the tenant has none.

    Embed the question for the space that was read and search in that same one: a switch in between changes nothing,
    because the space that answered until then keeps its vectors for the grace period, which is longer than any run.
    """
    row = session.execute(
        often(
            f"select {COLUMNS} from rag.tenant_spaces t join rag.vector_spaces s on s.space_id = t.space_id "
            "where t.tenant_id = :tenant and t.state = 'active'"
        ),
        {"tenant": tenant_id},
    ).first()
    if row is None:
        raise PermanentError("no-vector-space", "The tenant has no active vector space.", "Ask an operator.")
    return _space(row)


def space_by_id(session: Session, space_id: UUID) -> Space | None:
    """A space, or None."""
    row = session.execute(
        text(f"select {COLUMNS} from rag.vector_spaces s where s.space_id = :space"), {"space": space_id}
    ).first()
    return _space(row) if row else None


def space_by_name(session: Session, name: str) -> Space:
    """A space by its name. Raises PermanentError `no-vector-space` when there is none."""
    row = session.execute(text(f"select {COLUMNS} from rag.vector_spaces s where s.name = :name"), {"name": name})
    found = row.first()
    if found is None:
        raise PermanentError("no-vector-space", "There is no such vector space.", "See `noesis spaces list`.")
    return _space(found)


def chunker_for(session: Session, tenant_id: UUID) -> Chunker:
    """How the tenant's documents are cut: as its active space says, so that all vectors of a space are alike."""
    return Chunker.parse(active_space(session, tenant_id).chunker)
