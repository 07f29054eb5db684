"""A batch of chunks gets its vectors: what is missing is paid once, stored, and the version finished."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.orm import Session

from shared import tracing
from shared.database import tenant_session
from shared.documents.completion import finish_version
from shared.documents.ending import fail_version
from shared.documents.storing import Batch
from shared.documents.turns import next_turns
from shared.documents.vectors import Lack, borrow_vectors, chunks_without_vector, store_vectors
from shared.documents.waiting import Cause, go_on, wait_for
from shared.errors import PermanentError, Postponed, Superseded, TooSlow, TransientError
from shared.events import EmbedChunks
from shared.llm import Embedded, UnusableVectors
from shared.money.budgets import OverBudget
from shared.money.gates import close_gate
from shared.money.ledger import Call, NoPrice, Reservation, forget_call, lock_call, release, reserve_at, settle
from shared.retrieval import campaigns, filling, mending
from shared.retrieval.spaces import state_in
from shared.retrieval.terms import terms_of
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
    in_campaign: bool
    """Whether the space is being filled by a campaign, which then wants to know how it ended."""
    waits: bool
    """Whether the version is shown as waiting, which is over when the vectors are there."""


def embed_chunks(command: EmbedChunks, services: Services) -> None:
    """Embed the chunks of the batch that lack a vector, and make the version searchable when it is complete.

    A repeat finds nothing missing and pays nothing. Raises Superseded when the space is gone, Postponed while budget
    or provider say no (the version shows it), TransientError as the model proxy does; what the model refuses for good
    ends as the version's failure, in a space that is only being filled as the chunk's.
    """
    try:
        with tenant_session(command.tenant_id) as session:
            work = _prepare(session, command, services)
    except Postponed as pause:
        _note(command, pause)
        raise
    except filling.CampaignBudget:
        _stop_campaign(command, services)
        work = None
    if work is None:
        _finish(command, services)
        _fill_on(command, services)
        return
    try:
        # No transaction is open while the model works: a connection is worth more than a lock here.
        answer = _ask(work, services)
    except Postponed as pause:
        _provider_closed(command, work, pause)
    except PermanentError as error:
        _refused(command, work, error, services)
    except TransientError as error:
        with tenant_session(command.tenant_id) as session:
            release(session, work.reservation)
            second = state_in(session, command.tenant_id, command.space_id) != "active"
        if isinstance(error, TooSlow) and work.reservation.attempt > 1 and len(work.chunk_ids) > 1:
            _too_much(command, work, services)
            return
        if not second:
            raise
        _second_model_away(command, work, services)
    else:
        _store(command, work, answer, services)


def _ask(work: Work, services: Services) -> Embedded:
    with tracing.span(
        "embed",
        kind="client",
        observation="embedding",
        operation="embeddings",
        model=work.model,
        texts=len(work.texts),
    ) as span:
        answer = services.models.embed_counted(
            work.texts, model=work.model, dimension=work.dimension, input_type="passage"
        )
        span.set(input_tokens=answer.tokens)
        return answer


def _prepare(session: Session, command: EmbedChunks, services: Services) -> Work | None:
    """What is to be embedded, reserved in the budget; None when nothing is missing.

    The call's row is locked before what is missing is read: of two deliveries the second sees what the first stored.
    """
    tenant_id, now = command.tenant_id, services.clock.now()
    terms = terms_of(session, command.space_id, now)
    if terms is None:
        raise Superseded("the vector space is gone")
    space = terms.space
    key = filling.batch_key(command.space_id, command.chunk_ids)
    call = Call(tenant_id, key, space.model, command.document_id, command.version_id)
    left = lock_call(session, call, now)
    lack = _lack(session, command, key)
    if not lack.chunks:
        forget_call(session, call)
        return None
    if terms.closed_until is not None:
        raise ProviderClosed(terms.closed_until, "waiting for provider")
    texts = [space.as_passage(text) for _, text in lack.chunks]
    # A space that answers is no campaign's, and does not become one's target while it does.
    campaign = filling.admit(session, command) if lack.filling else None
    reservation = reserve_at(session, terms.price, call, left, texts, services.settings.noesis_stage, now)
    if campaign is not None:
        filling.check_budget(session, campaign)
    chunk_ids = [chunk_id for chunk_id, _ in lack.chunks]
    return Work(chunk_ids, texts, space.model, space.dimension, reservation, campaign is not None, lack.waits)


def _lack(session: Session, command: EmbedChunks, key: UUID) -> Lack:
    """What the batch lacks once its chunks have what equal ones of the document's other versions got meanwhile."""
    batch = (command.tenant_id, command.version_id, command.space_id, command.chunk_ids)
    lack = chunks_without_vector(session, *batch, key=key)
    if not lack.others:
        return lack
    borrow_vectors(session, *batch)
    return chunks_without_vector(session, *batch, key=key)


def _finish(command: EmbedChunks, services: Services) -> None:
    """Finish the version, in a transaction of its own: locks are taken document first, then ledger, then counters."""
    with tenant_session(command.tenant_id) as session:
        if finish_version(session, command.tenant_id, command.version_id):
            next_turns(session, command.tenant_id, services.settings.documents_in_progress)


def _fill_on(command: EmbedChunks, services: Services) -> None:
    """Tell the campaign that its batch ended, so that the next one goes out; nothing without a campaign."""
    settings = services.settings
    key = filling.batch_key(command.space_id, command.chunk_ids)
    with tenant_session(command.tenant_id) as session:
        small = Batch(settings.campaign_batch_size, settings.batch_tokens)
        filling.fill_on(session, command.tenant_id, command.space_id, small, ended=key)


def _stop_campaign(command: EmbedChunks, services: Services) -> None:
    """The campaign's budget does not cover this call."""
    _pause_campaign(
        command,
        services,
        reason="budget",
        message="The campaign's budget does not cover its next batch.",
        next_action="Resume with a larger budget, or cancel.",
    )


def _pause_campaign(command: EmbedChunks, services: Services, *, reason: str, message: str, next_action: str) -> None:
    """The campaign pauses, and no document waits for its space."""
    try:
        with tenant_session(command.tenant_id) as session:
            campaigns.pause(session, command.tenant_id, reason=reason, message=message, next_action=next_action)
    except PermanentError:
        return  # another batch was first
    log.warning("campaign paused: %s", reason, extra={"space_id": command.space_id})
    campaigns.finish_held_versions(command.tenant_id, services.settings.documents_in_progress)


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
                _wait(session, command, cause, pause)
            return


def _wait(session: Session, command: EmbedChunks, cause: Cause, pause: Postponed) -> None:
    wait_for(session, command.tenant_id, command.version_id, cause, pause.until)
    key = filling.batch_key(command.space_id, command.chunk_ids)
    mending.note_wait(session, command.tenant_id, key, cause, pause.until)


def _provider_closed(command: EmbedChunks, work: Work, pause: Postponed) -> None:
    """The provider asks for time: nothing was paid, and nobody asks again before it is over."""
    with tenant_session(command.tenant_id) as session:
        _wait(session, command, "provider", pause)
        release(session, work.reservation)
        close_gate(session, work.model, pause.until)
    raise pause


def _refused(command: EmbedChunks, work: Work, error: PermanentError, services: Services) -> None:
    """The model will not do it, or answers with something unusable: the version fails, the latter after some tries."""
    tenant_id, version_id = command.tenant_id, command.version_id
    unusable = isinstance(error, UnusableVectors)
    again = unusable and work.reservation.attempt < UNUSABLE_ATTEMPTS
    with tenant_session(tenant_id) as session:
        # A model that is only being tried must not cost the tenant a document that the present one takes.
        tried = state_in(session, tenant_id, command.space_id) != "active"
        if not again and not tried:
            fail_version(session, tenant_id, version_id, error)
        release(session, work.reservation, error.tokens if isinstance(error, UnusableVectors) else 0)
        if not again and not tried:
            next_turns(session, tenant_id, services.settings.documents_in_progress)
    if tried and not again:
        _refused_by_candidate(command, work, error, services)
    tracing.fail_operation(error.reason)
    log.warning("embedding refused: %s", error.reason, extra={"version_id": version_id, "again": again})
    if again:
        raise Postponed(_later(services.clock.now(), work.reservation.attempt), "the model's answer was unusable")


def _refused_by_candidate(command: EmbedChunks, work: Work, error: PermanentError, services: Services) -> None:
    """A filling space's model refuses chunks: the one to blame is found and recorded, everything else goes on."""
    tenant_id = command.tenant_id
    with tenant_session(tenant_id) as session:
        mending.refuse(session, command, work.chunk_ids, error)
        hopeless = mending.too_many_failures(session, tenant_id, command.space_id)
    if hopeless:
        try:
            with tenant_session(tenant_id) as session:
                campaigns.fail(
                    session,
                    tenant_id,
                    reason="too-many-failures",
                    message=f"The new model refuses too many chunks, the last one with {error.reason}.",
                    keep_until=services.clock.now() + campaigns.KEPT,
                )
        except PermanentError:
            pass  # the old space of a switch, or another batch was first
        else:
            campaigns.finish_held_versions(tenant_id, services.settings.documents_in_progress)
    _finish(command, services)
    _fill_on(command, services)


def _too_much(command: EmbedChunks, work: Work, services: Services) -> None:
    """Twice the model was not done with the batch in time: less is asked of it, or it would never end.

    Once may be an accident, of the model or of the machine.
    """
    with tenant_session(command.tenant_id) as session:
        mending.lighten(session, command, work.chunk_ids)
    log.warning("batch halved: the model is too slow", extra={"version_id": command.version_id})
    if work.in_campaign:
        _fill_on(command, services)


def _second_model_away(command: EmbedChunks, work: Work, services: Services) -> None:
    """The model of a space that does not answer cannot be reached: the batch waits, and after some tries its campaign.

    Refusing the delivery would slow everybody's documents down and end in the dead letters.
    """
    attempt = (work.reservation.attempt - 1) % UNUSABLE_ATTEMPTS + 1
    if attempt < UNUSABLE_ATTEMPTS or not work.in_campaign:
        until = _later(services.clock.now(), attempt)
        with tenant_session(command.tenant_id) as session:
            _wait(session, command, "provider", Postponed(until, "waiting for provider"))
        raise ProviderClosed(until, "waiting for the second space's model")
    _pause_campaign(
        command,
        services,
        reason="model-unavailable",
        message="The new model could not be reached for some minutes.",
        next_action="See the model proxy's log, then resume.",
    )
    _finish(command, services)
    _fill_on(command, services)


def _later(now: datetime, attempt: int) -> datetime:
    """30 s, doubling, as the bus itself would wait (REQUIREMENTS section 3)."""
    return now + timedelta(seconds=UNUSABLE_SECONDS * pow(2.0, attempt - 1))


def _store(command: EmbedChunks, work: Work, answer: Embedded, services: Services) -> None:
    """Vectors, their price and perhaps the version's completion, in one transaction; counters last, they are shared."""
    tenant_id, version_id = command.tenant_id, command.version_id
    with tenant_session(tenant_id) as session:
        stored = store_vectors(session, tenant_id, command.space_id, work.chunk_ids, answer.vectors)
        if work.waits:
            go_on(session, tenant_id, version_id)
        searchable = finish_version(session, tenant_id, version_id)
        eur = settle(session, work.reservation, answer.tokens)
        if searchable:
            next_turns(session, tenant_id, services.settings.documents_in_progress)
    tracing.annotate(vectors=stored, searchable=searchable, cost_eur=eur)
    if work.in_campaign:
        _fill_on(command, services)
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
