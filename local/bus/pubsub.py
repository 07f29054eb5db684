"""google.pubsub.v1 over gRPC: Publisher and Subscriber, for the official clients unchanged."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc

from local.bus.backlog import Backlog, Delivery
from local.bus.broker import Broker
from local.bus.refusal import Refused, invalid
from local.bus.window import Holder
from local.bus.wire import Empty, Pb, PubsubMessage, pubsub

_ReceivedMessage = pubsub("ReceivedMessage")
_PullResponse = pubsub("PullResponse")
_StreamingPullResponse = pubsub("StreamingPullResponse")
# A pull without messages answers empty after so many seconds; the reference only says "a bounded amount of time".
_PULL_WAIT = 10.0
_PULL_MARGIN = 0.1
# Messages in one answer of a stream, so that one slow consumer does not lease a whole backlog in one go.
_STREAM_BATCH = 100
# Subscription, message and attempt; 18 digits stay below SQLite's largest integer.
_ACK_ID = re.compile(r"(?P<key>[0-9]{1,18}):(?P<message>[0-9]{1,18}):(?P<attempt>[0-9]{1,9})", re.ASCII)
# What UpdateSubscription may name in its mask; the rest of a subscription is fixed at its creation.
_MUTABLE = frozenset(
    (
        "ack_deadline_seconds",
        "dead_letter_policy",
        "enable_exactly_once_delivery",
        "enable_message_ordering",
        "expiration_policy",
        "labels",
        "message_retention_duration",
        "push_config",
        "retain_acked_messages",
        "retry_policy",
    )
)


def unary(method: Callable[[Any], Any], request: Any, response: Any) -> Any:
    """A gRPC handler of a method that takes a request and raises Refused."""

    def handle(message: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(message)
        except Refused as refusal:
            context.abort(refusal.code, refusal.message)

    return grpc.unary_unary_rpc_method_handler(handle, request.FromString, response.SerializeToString)


def page(items: list[Any], request: Any, name: Callable[[Any], str]) -> tuple[list[Any], str]:
    """One page of items sorted by name, and the token of the next one ("" at the end)."""
    rest = [item for item in items if name(item) > request.page_token]
    size = min(request.page_size or 100, 1000)
    return rest[:size], name(rest[size - 1]) if len(rest) > size else ""


class Publisher:
    """google.pubsub.v1.Publisher, as far as the product needs it."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def handler(self) -> grpc.GenericRpcHandler:
        """The methods for a gRPC server."""
        topic = pubsub("Topic")
        methods = {
            "CreateTopic": unary(self._broker.create_topic, topic, topic),
            "GetTopic": unary(lambda r: self._broker.topic(r.topic), pubsub("GetTopicRequest"), topic),
            "ListTopics": unary(self._list, pubsub("ListTopicsRequest"), pubsub("ListTopicsResponse")),
            "DeleteTopic": unary(self._delete, pubsub("DeleteTopicRequest"), Empty),
            "Publish": unary(self._publish, pubsub("PublishRequest"), pubsub("PublishResponse")),
            "ListTopicSubscriptions": unary(
                self._list_subscriptions,
                pubsub("ListTopicSubscriptionsRequest"),
                pubsub("ListTopicSubscriptionsResponse"),
            ),
        }
        return grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", methods)

    def _publish(self, request: Pb) -> Pb:
        return pubsub("PublishResponse")(message_ids=self._broker.publish(request.topic, request.messages))

    def _list(self, request: Pb) -> Pb:
        ours = [topic for topic in self._broker.topics() if topic.name.startswith(f"{request.project}/")]
        found, token = page(ours, request, lambda topic: topic.name)
        return pubsub("ListTopicsResponse")(topics=found, next_page_token=token)

    def _delete(self, request: Pb) -> Pb:
        self._broker.delete_topic(request.topic)
        return Empty()

    def _list_subscriptions(self, request: Pb) -> Pb:
        self._broker.topic(request.topic)
        names = [config.name for config in self._broker.subscriptions(request.topic)]
        found, token = page(names, request, lambda name: name)
        return pubsub("ListTopicSubscriptionsResponse")(subscriptions=found, next_page_token=token)


class Subscriber:
    """google.pubsub.v1.Subscriber, without snapshots and seek."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def handler(self) -> grpc.GenericRpcHandler:
        """The methods for a gRPC server."""
        subscription = pubsub("Subscription")
        methods = {
            "CreateSubscription": unary(self._broker.create_subscription, subscription, subscription),
            "GetSubscription": unary(
                lambda r: self._broker.subscription(r.subscription), pubsub("GetSubscriptionRequest"), subscription
            ),
            "ListSubscriptions": unary(
                self._list, pubsub("ListSubscriptionsRequest"), pubsub("ListSubscriptionsResponse")
            ),
            "UpdateSubscription": unary(self._update, pubsub("UpdateSubscriptionRequest"), subscription),
            "DeleteSubscription": unary(self._delete, pubsub("DeleteSubscriptionRequest"), Empty),
            "ModifyPushConfig": unary(self._modify_push, pubsub("ModifyPushConfigRequest"), Empty),
            "Pull": grpc.unary_unary_rpc_method_handler(
                self._pull, pubsub("PullRequest").FromString, _PullResponse.SerializeToString
            ),
            "Acknowledge": unary(self._acknowledge, pubsub("AcknowledgeRequest"), Empty),
            "ModifyAckDeadline": unary(self._modify_deadline, pubsub("ModifyAckDeadlineRequest"), Empty),
            "StreamingPull": grpc.stream_stream_rpc_method_handler(
                self._stream, pubsub("StreamingPullRequest").FromString, _StreamingPullResponse.SerializeToString
            ),
        }
        return grpc.method_handlers_generic_handler("google.pubsub.v1.Subscriber", methods)

    # -- resources

    def _list(self, request: Pb) -> Pb:
        ours = [config for config in self._broker.subscriptions() if config.name.startswith(f"{request.project}/")]
        found, token = page(ours, request, lambda config: config.name)
        return pubsub("ListSubscriptionsResponse")(subscriptions=found, next_page_token=token)

    def _update(self, request: Pb) -> Pb:
        paths = {path.split(".")[0] for path in request.update_mask.paths}
        if not paths:
            raise invalid("The update_mask in the UpdateSubscriptionRequest must be set, and must contain a path.")
        if fixed := sorted(paths - _MUTABLE):
            raise invalid(f"Invalid update_mask provided: {', '.join(fixed)} cannot be changed.")
        config = pubsub("Subscription")()
        config.CopyFrom(self._broker.subscription(request.subscription.name))
        request.update_mask.MergeMessage(
            request.subscription, config, replace_message_field=True, replace_repeated_field=True
        )
        return self._broker.update_subscription(config)

    def _delete(self, request: Pb) -> Pb:
        self._broker.delete_subscription(request.subscription)
        return Empty()

    def _modify_push(self, request: Pb) -> Pb:
        config = pubsub("Subscription")()
        config.CopyFrom(self._broker.subscription(request.subscription))
        config.push_config.CopyFrom(request.push_config)
        self._broker.update_subscription(config)
        return Empty()

    # -- deliveries

    def _pull_backlog(self, name: str) -> Backlog:
        backlog = self._broker.backlog(name)
        if backlog.policy.endpoint:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"This method is not supported for this subscription type (resource={name}).",
            )
        return backlog

    def _pull(self, request: Pb, context: grpc.ServicerContext) -> Pb:
        try:
            if request.max_messages < 1:
                raise invalid(f"Invalid max_messages given (max_messages={request.max_messages}): at least 1.")
            backlog = self._pull_backlog(request.subscription)
        except Refused as refusal:
            context.abort(refusal.code, refusal.message)
        holder = Holder()
        # A client that has given up must not lease what is published afterwards.
        context.add_callback(lambda: backlog.release_waiters(holder))
        # Answer a little before the client's deadline: what is leased after it reaches nobody until the lease ends.
        remaining = context.time_remaining()
        patience = _PULL_WAIT if remaining is None else min(_PULL_WAIT, remaining - _PULL_MARGIN)
        wait = 0.0 if request.return_immediately else max(0.0, patience)
        deliveries = backlog.lease(holder, min(request.max_messages, 1000), wait=wait)
        return _PullResponse(received_messages=[_received(backlog, delivery) for delivery in deliveries])

    def _acknowledge(self, request: Pb) -> Pb:
        if not request.ack_ids:
            raise invalid("No ack ids specified.")
        backlog = self._broker.backlog(request.subscription)
        backlog.ack([id_ for id_, _ in _leases(backlog, request.ack_ids)])
        return Empty()

    def _modify_deadline(self, request: Pb) -> Pb:
        if not request.ack_ids:
            raise invalid("No ack ids specified.")
        backlog = self._broker.backlog(request.subscription)
        _modify(backlog, request.ack_ids, [request.ack_deadline_seconds] * len(request.ack_ids))
        return Empty()

    def _stream(self, requests: Iterator[Pb], context: grpc.ServicerContext) -> Iterator[Pb]:
        try:
            first: Pb = next(requests, None)
            if first is None:
                return
            backlog = self._pull_backlog(first.subscription)
            if first.stream_ack_deadline_seconds not in range(10, 601):
                raise invalid("stream_ack_deadline_seconds must be between 10 and 600.")
        except Refused as refusal:
            context.abort(refusal.code, refusal.message)
        holder = Holder(max(0, first.max_outstanding_messages), max(0, first.max_outstanding_bytes))
        context.add_callback(lambda: backlog.release_waiters(holder))
        terms = _Terms(float(first.stream_ack_deadline_seconds))
        threading.Thread(
            target=_listen, args=(backlog, holder, terms, first, requests, context), name="stream", daemon=True
        ).start()
        while context.is_active() and not holder.closed:
            deliveries = backlog.lease(holder, _STREAM_BATCH, wait=30, seconds=terms.seconds)
            if deliveries:
                yield _StreamingPullResponse(received_messages=[_received(backlog, one) for one in deliveries])
            elif backlog.closed:
                context.abort(grpc.StatusCode.NOT_FOUND, f"Resource not found (resource={first.subscription}).")
        if terms.refusal is not None:
            context.abort(terms.refusal.code, terms.refusal.message)


class _Terms:
    """What a client may change while its stream is open."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.refusal: Refused | None = None


def _listen(
    backlog: Backlog, holder: Holder, terms: _Terms, first: Pb, rest: Iterator[Pb], context: grpc.ServicerContext
) -> None:
    """Take the client's half of a stream: acknowledgements, deadlines, and finally its end."""
    try:
        request = first
        while request is not None:
            backlog.ack([id_ for id_, _ in _leases(backlog, request.ack_ids)])
            _modify(backlog, request.modify_deadline_ack_ids, request.modify_deadline_seconds)
            terms.seconds = float(request.stream_ack_deadline_seconds) or terms.seconds
            request = next(rest, None)
    except Refused as refusal:
        terms.refusal = refusal
    except grpc.RpcError:
        pass  # the client hung up: its leases run into their deadlines
    finally:
        backlog.release_waiters(holder)


def _received(backlog: Backlog, delivery: Delivery) -> Pb:
    """What a pull answers; `delivery_attempt` is there only with a dead-letter policy."""
    message = PubsubMessage.FromString(delivery.body)
    message.message_id = str(delivery.id)
    message.publish_time.FromNanoseconds(int(delivery.published * 1e9))
    return _ReceivedMessage(
        ack_id=f"{backlog.key}:{delivery.id}:{delivery.attempt}",
        message=message,
        delivery_attempt=delivery.attempt if backlog.policy.dead_letter_topic else 0,
    )


def _leases(backlog: Backlog, ack_ids: Iterable[str]) -> list[tuple[int, int]]:
    """The (message, attempt) pairs behind the ack ids of this subscription; raises INVALID_ARGUMENT for others."""
    leases: list[tuple[int, int]] = []
    for ack_id in ack_ids:
        match = _ACK_ID.fullmatch(ack_id)
        if match is None or match["key"] != str(backlog.key):
            raise invalid(f"You have passed an invalid ack ID to the service (ack_id={ack_id[:100]}).")
        leases.append((int(match["message"]), int(match["attempt"])))
    return leases


def _modify(backlog: Backlog, ack_ids: Iterable[str], seconds: Iterable[int]) -> None:
    for (message, attempt), deadline in zip(_leases(backlog, ack_ids), seconds, strict=True):
        if not 0 <= deadline <= 600:
            raise invalid(f"Invalid ack deadline given (ack_deadline_secs={deadline}): 0 to 600.")
        if deadline:
            backlog.extend(message, attempt, float(deadline))
        else:
            backlog.nack(message, attempt)
