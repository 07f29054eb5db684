"""A tenant with searchable documents, a second space, and a pump for what goes over the bus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from functions.embed.embedding import embed_chunks
from functions.maintenance.jobs import campaigns as campaigns_job
from shared.database import operator_session, tenant_session
from shared.documents.intake import Reception, receive
from shared.documents.storing import Batch, Content, NewChunk, store
from shared.documents.vectors import text_hash
from shared.errors import Postponed, Superseded
from shared.events import DocumentSubmitted, EmbedChunks, decode
from shared.fakes import FakeBus, FakeClock, FakeModels
from shared.jobs.leases import Lease, Progress
from shared.retrieval import campaigns, switching
from shared.retrieval.search import search
from shared.retrieval.spaces import Space, active_space, ensure_space
from shared.services import Services
from shared.tenants.directory import Principal

SMALL, LARGE = Batch(4, 10_000), Batch(128, 100_000)
ACTOR = "operator:test"


@dataclass
class Pump:
    """Hands every command that was published to embed, in order, as push would; keeps those that were postponed."""

    bus: FakeBus
    services: Services
    place: int = 0
    postponed: list[EmbedChunks] = field(default_factory=list)

    def waiting(self) -> list[EmbedChunks]:
        """Commands that nobody has handled."""
        found = (decode(m.data.encode(), m.attributes) for m in self.bus.published[self.place :])
        return [m for m in found if isinstance(m, EmbedChunks)]

    def step(self) -> EmbedChunks | None:
        """Handle one command."""
        while self.place < len(self.bus.published):
            outgoing = self.bus.published[self.place]
            self.place += 1
            message = decode(outgoing.data.encode(), outgoing.attributes)
            if isinstance(message, EmbedChunks):
                try:
                    embed_chunks(message, self.services)
                except Postponed:
                    self.postponed.append(message)
                except Superseded:
                    pass
                return message
        return None

    def repeat_postponed(self) -> None:
        """Handle what was postponed once more."""
        again, self.postponed = self.postponed, []
        for command in again:
            try:
                embed_chunks(command, self.services)
            except Postponed:
                self.postponed.append(command)

    def run(self) -> int:
        """Handle everything; returns how many commands that were."""
        count = 0
        while self.step():
            count += 1
        return count


def add(tenant: Principal, name: str, texts: Sequence[str], version: int = 1, batch: Batch = LARGE) -> Reception:
    """Receive and store a document of these chunks; its commands are published."""
    event = DocumentSubmitted(tenant_id=tenant.tenant_id, external_id=name, source_version=version, content="")
    with tenant_session(tenant.tenant_id) as session:
        reception = receive(session, event, "upstream")
    chunks = [NewChunk(t, text_hash((), t), 0, len(t), len(t.split()), "en", (), {}) for t in texts]
    content = Content(f"hash-{texts}", "", 1, "text/plain", "en", "", chunks)
    with tenant_session(tenant.tenant_id) as session:
        store(session, reception, content, event.traceparent, batch)
    return reception


def new_space(dimension: int = 32, model: str = "") -> Space:
    """A space of a model that nobody else uses."""
    with operator_session() as operator:
        return ensure_space(operator, model or f"other-{uuid4().hex}", dimension)


def begin(
    tenant: Principal, target: Space, *, budget: Decimal | None = None, slots: int = 2, history: bool = True
) -> int:
    """Plan and start a campaign; returns how many batches were sent."""
    with operator_session() as operator:
        campaigns.plan(operator, tenant.tenant_id, target, budget=budget, history=history, estimate={}, actor=ACTOR)
    with operator_session() as operator:
        return campaigns.start(operator, tenant.tenant_id, slots=slots, small=SMALL, large=LARGE, actor=ACTOR)


def job(services: Services) -> dict[str, Any]:
    """A minute of the job; what it counted."""
    lease = Lease("campaigns", services.clock.now(), 1, "test", Progress())
    counts: dict[str, Any] = {}
    for progress in campaigns_job.run(lease, services):
        counts = dict(progress.counts)
    return counts


def state(tenant: Principal) -> campaigns.Campaign:
    """The tenant's campaign."""
    with operator_session() as operator:
        return campaigns.latest(operator, tenant.tenant_id)


def spaces(tenant: Principal) -> dict[UUID, str]:
    """The tenant's spaces and their states."""
    with operator_session() as operator:
        rows = operator.execute(
            text("select space_id, state from rag.tenant_spaces where tenant_id = :t"), {"t": tenant.tenant_id}
        )
        return {row.space_id: row.state for row in rows}


def vectors(tenant: Principal, space: Space) -> int:
    """How many vectors the tenant has in a space."""
    with operator_session() as operator:
        count: int = operator.execute(
            text("select count(*) from rag.embeddings where tenant_id = :t and space_id = :s"),
            {"t": tenant.tenant_id, "s": space.space_id},
        ).scalar_one()
        return count


def answering(tenant: Principal) -> Space:
    """The space that answers."""
    with tenant_session(tenant.tenant_id) as session:
        return active_space(session, tenant.tenant_id)


def paid(services: Services) -> list[str]:
    """Every text that was paid for."""
    assert isinstance(services.models, FakeModels)
    return services.models.embedded


def fill(tenant: Principal, target: Space, pump: Pump, working: Services) -> None:
    """A campaign until it is ready."""
    begin(tenant, target)
    pump.run()
    job(working)
    assert state(tenant).state == "ready"


def switch(tenant: Principal, clock: FakeClock, **options: object) -> None:
    """Switch now."""
    with operator_session() as operator:
        switching.switch(operator, tenant.tenant_id, now=clock.now(), actor=ACTOR, **options)  # type: ignore[arg-type]


def found(tenant: Principal, space: Space, question: str, working: Services) -> list[str]:
    """Texts that a search in a space finds."""
    vector = working.models.embed([question], model=space.model, dimension=space.dimension, input_type="query")[0]
    with tenant_session(tenant.tenant_id) as session:
        passages = search(session, tenant.tenant_id, tenant.member_id, space, question, vector, top_k=5)
    return [passage.text for passage in passages]
