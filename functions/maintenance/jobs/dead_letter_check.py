"""Every 5 minutes: what failed for a shared cause is replayed by itself once the cause is healthy; counts what is open.

A message is replayed at most three times, after 5 and 30 minutes and 3 hours; a cause that everybody shares and that
lasts longer is an incident with people in it. What fails after that is poison (`functions.maintenance.archiving`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from functions.maintenance.archiving import MAX_AUTOMATIC
from shared.dead_letters.replay import replay
from shared.errors import NoesisError
from shared.jobs.leases import Lease, Progress, fenced
from shared.retrieval.paying import Platform, pay
from shared.services import Services

log = logging.getLogger(__name__)

LIMIT = 100
"""Letters a run replays: a flood of old work must not stand before today's."""

STUCK_OUTBOX = "2 minutes"
"""The sweep flushes every minute; what waits longer says that the bus does not take messages."""


def run(lease: Lease, services: Services) -> Iterator[Progress]:
    """Replay transient letters that are due, one in a transaction, if everything they need answers."""
    with fenced(lease) as session:
        due = _due(session)
        opened = _open(session)
        healthy = not due or _bus_is_healthy(session)
    counts = {"open": opened, "due": len(due), "replayed": 0, "unhealthy": 0}
    if due and not (healthy and _models_are_healthy(services)):
        counts["unhealthy"] = 1
        due = []
    for done, letter_id in enumerate(due):
        yield Progress(done, len(due), counts)
        with fenced(lease) as session:
            outcome = replay(session, letter_id, actor="dead-letter-check", automatic=True)
        counts["replayed"] += outcome.done
        if not outcome.done:
            log.info("dead letter not replayed", extra={"letter_id": letter_id})
    if opened:
        # The line that an alert counts (REQUIREMENTS section 11: dead letters > 0).
        log.warning("open dead letters", extra=counts)
    yield Progress(len(due), len(due), counts)


def _due(session: Session) -> list[UUID]:
    """Open transient letters whose wait is over, oldest first; how long depends on how often the message came back."""
    rows = session.execute(
        text(
            "select l.letter_id from core.dead_letters l left join core.dead_letters b on b.replay_id = l.event_id "
            "where l.class = 'transient' and l.replayed_at is null and l.discarded_at is null "
            "and l.tenant_id is not null and coalesce(b.automatic_replays, 0) < :most "
            "and l.archived_at < now() - interval '5 minutes' * power(6, coalesce(b.automatic_replays, 0)) "
            "order by l.archived_at, l.letter_id limit :limit"
        ),
        {"most": MAX_AUTOMATIC, "limit": LIMIT},
    )
    return [row.letter_id for row in rows]


def _open(session: Session) -> int:
    count: int = session.execute(
        text("select count(*) from core.dead_letters where replayed_at is null and discarded_at is null")
    ).scalar_one()
    return count


def _bus_is_healthy(session: Session) -> bool:
    stuck: bool = session.execute(
        text(
            "select exists (select from core.outbox where created_at < now() - cast(:age as interval) "
            "and (not_before is null or not_before < now()))"
        ),
        {"age": STUCK_OUTBOX},
    ).scalar_one()
    return not stuck


def _models_are_healthy(services: Services) -> bool:
    """Whether an embedding of one word comes back: proxy, key, provider and dimension, for the price of one token.

    Where the cap of the stage is reached nothing is asked: what is replayed could not ask either.
    """
    settings, sent = services.settings, ["ready"]
    model, dimension = settings.embeddings_model, settings.embeddings_dim
    ask = partial(services.models.embed_counted, sent, model=model, dimension=dimension, input_type="query")
    try:
        pay(Platform(settings.noesis_stage, services.clock.now()), model, sent, ask)
    except NoesisError as error:
        log.warning("dead letters wait: the models do not answer", extra={"kind": type(error).__name__})
        return False
    return True
