"""The one way to the bus: an outbox in the caller's transaction, flushed after commit.

`publish(session, event)` writes an outbox row in the same transaction as the work it announces. After the commit the
rows are published (the result is awaited, nothing stays in a background thread) and removed; what is left behind by a
crash or a bus that is down, the minute sweep flushes. Later = `not_before`: the flush makes a Cloud Task whose target
is the publish call of the topic, never a function. Only this module knows Google's messaging clients.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import (
    Column,
    DateTime,
    ForeignKeyConstraint,
    Index,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    event,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from shared import tracing
from shared.database import metadata, often, operator_session, run_alone
from shared.errors import TransientError
from shared.events import Message, TenantMessage
from shared.settings import Settings, get_settings

log = logging.getLogger(__name__)

outbox = Table(
    "outbox",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("event_id", Uuid, nullable=False),
    Column("topic", Text, nullable=False),
    Column("data", Text, nullable=False),
    Column("attributes", JSONB, nullable=False),
    Column("not_before", DateTime(timezone=True)),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    PrimaryKeyConstraint("tenant_id", "event_id"),
    ForeignKeyConstraint(["tenant_id"], ["core.tenants.tenant_id"], ondelete="CASCADE"),
    Index("outbox_created_idx", "created_at"),
    schema="core",
)

CLOCK_SLACK = timedelta(seconds=5)
"""How much earlier than its time by our clock a task may have run by the queue's; as in `shared.conversations.runs`."""

TASK_GRACE = "30 seconds"
"""How long the process that wrote an outbox row has to flush it before the sweep does."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message on its way out."""

    tenant_id: UUID
    event_id: UUID
    topic: str
    data: str
    attributes: dict[str, str]
    not_before: datetime | None


class Bus(Protocol):
    """What carries messages: Pub/Sub now, Cloud Tasks for later. The twin for tests is `shared.fakes.FakeBus`."""

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """Publish all; returns when every publish is confirmed."""

    def publish_later(self, message: Outgoing) -> None:
        """Have the message published at its `not_before`; naming it twice is harmless."""


class GoogleBus:
    """Pub/Sub and Cloud Tasks through Google's clients; the laptop's bus answers the same calls."""

    def __init__(self, settings: Settings) -> None:
        # Imported late: 0.3 s and 60 MB that a process which never publishes need not pay (FACTS).
        from google.cloud import pubsub_v1

        if settings.pubsub_emulator_host:
            # The client reads its own variable and nothing else; the value comes from our settings.
            os.environ["PUBSUB_EMULATOR_HOST"] = settings.pubsub_emulator_host
        self._settings = settings
        self._publisher = pubsub_v1.PublisherClient()
        self._tasks: Any = None

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """Publish all and wait for the results; raises what the client raises."""
        timeout = self._settings.publish_timeout
        futures = [
            self._publisher.publish(
                self._publisher.topic_path(self._settings.google_cloud_project, message.topic),
                message.data.encode(),
                timeout=timeout,
                **message.attributes,
            )
            for message in messages
        ]
        for future in futures:
            future.result(timeout=timeout)

    def publish_later(self, message: Outgoing) -> None:
        """Make the Cloud Task that calls the topic's publish method at `not_before`."""
        from google.api_core.exceptions import AlreadyExists
        from google.cloud import tasks_v2
        from google.protobuf.timestamp_pb2 import Timestamp

        assert message.not_before is not None
        if self._tasks is None:
            self._tasks = self._tasks_client()
        settings = self._settings
        queue = self._tasks.queue_path(settings.google_cloud_project, settings.cloud_tasks_location, "publish-later")
        when = message.not_before.astimezone(UTC)
        body = {
            "messages": [
                {"data": base64.b64encode(message.data.encode()).decode(), "attributes": message.attributes},
            ]
        }
        topic = f"projects/{settings.google_cloud_project}/topics/{message.topic}"
        request = tasks_v2.HttpRequest(
            url=f"{settings.pubsub_rest_url}/v1/{topic}:publish",
            http_method=tasks_v2.HttpMethod.POST,
            headers={"Content-Type": "application/json"},
            body=json.dumps(body).encode(),
        )
        if settings.cloud_tasks_service_account:
            request.oauth_token = tasks_v2.OAuthToken(service_account_email=settings.cloud_tasks_service_account)
        schedule_time = Timestamp()
        schedule_time.FromDatetime(when)
        # Named by event and time: the flush and the sweep may both come by, the queue keeps one.
        name = f"{queue}/tasks/{message.event_id}-{int(when.timestamp())}"
        task = tasks_v2.Task(name=name, http_request=request, schedule_time=schedule_time)
        try:
            self._tasks.create_task(parent=queue, task=task, timeout=settings.publish_timeout)
        except AlreadyExists:
            now = datetime.now(UTC)
            if when - now > CLOCK_SLACK:
                return
            # A name stays taken after its task has run. This one came by another clock's time, was told to wait for
            # the same moment again, and would be lost; a message too many finds nothing to do.
            task.name = f"{name}-{int(now.timestamp() * 1000)}"
            self._tasks.create_task(parent=queue, task=task, timeout=settings.publish_timeout)

    def _tasks_client(self) -> Any:
        from google.cloud import tasks_v2

        address = self._settings.cloud_tasks_emulator_host
        if not address:
            return tasks_v2.CloudTasksClient()
        # This client has no emulator variable (FACTS): an insecure channel does the same.
        import grpc
        from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcTransport

        return tasks_v2.CloudTasksClient(transport=CloudTasksGrpcTransport(channel=grpc.insecure_channel(address)))


_bus: Bus | None = None


def bus() -> Bus:
    """The bus of this process, made at its first use."""
    global _bus
    if _bus is None:
        _bus = GoogleBus(get_settings())
    return _bus


def use_bus(other: Bus | None) -> None:
    """Put another bus in its place (tests); None makes the real one again at the next use."""
    global _bus
    _bus = other


def publish(session: Session, message: TenantMessage, *, not_before: datetime | None = None, topic: str = "") -> None:
    """Announce a message in the session's transaction; it leaves after the commit.

    A message of the trace at hand continues the span at hand. The same event id twice is one message (`on
    conflict do nothing`), so recovery and replay may insert freely.
    """
    here = tracing.continued_by(message.traceparent)
    if here != message.traceparent:
        message = message.model_copy(update={"traceparent": here})
    row = Outgoing(
        tenant_id=message.tenant_id,
        event_id=message.event_id,
        topic=topic or message.topic,
        data=message.data().decode(),
        attributes=message.attributes(),
        not_before=not_before,
    )
    publish_stored(session, row)


def publish_stored(session: Session, row: Outgoing) -> None:
    """Announce a message that was laid aside, byte for byte, in the session's transaction; it leaves after the commit.

    It is not read here: whoever receives it judges it, so what this release cannot read becomes a dead letter there
    and stops nobody here.
    """
    session.execute(
        often(
            "insert into core.outbox (tenant_id, event_id, topic, data, attributes, not_before) values "
            "(:tenant_id, :event_id, :topic, :data, cast(:attributes as jsonb), :not_before) on conflict do nothing"
        ),
        {
            "tenant_id": row.tenant_id,
            "event_id": row.event_id,
            "topic": row.topic,
            "data": row.data,
            "attributes": json.dumps(row.attributes),
            "not_before": row.not_before,
        },
    )
    waiting = session.info.get("outgoing")
    if waiting is None:
        waiting = session.info["outgoing"] = []
        leaving: list[Outgoing] = []

        def committed(_: Session) -> None:
            leaving.extend(waiting)
            waiting.clear()

        event.listen(session, "after_commit", committed)
        event.listen(session, "after_rollback", lambda _: waiting.clear())
        session.info.setdefault("after_close", []).append(lambda: _flush(leaving))
    waiting.append(row)


def _flush(rows: Sequence[Outgoing]) -> None:
    """Send what was committed and take it out of the outbox, once the session has given its connection back."""
    if rows and send(rows):
        ids = ", ".join(f"'{UUID(str(row.event_id))}'" for row in rows)
        tenant_id = UUID(str(rows[0].tenant_id))
        run_alone(tenant_id, f"delete from core.outbox where tenant_id = '{tenant_id}' and event_id in ({ids})")


def send(rows: Sequence[Outgoing]) -> bool:
    """Hand rows to the bus; False when it did not take them all (they stay in the outbox for the sweep)."""
    return _attempt(rows) is None


def _attempt(rows: Sequence[Outgoing]) -> Exception | None:
    try:
        _carry(rows)
    except Exception as error:  # the one place: whatever keeps the bus from taking a message, it is safe and goes later
        log.warning("publish failed, the outbox keeps %d messages for the sweep", len(rows), exc_info=True)
        return error
    return None


def _carry(rows: Sequence[Outgoing]) -> None:
    now = datetime.now(UTC)
    later = [row for row in rows if row.not_before is not None and row.not_before > now]
    at_once = [row for row in rows if row not in later]
    with tracing.span("publish", kind="producer", messages=len(rows), topic=rows[0].topic if rows else ""):
        carrier = bus()
        if at_once:
            carrier.publish(at_once)
        for row in later:
            carrier.publish_later(row)


PLATFORM = UUID(int=0)
"""Stands for the tenant of a message that belongs to none."""


def send_command(message: Message) -> bool:
    """Publish a message of the platform at once; False when the bus did not take it.

    It belongs to no tenant and so has no outbox row: a row of the caller's must be what keeps it (a job's slot).
    """
    data = message.data().decode()
    return send([Outgoing(PLATFORM, message.event_id, message.topic, data, message.attributes(), None)])


def flush_stale(limit: int = 500) -> int:
    """Publish what is left in the outbox of all tenants; returns how many messages left. For the sweep.

    A message that the bus refuses for itself (its topic is gone) goes to the end of the line and holds up nobody.
    Raises TransientError when the bus does not take messages at all: the sweep comes again in a minute.
    """
    statement = text(
        "select tenant_id, event_id, topic, data, attributes, not_before from core.outbox "
        "where created_at < now() - cast(:grace as interval) order by created_at limit :limit "
        "for update skip locked"
    )
    with operator_session() as session:
        found = session.execute(statement, {"grace": TASK_GRACE, "limit": limit}).all()
        rows = [Outgoing(*row) for row in found]
        refused = [] if not rows or send(rows) else _send_apart(rows)
        for row in rows:
            done = "update core.outbox set created_at = now()" if row in refused else "delete from core.outbox"
            session.execute(
                text(f"{done} where tenant_id = :tenant and event_id = :id"),
                {"tenant": row.tenant_id, "id": row.event_id},
            )
    return len(rows) - len(refused)


def _send_apart(rows: Sequence[Outgoing]) -> list[Outgoing]:
    """Send one by one what did not go together; returns those that the bus refuses whatever else there is.

    Raises TransientError at the first that fails for a cause that everybody shares.
    """
    refused = []
    for row in rows:
        error = _attempt([row])
        if error is None:
            continue
        if not _is_refusal(error):
            raise TransientError("the bus does not take messages") from error
        refused.append(row)
        told = {"topic": row.topic, "event_id": str(row.event_id), "tenant_id": str(row.tenant_id)}
        log.error("the bus refuses a message (%s), it stays in the outbox", type(error).__name__, extra=told)
    return refused


def _is_refusal(error: Exception) -> bool:
    """Whether the bus refuses this message (https://cloud.google.com/pubsub/docs/reference/error-codes), and would
    take others: no such topic, no right to it, or a message that it does not allow."""
    from google.api_core.exceptions import BadRequest, Forbidden, NotFound
    from google.cloud.pubsub_v1.publisher.exceptions import MessageTooLargeError

    return isinstance(error, NotFound | Forbidden | BadRequest | MessageTooLargeError)


def storable(value: str) -> str:
    """The text without what PostgreSQL or its driver cannot take: NUL and lone surrogates."""
    return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
