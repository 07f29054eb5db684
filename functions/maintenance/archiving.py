"""A message whose deliveries are used up: keep it for the operators, and tell whoever waits for it.

What it would have moved does not stay "in progress": its document or run fails with the reason, and a replay of the
letter can still bring it on.
"""

from __future__ import annotations

import logging

from shared.conversations.runs import fail
from shared.database import operator_session, tenant_session
from shared.documents.intake import fail_submission, fail_version
from shared.doors import Delivery
from shared.errors import PermanentError
from shared.events import AnswerQuestion, DocumentSubmitted, EmbedChunks, decode
from shared.messaging import DeadLetter, archive

log = logging.getLogger(__name__)

EXHAUSTED = PermanentError(
    "attempts-exhausted",
    "It failed on every delivery for a cause that did not go away.",
    "An operator finds it with `noesis dead-letters list` and replays it when the cause is mended.",
)

# What the cloud adds when it forwards a message (https://cloud.google.com/pubsub/docs/handling-failures).
_SOURCE = "CloudPubSubDeadLetterSourceSubscription"
_ATTEMPTS = "CloudPubSubDeadLetterSourceDeliveryCount"


def archive_exhausted(delivery: Delivery) -> None:
    """Archive the message and fail what waits for it."""
    attempts = delivery.attributes.get(_ATTEMPTS, "")
    letter = DeadLetter(
        origin=delivery.attributes.get(_SOURCE, delivery.subscription),
        message_id=delivery.message_id,
        data=delivery.data,
        attributes=delivery.attributes,
        kind="transient",
        reason=EXHAUSTED.reason,
        message=EXHAUSTED.message,
        attempts=int(attempts) if attempts.isdecimal() else 0,
    )
    _fail_waiting(delivery, letter.origin)
    with operator_session() as session:
        archive(session, [letter])
    log.warning("dead letter: %s", EXHAUSTED.reason, extra={"origin": letter.origin})


def _fail_waiting(delivery: Delivery, origin: str) -> None:
    try:
        message = decode(delivery.data, delivery.attributes)
    except PermanentError:
        return  # nobody waits for what cannot be read
    if isinstance(message, AnswerQuestion):
        with tenant_session(message.tenant_id) as session:
            fail(session, message.tenant_id, message.run_id, EXHAUSTED)
    elif isinstance(message, EmbedChunks):
        with tenant_session(message.tenant_id) as session:
            fail_version(session, message.tenant_id, message.version_id, EXHAUSTED)
    elif isinstance(message, DocumentSubmitted):
        with tenant_session(message.tenant_id) as session:
            fail_submission(session, message, origin.removeprefix("ingest-"), EXHAUSTED)
