"""A message whose deliveries are used up: keep it for the operators, and tell whoever waits for it.

What it would have moved does not stay "in progress": its document or run fails with the reason, and a replay of the
letter can still bring it on.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from shared.conversations.ending import fail
from shared.database import is_shared_failure, operator_session, tenant_session
from shared.dead_letters.archive import DeadLetter, archive, is_archived
from shared.dead_letters.refusals import archive_never_received, archive_refused
from shared.dead_letters.replay import EXHAUSTED, automatic_replays, source_of, topic_for
from shared.documents.ending import fail_submission, fail_version
from shared.doors import Delivery
from shared.errors import PermanentError, Superseded
from shared.events import AnswerQuestion, DocumentSubmitted, EmbedChunks, Message, RunJob, decode
from shared.jobs import leases
from shared.tenants.directory import may_speak
from shared.web_sources.pages import SOURCE as WEB_PAGES
from shared.web_sources.pages import find_page

log = logging.getLogger(__name__)

FAILURE = PermanentError(
    EXHAUSTED,
    "It failed on every delivery for a cause that did not go away.",
    "An operator finds it with `noesis dead-letters list` and replays it when the cause is mended.",
)

MAX_AUTOMATIC = 3
"""Automatic replays of one message; what still fails then is not waiting for anything shared: it is poison."""

JOBS_SUBSCRIPTION = "maintenance"

# What the cloud adds when it forwards a message (https://cloud.google.com/pubsub/docs/handling-failures).
_SOURCE = "CloudPubSubDeadLetterSourceSubscription"
_ATTEMPTS = "CloudPubSubDeadLetterSourceDeliveryCount"


def archive_exhausted(delivery: Delivery) -> None:
    """Archive the message and fail what waits for it; its source hears of a submission that cannot even be read."""
    attempts = delivery.attributes.get(_ATTEMPTS, "")
    origin = delivery.attributes.get(_SOURCE, delivery.subscription).rpartition("/")[2]
    letter = DeadLetter(
        origin=origin,
        message_id=delivery.message_id,
        data=delivery.data,
        attributes=delivery.attributes,
        kind="poison",
        reason=FAILURE.reason,
        message=FAILURE.message,
        attempts=int(attempts[:9]) if attempts.isdecimal() else 0,
    )
    try:
        message = decode(delivery.data, delivery.attributes)
    except PermanentError as error:
        archive_refused(letter, source_of(origin), error)
    else:
        _archive_readable(letter, message)
    log.warning("dead letter: %s", FAILURE.reason, extra={"origin": origin})


def _archive_readable(letter: DeadLetter, message: Message) -> None:
    # Nobody waits for what came by a subscription that does not carry such messages.
    awaited = letter.origin == JOBS_SUBSCRIPTION if isinstance(message, RunJob) else topic_for(letter.origin, message)
    with operator_session() as session:
        if is_archived(session, letter):
            return  # a late repeat: what failed with it may be going again by now
        if awaited and automatic_replays(session, message.event_id) < MAX_AUTOMATIC:
            letter = replace(letter, kind="transient")
    # Failed first: after a crash in between the repeat does both.
    if awaited:
        _fail_waiting(message, letter)
    with operator_session() as session:
        archive(session, [letter])


def _fail_waiting(message: Message, letter: DeadLetter) -> None:
    if isinstance(message, RunJob):
        with operator_session() as operator:
            leases.fail(operator, message.job, message.slot, FAILURE.reason)
    elif isinstance(message, AnswerQuestion):
        with tenant_session(message.tenant_id) as session:
            fail(session, message.tenant_id, message.run_id, FAILURE)
    elif isinstance(message, EmbedChunks):
        with tenant_session(message.tenant_id) as session:
            fail_version(session, message.tenant_id, message.version_id, FAILURE)
    elif isinstance(message, DocumentSubmitted):
        _fail_submission(message, letter)


def _fail_submission(message: DocumentSubmitted, letter: DeadLetter) -> None:
    source = source_of(letter.origin)
    with tenant_session(message.tenant_id) as session:
        if not may_speak(session, message.tenant_id, source):
            return  # who may not speak for the tenant may not fail its documents either
        wanted = _is_awaited(session, message, source)
    try:
        with tenant_session(message.tenant_id) as session:
            fail_submission(session, message, source, FAILURE, receive_first=wanted)
    except Superseded:
        return
    except SQLAlchemyError as error:
        if is_shared_failure(error):
            raise
        # What stopped every delivery stops us as well: nothing can be written down but that it failed.
        log.warning("not even its reception works", exc_info=True, extra={"event_id": str(message.event_id)})
        archive_never_received(letter, message, source, FAILURE)


def _is_awaited(session: Session, message: DocumentSubmitted, source: str) -> bool:
    """Whether somebody waits for what was never received. Pages of web sources are ordered by ourselves, again and
    again: of those only one that is still to be there and has no document yet."""
    if source != WEB_PAGES or message.uri is None:
        return True
    page = find_page(session, message.tenant_id, message.uri)
    return page is not None and page.document_state is None
