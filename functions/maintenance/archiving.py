"""A message whose deliveries are used up: keep it for the operators, and tell whoever waits for it.

What it would have moved does not stay "in progress": its document or run fails with the reason, and a replay of the
letter can still bring it on.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from shared.conversations.ending import fail
from shared.database import operator_session, tenant_session
from shared.dead_letters.archive import DeadLetter, archive, is_archived
from shared.dead_letters.replay import EXHAUSTED, automatic_replays, source_of, topic_for
from shared.documents.ending import fail_submission, fail_version
from shared.doors import Delivery
from shared.errors import PermanentError
from shared.events import AnswerQuestion, DocumentSubmitted, EmbedChunks, Message, RunJob, decode
from shared.jobs import leases
from shared.tenants.directory import require_source

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
    """Archive the message and fail what waits for it."""
    attempts = delivery.attributes.get(_ATTEMPTS, "")
    origin = delivery.attributes.get(_SOURCE, delivery.subscription).rpartition("/")[2]
    message = _own_message(delivery, origin)
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
    with operator_session() as session:
        if is_archived(session, letter):
            return  # a late repeat: what failed with it may be going again by now
        if message is not None and automatic_replays(session, message.event_id) < MAX_AUTOMATIC:
            letter = replace(letter, kind="transient")
    # Failed first: after a crash in between the repeat does both.
    if message is not None:
        _fail_waiting(message, origin)
    with operator_session() as session:
        archive(session, [letter])
    log.warning("dead letter: %s", FAILURE.reason, extra={"origin": origin, "class": letter.kind})


def _own_message(delivery: Delivery, origin: str) -> Message | None:
    """The message, unless it cannot be read or its subscription does not carry such messages: nobody waits for it."""
    try:
        message = decode(delivery.data, delivery.attributes)
    except PermanentError:
        return None
    ours = origin == JOBS_SUBSCRIPTION if isinstance(message, RunJob) else topic_for(origin, message) is not None
    return message if ours else None


def _fail_waiting(message: Message, origin: str) -> None:
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
        _fail_submission(message, source_of(origin))


def _fail_submission(message: DocumentSubmitted, source: str) -> None:
    with tenant_session(message.tenant_id) as session:
        try:
            require_source(session, message.tenant_id, source)
        except PermanentError:
            return  # who may not speak for the tenant may not fail its documents either
        fail_submission(session, message, source, FAILURE)
