"""Filling a campaign's space: stored chunks go to the model in batches, a few under way at a time, each paid once.

A batch is an ordinary `embed-chunks` command and has a row while it is under way; who ends one sends the next. What a
crash leaves is found by the job `campaigns` (a batch that lost its message, a space that turns out to be full). A
chunk is carried over when its version answers, or did and has a vector in the space that answers: nothing is parsed
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal, patiently
from shared.documents.storing import Batch, missing_chunks, split
from shared.errors import NoesisError
from shared.events import EmbedChunks
from shared.messaging import publish

LOST = "15 minutes"
"""A batch under way for this long lost its message: five deliveries take at most 13 minutes."""

MOST_ATTEMPTS = 5
"""Times a batch is sent; what still has no vector then is recorded as failed."""

COUNTING_SECONDS = 150.0
"""How long counting all of a tenant's chunks may take: a million on a busy machine take longer than a statement may."""

PAGE = 100
"""Versions looked at together when the next one to fill is sought."""

CARRIED = """v.tenant_id = :tenant and (v.state = 'searchable' or (:history and v.state = 'superseded'))"""
# "offset 0" keeps each look-up one by the key: a space that is being filled is ahead of its statistics, and a join
# that was planned for the one row they know of took a second for a hundred versions.
THERE = """exists (select from rag.embeddings t where t.tenant_id = :tenant and t.space_id = :target
           and t.chunk_id = c.chunk_id offset 0)"""
REFUSED = """exists (select from rag.embedding_failures f where f.tenant_id = :tenant and f.space_id = :target
           and f.chunk_id = c.chunk_id offset 0)"""
WANTED = """(v.state = 'searchable' or exists (select from rag.embeddings s where s.tenant_id = :tenant
           and s.space_id = :source and s.chunk_id = c.chunk_id offset 0))"""
_LACKING = f"{WANTED} and not {THERE} and not {REFUSED}"


class CampaignBudget(NoesisError):
    """The campaign may not spend what this call can cost: it is to be paused."""


@dataclass(frozen=True, slots=True)
class Filling:
    """What filling needs to know of a campaign."""

    tenant_id: UUID
    campaign_id: UUID
    source_space_id: UUID
    target_space_id: UUID
    state: str
    history: bool
    budget: Decimal | None
    cursor: UUID | None
    slots: int
    batch: int | None = None
    """Most chunks a batch, once the model was too slow for more."""

    def values(self) -> dict[str, object]:
        """The parameters of the statements here."""
        return {
            "tenant": self.tenant_id,
            "campaign": self.campaign_id,
            "source": self.source_space_id,
            "target": self.target_space_id,
            "history": self.history,
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """Chunks to carry over, how many are there, how many the model refused; `total` = done + failed + left."""

    total: int
    done: int
    failed: int

    @property
    def left(self) -> int:
        """Chunks still to embed."""
        return self.total - self.done - self.failed


def batch_key(space_id: UUID, chunk_ids: Sequence[UUID]) -> UUID:
    """Name of a batch, and of its call in the ledger."""
    return uuid5(space_id, ",".join(map(str, chunk_ids)))


def lock_campaign(session: Session, tenant_id: UUID, space_id: UUID) -> Filling | None:
    """The open campaign that fills a space, locked until the transaction ends; None when there is none."""
    row = session.execute(
        text(
            "select tenant_id, campaign_id, source_space_id, target_space_id, state, history, budget_eur, cursor, "
            "slots, batch from rag.campaigns where tenant_id = :tenant and target_space_id = :space "
            "and state in ('planned', 'filling', 'paused', 'ready', 'switched') for update"
        ),
        {"tenant": tenant_id, "space": space_id},
    ).first()
    return Filling(*row) if row else None


def progress(session: Session, filling: Filling) -> Progress:
    """How far the target space is. Counts the tenant's chunks: 9 s of the server's processor for a million."""
    with patiently(session, COUNTING_SECONDS):
        row = session.execute(
            text(
                "select count(*) as total, count(*) filter (where x.there) as done, "
                "count(*) filter (where x.refused and not x.there) as failed "
                f"from (select {THERE} as there, {REFUSED} as refused from rag.versions v "
                "join rag.chunks c on c.tenant_id = v.tenant_id and c.version_id = v.version_id "
                f"where {CARRIED} and {WANTED}) x"
            ),
            filling.values(),
        ).one()
    return Progress(row.total, row.done, row.failed)


def spent(session: Session, filling: Filling) -> Decimal:
    """EUR that the campaign has spent or reserved: ended batches, and the ledger's rows of those under way."""
    amount: Decimal = session.execute(
        text(
            "select c.spent_eur + coalesce((select sum(l.cost_eur - b.paid_before_eur + l.reserved_eur) "
            "from rag.campaign_batches b join core.ledger l on l.tenant_id = b.tenant_id and l.call_key = b.batch_id "
            "where b.tenant_id = :tenant and b.campaign_id = :campaign), 0) "
            "from rag.campaigns c where c.tenant_id = :tenant and c.campaign_id = :campaign"
        ),
        filling.values(),
    ).scalar_one()
    return amount


def admit(session: Session, command: EmbedChunks) -> Filling | None:
    """Enter a call into the books of the campaign that fills its space, if one does; before the call is reserved.

    New documents' batches too: until the switch, whatever is embedded for the new space is the campaign's expense.
    """
    filling = lock_campaign(session, command.tenant_id, command.space_id)
    if filling is None or filling.state not in ("filling", "ready"):
        return None
    enter(session, filling, command.version_id, command.chunk_ids, arrival=True)
    return filling


def check_budget(session: Session, filling: Filling) -> None:
    """After a reservation: raises CampaignBudget when it does not fit. Roll the session back then."""
    if filling.budget is not None and spent(session, filling) > filling.budget:
        raise CampaignBudget("the campaign's budget is used up")


def is_fill(session: Session, tenant_id: UUID, key: UUID) -> bool:
    """Whether a batch was sent by a campaign; then earlier versions are embedded too."""
    found: bool = session.execute(
        text(
            "select exists (select from rag.campaign_batches "
            "where tenant_id = :tenant and batch_id = :key and not arrival)"
        ),
        {"tenant": tenant_id, "key": key},
    ).scalar_one()
    return found


def fill_on(session: Session, tenant_id: UUID, space_id: UUID, batch: Batch, ended: UUID | None = None) -> int:
    """Close a batch that ended and send as many as there are slots; returns how many were sent."""
    filling = lock_campaign(session, tenant_id, space_id)
    if filling is None:
        return 0
    if ended is not None:
        close(session, filling, ended)
    return send(session, filling, batch) if filling.state == "filling" else 0


def close(session: Session, filling: Filling, batch_id: UUID) -> None:
    """Take a batch out of those under way; what its call cost is the campaign's for good."""
    values = filling.values() | {"batch": batch_id}
    session.execute(
        text(
            "with gone as (delete from rag.campaign_batches where tenant_id = :tenant and campaign_id = :campaign "
            "and batch_id = :batch returning batch_id, paid_before_eur) "
            "update rag.campaigns c set spent_eur = c.spent_eur + l.cost_eur - g.paid_before_eur "
            "from gone g join core.ledger l on l.tenant_id = :tenant and l.call_key = g.batch_id "
            "where c.tenant_id = :tenant and c.campaign_id = :campaign"
        ),
        values,
    )


def send(session: Session, filling: Filling, batch: Batch) -> int:
    """Send batches until every slot is taken or no chunk is left; the campaign's row is locked."""
    batch = Batch(min(batch.chunks, filling.batch or batch.chunks), batch.tokens)
    under_way = session.execute(
        text(
            "select batch_id, chunk_ids, arrival from rag.campaign_batches "
            "where tenant_id = :tenant and campaign_id = :campaign"
        ),
        filling.values(),
    ).all()
    busy = {chunk for row in under_way for chunk in row.chunk_ids}
    free = filling.slots - sum(not row.arrival for row in under_way)
    sent, cursor = 0, filling.cursor
    while free > 0:
        version = _next_version(session, filling, cursor, busy)
        if version is None:
            break
        version_id, document_id, traceparent = version
        lacking = _lacking_chunks(session, filling, version_id)
        groups = split([chunk for chunk in lacking if chunk[0] not in busy], batch)
        for group in groups[:free]:
            enter(session, filling, version_id, group)
            publish(
                session,
                EmbedChunks(
                    tenant_id=filling.tenant_id,
                    traceparent=traceparent,
                    document_id=document_id,
                    version_id=version_id,
                    space_id=filling.target_space_id,
                    chunk_ids=tuple(group),
                ),
            )
            busy.update(group)
            sent += 1
        if len(groups) <= free:
            cursor = version_id
        free -= len(groups)
    if cursor != filling.cursor:
        move_cursor(session, filling, cursor)
    return sent


def move_cursor(session: Session, filling: Filling, cursor: UUID | None) -> None:
    """Note up to which version batches were sent; None: from the beginning."""
    session.execute(
        text("update rag.campaigns set cursor = :cursor where tenant_id = :tenant and campaign_id = :campaign"),
        filling.values() | {"cursor": cursor},
    )


def _next_version(
    session: Session, filling: Filling, cursor: UUID | None, busy: set[UUID]
) -> tuple[UUID, UUID, str] | None:
    """The first version after the cursor that lacks something; page by page, so that no join goes over all chunks."""
    after = cursor or UUID(int=0)
    while True:
        page = session.scalars(
            text(
                f"select v.version_id from rag.versions v where {CARRIED} and v.version_id > :after "
                "order by v.version_id limit :page"
            ),
            filling.values() | {"after": after, "page": PAGE},
        ).all()
        if not page:
            return None
        row = session.execute(
            text(
                "select v.version_id, v.document_id, v.traceparent from rag.versions v "
                "join rag.chunks c on c.tenant_id = v.tenant_id and c.version_id = v.version_id "
                "where v.tenant_id = :tenant and v.version_id = any(cast(:page as uuid[])) "
                f"and c.chunk_id <> all(cast(:busy as uuid[])) and {_LACKING} order by v.version_id limit 1"
            ),
            filling.values() | {"page": array_literal(page), "busy": array_literal(busy)},
        ).first()
        if row is not None:
            return row.version_id, row.document_id, row.traceparent
        after = page[-1]


def _lacking_chunks(session: Session, filling: Filling, version_id: UUID) -> list[tuple[UUID, int]]:
    rows = session.execute(
        text(
            "select c.chunk_id, c.tokens from rag.versions v "
            "join rag.chunks c on c.tenant_id = v.tenant_id and c.version_id = v.version_id "
            f"where v.tenant_id = :tenant and v.version_id = :version and {_LACKING} order by c.ordinal"
        ),
        filling.values() | {"version": version_id},
    )
    return [(row.chunk_id, row.tokens) for row in rows]


def enter(
    session: Session, filling: Filling, version_id: UUID, chunk_ids: Sequence[UUID], *, arrival: bool = False
) -> None:
    """Note a batch that is under way; the campaign's row is locked."""
    session.execute(
        text(
            "insert into rag.campaign_batches (tenant_id, campaign_id, batch_id, version_id, chunk_ids, arrival, "
            "paid_before_eur) values (:tenant, :campaign, :batch, :version, cast(:chunks as uuid[]), :arrival, "
            "coalesce((select cost_eur from core.ledger where tenant_id = :tenant and call_key = :batch), 0)) "
            "on conflict do nothing"
        ),
        filling.values()
        | {
            "batch": batch_key(filling.target_space_id, chunk_ids),
            "version": version_id,
            "chunks": array_literal(chunk_ids),
            "arrival": arrival,
        },
    )


def send_pending(session: Session, filling: Filling, batch: Batch) -> int:
    """Command the batches of versions that are being ingested: what was stored before the space was live knows nothing
    of it. The caller changes the spaces; whoever stores chunks afterwards commands its own.
    """
    versions = session.execute(
        text(
            "select version_id, document_id, traceparent from rag.versions "
            "where tenant_id = :tenant and state = 'ingested'"
        ),
        filling.values(),
    ).all()
    sent = 0
    for version in versions:
        missing = missing_chunks(session, filling.tenant_id, version.version_id, filling.target_space_id)
        for group in split(missing, batch):
            publish(
                session,
                EmbedChunks(
                    tenant_id=filling.tenant_id,
                    traceparent=version.traceparent,
                    document_id=version.document_id,
                    version_id=version.version_id,
                    space_id=filling.target_space_id,
                    chunk_ids=tuple(group),
                ),
            )
            sent += 1
    return sent
