"""A batch of chunks gets its vectors: what is missing is paid once, stored, and the version finished."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid5

from sqlalchemy.orm import Session

from shared.database import tenant_session
from shared.documents.completion import finish_version
from shared.documents.ending import fail_version
from shared.documents.turns import next_turns
from shared.documents.vectors import chunks_without_vector, space_of, store_vectors
from shared.documents.waiting import Cause, go_on, wait_for
from shared.errors import PermanentError, Postponed, Superseded, TransientError
from shared.events import EmbedChunks
from shared.llm import Embedded, UnusableVectors
from shared.money.budgets import OverBudget
from shared.money.gates import close_gate, closed_until
from shared.money.ledger import Call, NoPrice, Reservation, forget_call, lock_call, release, reserve, settle
from shared.services import Services

log = logging.getLogger(__name__)

UNUSABLE_ATTEMPTS = 5
"""A provider hiccups; one that never answers with usable vectors is the wrong one, and the version fails."""

UNUSABLE_SECONDS = 30.0


class ProviderClosed(Postponed):
    """The model's provider asked for time, this batch's or another one's request."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is left of a batch, reserved and ready to be asked for."""

    chunk_ids: list[UUID]
    texts: list[str]
    model: str
    dimension: int
    reservation: Reservation


def embed_chunks(command: EmbedChunks, services: Services) -> None:
    """Embed the chunks of the batch that lack a vector, and make the version searchable when it is complete.

    A repeat finds nothing missing and pays nothing. Raises Superseded when the space is gone, Postponed while budget
    or provider say no (the version shows it), TransientError as the model proxy does; what the model refuses for good
    ends as the version's failure.
    """
    try:
        with tenant_session(command.tenant_id) as session:
            work = _prepare(session, command, services)
    except Postponed as pause:
        _note(command, pause)
        raise
    if work is None:
        _finish(command, services)
        return
    try:
        # No transaction is open while the model works: a connection is worth more than a lock here.
        answer = services.models.embed_counted(
            work.texts, model=work.model, dimension=work.dimension, input_type="passage"
        )
    except Postponed as pause:
        _provider_closed(command, work, pause)
    except PermanentError as error:
        _refused(command, work, error, services)
    except TransientError:
        with tenant_session(command.tenant_id) as session:
            release(session, work.reservation)
        raise
    else:
        _store(command, work, answer, services)


def _prepare(session: Session, command: EmbedChunks, services: Services) -> Work | None:
    """What is to be embedded, reserved in the budget; None when nothing is missing.

    The call's row is locked before what is missing is read: of two deliveries the second sees what the first stored.
    """
    tenant_id, now = command.tenant_id, services.clock.now()
    space = space_of(session, command.space_id)
    if space is None:
        raise Superseded("the vector space is gone")
    model, dimension = space
    key = uuid5(command.space_id, ",".join(map(str, command.chunk_ids)))
    call = Call(tenant_id, key, model, command.document_id, command.version_id)
    lock_call(session, call, now)
    missing = chunks_without_vector(session, tenant_id, command.version_id, command.space_id, command.chunk_ids)
    if not missing:
        forget_call(session, call)
        return None
    until = closed_until(session, model, now)
    if until is not None:
        raise ProviderClosed(until, "waiting for provider")
    texts = [text for _, text in missing]
    reservation = reserve(session, call, texts, services.settings.noesis_stage, now)
    return Work([chunk_id for chunk_id, _ in missing], texts, model, dimension, reservation)


def _finish(command: EmbedChunks, services: Services) -> None:
    """Finish the version, in a transaction of its own: locks are taken document first, then ledger, then counters."""
    with tenant_session(command.tenant_id) as session:
        if finish_version(session, command.tenant_id, command.version_id):
            next_turns(session, command.tenant_id, services.settings.documents_in_progress)


def _note(command: EmbedChunks, pause: Postponed) -> None:
    """Show on the version what it waits for; another delivery that is at work is nothing to wait for."""
    causes: tuple[tuple[type[Postponed], Cause], ...] = (
        (NoPrice, "price"),
        (OverBudget, "budget"),
        (ProviderClosed, "provider"),
    )
    for kind, cause in causes:
        if isinstance(pause, kind):
            with tenant_session(command.tenant_id) as session:
                wait_for(session, command.tenant_id, command.version_id, cause, pause.until)
            return


def _provider_closed(command: EmbedChunks, work: Work, pause: Postponed) -> None:
    """The provider asks for time: nothing was paid, and nobody asks again before it is over."""
    with tenant_session(command.tenant_id) as session:
        wait_for(session, command.tenant_id, command.version_id, "provider", pause.until)
        release(session, work.reservation)
        close_gate(session, work.model, pause.until)
    raise pause


def _refused(command: EmbedChunks, work: Work, error: PermanentError, services: Services) -> None:
    """The model will not do it, or answers with something unusable: the version fails, the latter after some tries."""
    tenant_id, version_id = command.tenant_id, command.version_id
    unusable = isinstance(error, UnusableVectors)
    again = unusable and work.reservation.attempt < UNUSABLE_ATTEMPTS
    with tenant_session(tenant_id) as session:
        if not again:
            fail_version(session, tenant_id, version_id, error)
        release(session, work.reservation, error.tokens if isinstance(error, UnusableVectors) else 0)
        if not again:
            next_turns(session, tenant_id, services.settings.documents_in_progress)
    log.warning("embedding refused: %s", error.reason, extra={"version_id": version_id, "again": again})
    if again:
        raise Postponed(_later(services.clock.now(), work.reservation.attempt), "the model's answer was unusable")


def _later(now: datetime, attempt: int) -> datetime:
    """30 s, doubling, as the bus itself would wait (REQUIREMENTS section 3)."""
    return now + timedelta(seconds=UNUSABLE_SECONDS * pow(2.0, attempt - 1))


def _store(command: EmbedChunks, work: Work, answer: Embedded, services: Services) -> None:
    """Vectors, their price and perhaps the version's completion, in one transaction; counters last, they are shared."""
    tenant_id, version_id = command.tenant_id, command.version_id
    with tenant_session(tenant_id) as session:
        stored = store_vectors(session, tenant_id, command.space_id, work.chunk_ids, answer.vectors)
        go_on(session, tenant_id, version_id)
        searchable = finish_version(session, tenant_id, version_id)
        eur = settle(session, work.reservation, answer.tokens)
        if searchable:
            next_turns(session, tenant_id, services.settings.documents_in_progress)
    log.info(
        "embedded",
        extra={
            "version_id": version_id,
            "vectors": stored,
            "searchable": searchable,
            "tokens": answer.tokens,
            "eur": str(eur),
        },
    )
