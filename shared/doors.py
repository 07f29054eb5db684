"""`@handles`: what stands between a push request and a use case, and holds nothing else.

Verify the token, decode the message, bind tenant and trace, run the use case, translate how it ended:

    done, Superseded          204  acknowledged
    PermanentError            204  acknowledged, archived as a dead letter
    Postponed(until)          204  acknowledged, the same message goes to the outbox with not_before
    TransientError            503  refused, quietly: Pub/Sub delivers again, five times, then the dead-letter topic
    anything else             500  the same, with its stack in the log

Doors are plain HTTP functions, not CloudEvent functions: the framework refuses a push without data with 400 before
our code runs, so such a message could never be archived (docs/decisions/0001).
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, cast

from flask import Request, Response
from sqlalchemy.exc import SQLAlchemyError

from shared import tracing
from shared.database import is_shared_failure, platform_session, tenant_session
from shared.dead_letters.archive import ERASED, DeadLetter, class_of, is_erased
from shared.dead_letters.refusals import archive_refused
from shared.errors import PermanentError, Postponed, Superseded, TransientError
from shared.events import PUBLISHED, Message, TenantMessage, decode, published_at
from shared.messaging import publish
from shared.privacy.policies import policy_of
from shared.push import NotAuthenticated, NotAuthorised, PushVerifier
from shared.services import services
from shared.settings import get_settings
from shared.tracing.export import configure_tracing

log = logging.getLogger(__name__)

Door = Callable[[Request], Response]


@dataclass(frozen=True, slots=True)
class Delivery:
    """A push as it came: raw bytes and attributes, and the path of the subscription's endpoint."""

    message_id: str
    data: bytes
    attributes: dict[str, str]
    subscription: str
    path: str

    @property
    def source(self) -> str:
        """The source a document topic belongs to: the last part of `/sources/<name>`, proven by the token."""
        return self.path.removeprefix("/sources/") if self.path.startswith("/sources/") else ""


def handles(*kinds: type[Message]) -> Callable[[Callable[[Any, Delivery], None]], Door]:
    """A door for these messages: `use(message, delivery)` runs for each verified, decoded push."""

    def decorate(use: Callable[[Any, Delivery], None]) -> Door:
        @wraps(use)
        def door(request: Request) -> Response:
            return _guarded(request, lambda delivery: _handle(use, kinds, delivery))

        return cast("Door", door)

    return decorate


def receives_raw(use: Callable[[Delivery], None]) -> Door:
    """A door that takes a verified push as it is, without decoding: for the dead-letter archive."""

    @wraps(use)
    def door(request: Request) -> Response:
        return _guarded(request, lambda delivery: _archive(use, delivery))

    return cast("Door", door)


def by_path(**doors: Door) -> Door:
    """One function with a door per path prefix (`dead_letters` for `/dead-letters`); `root` takes the rest."""

    def door(request: Request) -> Response:
        name = request.path.strip("/").partition("/")[0].replace("-", "_")
        return doors.get(name, doors["root"])(request)

    return door


@lru_cache(maxsize=1)
def _verifier() -> PushVerifier:
    settings = get_settings()
    tracing.configure_logging(settings.log_format)
    configure_tracing(settings)
    return PushVerifier(settings)


def _guarded(request: Request, handle: Callable[[Delivery], Response]) -> Response:
    try:
        _verifier().verify(request.headers.get("Authorization", ""), request.path)
        return handle(read_push(request))
    except NotAuthenticated as refusal:
        log.warning("push refused: %s", refusal)
        return Response(status=401, headers={"WWW-Authenticate": "Bearer"})
    except NotAuthorised as refusal:
        log.warning("push refused: %s", refusal)
        return Response(status=403)
    except TransientError as error:
        log.warning("not now: %s", error)
        return Response(status=503)
    except SQLAlchemyError as error:
        if not is_shared_failure(error):
            raise
        log.warning("not now: the database does not serve us (%s)", type(error).__name__)
        return Response(status=503)


def read_push(request: Request) -> Delivery:
    """The message of a push request (https://cloud.google.com/pubsub/docs/push#receive_push).

    What is not a push body is answered by an empty delivery, which no door can decode: it ends as a dead letter.
    """
    body = request.get_json(silent=True)
    body = body if isinstance(body, dict) else {}
    message = body.get("message")
    if not isinstance(message, dict):
        return Delivery("", request.get_data(), {}, "", request.path)
    try:
        data = base64.b64decode(str(message.get("data") or ""), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    given = message.get("attributes")
    attributes = {str(k): str(v) for k, v in given.items()} if isinstance(given, dict) else {}
    published = message.get("publishTime") or message.get("publish_time")
    if published:
        # It is not in the message itself, and must outlive redelivery, dead letter and replay.
        attributes[PUBLISHED] = _first_published(attributes, str(published)[:64])
    return Delivery(
        message_id=str(message.get("messageId") or message.get("message_id") or "")[:200],
        data=data,
        attributes=attributes,
        subscription=str(body.get("subscription") or "").rpartition("/")[2][:200],
        path=request.path,
    )


def _first_published(attributes: dict[str, str], published: str) -> str:
    """When the message was published, or earlier as it states itself: it comes from a dead-letter topic.

    A later time is its sender's mistake or pretence, and would let any `occurred_at` pass.
    """
    claim, fact = published_at(attributes), published_at({PUBLISHED: published})
    return attributes[PUBLISHED] if claim is not None and (fact is None or claim < fact) else published


def _handle(use: Callable[[Any, Delivery], None], kinds: tuple[type[Message], ...], delivery: Delivery) -> Response:
    try:
        message = decode(delivery.data, delivery.attributes)
        if not isinstance(message, kinds):
            raise PermanentError(
                "wrong-topic", f"This topic does not carry {message.wire_name}.", "Publish it to its own topic."
            )
    except PermanentError as error:
        return _bury(delivery, error, "poison")
    fields = {"event": message.wire_name, "event_id": str(message.event_id)}
    policy = tracing.STRICT
    if isinstance(message, TenantMessage):
        fields["tenant_id"] = str(message.tenant_id)
        policy = policy_of(message.tenant_id)
    told = fields | {"trace_name": _TRACE_NAMES.get(message.wire_name, "document")}
    with (
        tracing.under(policy),
        tracing.bound(**fields),
        # It ends, and is sent, before the push is answered: nothing may run after the response.
        tracing.operation(
            f"handle {message.wire_name}",
            traceparent=message.traceparent,
            kind="consumer",
            subscription=delivery.subscription,
            message_id=delivery.message_id,
            **told,
        ),
    ):
        return _translate(lambda: use(message, delivery), delivery, message)


def _archive(use: Callable[[Delivery], None], delivery: Delivery) -> Response:
    # What the message claims is a hint; a traceparent that is none begins a trace of its own.
    traceparent = delivery.attributes.get("traceparent", "")
    with tracing.operation("keep dead letter", traceparent=traceparent, kind="consumer"):
        return _translate(lambda: use(delivery), delivery, None)


_TRACE_NAMES = {"answer-question": "question", "run-job": "job"}
"""What a trace is about, by the message; most are about a document."""


def _translate(run: Callable[[], None], delivery: Delivery, message: Message | None) -> Response:
    try:
        return _end(run, delivery, message)
    except SQLAlchemyError:
        # A message of an erased tenant finds no row to refer to; nothing of it is kept, and it never comes again.
        if not isinstance(message, TenantMessage) or not _is_erased(message):
            raise
        return _bury(delivery, PermanentError(ERASED, "Its tenant has been erased."), "permanent")


def _is_erased(message: TenantMessage) -> bool:
    with platform_session() as session:
        return is_erased(session, message.tenant_id)


def _end(run: Callable[[], None], delivery: Delivery, message: Message | None) -> Response:
    try:
        run()
    except Superseded as reason:
        log.info("nothing to do: %s", reason)
    except PermanentError as error:
        return _bury(delivery, error, class_of(error))
    except Postponed as pause:
        if not isinstance(message, TenantMessage):
            raise TransientError(str(pause)) from pause
        log.info("postponed: %s", pause)
        with tenant_session(message.tenant_id) as session:
            publish(session, message, not_before=pause.until, topic=_topic(message, delivery))
    return Response(status=204)


def _topic(message: TenantMessage, delivery: Delivery) -> str:
    return f"documents-{delivery.source}" if delivery.source else message.topic


def _bury(delivery: Delivery, error: PermanentError, kind: str) -> Response:
    tracing.fail_operation(error.reason)
    log.warning("dead letter: %s", error.reason)
    letter = DeadLetter(
        origin=delivery.subscription or delivery.path,
        message_id=delivery.message_id,
        data=delivery.data,
        attributes=delivery.attributes,
        kind=kind,
        reason=error.reason,
        message=error.message,
    )
    # A source hears of a submission that it wrote wrongly; what was understood has told its outcome itself.
    archive_refused(letter, delivery.source if kind == "poison" else "", error)
    return Response(status=204)


__all__ = ["Delivery", "by_path", "handles", "read_push", "receives_raw", "services"]
