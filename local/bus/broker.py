"""Topics, subscriptions, and the way of a message between them. What is stored is the resource's own protobuf."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Mapping, Sequence

from local.bus import policy
from local.bus.backlog import Backlog
from local.bus.clock import Clock
from local.bus.push import PARALLEL, Pusher, timestamp
from local.bus.refusal import check_name, exists, invalid, not_found
from local.bus.store import Store, delete_messages, insert_messages
from local.bus.tokens import Tokens
from local.bus.wire import Pb, PubsubMessage, Subscription, Topic

log = logging.getLogger(__name__)

DELETED_TOPIC = "_deleted-topic_"
# Limits of google.pubsub.v1 (docs, "Quotas and limits", "Resource limits").
MESSAGE_BYTES = 10_000_000
_MESSAGES, _ATTRIBUTES, _KEY_BYTES, _VALUE_BYTES, _ORDERING_BYTES = 1000, 100, 256, 1024, 1024
# How often (seconds) messages beyond their retention are looked for.
_PURGE = 3600.0


class Broker:
    """The resources of one project, loaded from the store; its methods raise Refused."""

    def __init__(self, store: Store, clock: Clock, tokens: Tokens, parallel: Mapping[str, int]) -> None:
        """`parallel`: how many pushes at once, per subscription name; others get `push.PARALLEL`."""
        self._store, self._clock, self._tokens, self._parallel = store, clock, tokens, parallel
        self._lock = threading.RLock()
        self._topics: dict[str, Pb] = {}
        self._subscriptions: dict[str, Pb] = {}
        self._backlogs: dict[str, Backlog] = {}
        self._pushers: dict[str, Pusher] = {}
        # Replaced as a whole on every change, so that publishing reads it without a lock.
        self._listeners: dict[str, tuple[Backlog, ...]] = {}
        for name, config in store.rows("SELECT name, config FROM topics"):
            self._topics[name] = Topic.FromString(config)
        for key, config in store.rows("SELECT key, config FROM subscriptions"):
            self._add(key, Subscription.FromString(config))
        self._relate()

    def start(self) -> None:
        """Begin to push, and to forget what has outlived its retention."""
        with self._lock:
            for name in self._backlogs:
                self._reconcile_pusher(name)
        self._purge()

    def stop(self) -> None:
        """End every delivery."""
        with self._lock:
            for backlog in self._backlogs.values():
                backlog.close()

    # -- topics

    def create_topic(self, config: Pb, *, declared: bool = False) -> Pb:
        """Store a new topic."""
        check_name("topic", config.name)
        with self._lock:
            if config.name in self._topics:
                raise exists(config.name)
            row = (config.name, config.SerializeToString(), declared)
            self._do("INSERT INTO topics VALUES (?, ?, ?)", *row)
            self._topics[config.name] = config
            return config

    def topic(self, name: str) -> Pb:
        """The topic of this name."""
        config = self._topics.get(name)
        if config is None:
            raise not_found(name)
        return config

    def topics(self) -> list[Pb]:
        """All topics by name."""
        with self._lock:
            return [config for _, config in sorted(self._topics.items())]

    def delete_topic(self, name: str) -> None:
        """Forget a topic; its subscriptions keep what they have."""
        with self._lock:
            self.topic(name)
            self._do("DELETE FROM topics WHERE name = ?", name)
            del self._topics[name]
            for config in self.subscriptions(name):
                config.topic = DELETED_TOPIC
                self._save(config)
            self._relate()

    # -- subscriptions

    def create_subscription(self, config: Pb, *, declared: bool = False) -> Pb:
        """Store a new subscription; it gets what is published from now on."""
        check_name("subscription", config.name)
        policy.read(config)
        with self._lock:
            if config.name in self._subscriptions:
                raise exists(config.name)
            self.topic(config.topic)
            self._check_dead_letter(config)
            row = (config.name, config.SerializeToString(), declared)

            def operation(connection: sqlite3.Connection) -> int:
                sql = "INSERT INTO subscriptions (name, config, declared) VALUES (?, ?, ?) RETURNING key"
                return int(connection.execute(sql, row).fetchone()[0])

            self._add(self._store.submit(operation).result(), config)
            self._relate()
            self._reconcile_pusher(config.name)
            return config

    def subscription(self, name: str) -> Pb:
        """The subscription of this name."""
        config = self._subscriptions.get(name)
        if config is None:
            raise not_found(name)
        return config

    def subscriptions(self, topic: str | None = None) -> list[Pb]:
        """All subscriptions by name, or those of one topic."""
        with self._lock:
            ordered = [config for _, config in sorted(self._subscriptions.items())]
        return [config for config in ordered if topic is None or config.topic == topic]

    def update_subscription(self, config: Pb) -> Pb:
        """Replace the configuration of an existing subscription; deliveries follow it from the next one on."""
        read = policy.read(config)
        with self._lock:
            self.subscription(config.name)
            self._check_dead_letter(config)
            self._save(config)
            self._backlogs[config.name].update(read)
            self._relate()
            self._reconcile_pusher(config.name)
            return config

    def delete_subscription(self, name: str) -> None:
        """Forget a subscription and everything it had yet to deliver."""
        with self._lock:
            self.subscription(name)
            backlog = self._backlogs.pop(name)
            backlog.close()
            self._pushers.pop(name, None)
            del self._subscriptions[name]
            self._relate()

            def operation(connection: sqlite3.Connection) -> None:
                connection.execute("DELETE FROM subscriptions WHERE name = ?", (name,))
                connection.execute("DELETE FROM messages WHERE subscription = ?", (backlog.key,))

            self._store.submit(operation).result()

    def backlog(self, name: str) -> Backlog:
        """What the subscription of this name has yet to deliver."""
        backlog = self._backlogs.get(name)
        if backlog is None:
            raise not_found(name)
        return backlog

    def backlogs(self) -> list[Backlog]:
        """All of them by the name of the subscription."""
        with self._lock:
            return [backlog for _, backlog in sorted(self._backlogs.items())]

    def _check_dead_letter(self, config: Pb) -> None:
        target = config.dead_letter_policy.dead_letter_topic
        if target and target not in self._topics:
            raise not_found(target)

    def _add(self, key: int, config: Pb) -> None:
        self._subscriptions[config.name] = config
        self._backlogs[config.name] = Backlog(key, policy.read(config), self._store, self._clock, self._bury)

    def _save(self, config: Pb) -> None:
        self._do("UPDATE subscriptions SET config = ? WHERE name = ?", config.SerializeToString(), config.name)
        self._subscriptions[config.name] = config

    def _relate(self) -> None:
        listeners: dict[str, tuple[Backlog, ...]] = {}
        for name, config in self._subscriptions.items():
            listeners[config.topic] = (*listeners.get(config.topic, ()), self._backlogs[name])
        self._listeners = listeners

    def _reconcile_pusher(self, name: str) -> None:
        wanted = bool(self._backlogs[name].policy.endpoint)
        if wanted and name not in self._pushers:
            self._pushers[name] = Pusher(self._backlogs[name], self._tokens, self._parallel.get(name, PARALLEL))
        elif not wanted and name in self._pushers:
            self._pushers.pop(name).stop()

    def _do(self, sql: str, *parameters: object) -> None:
        self._store.submit(lambda connection: connection.execute(sql, parameters).rowcount).result()

    # -- messages

    def publish(self, topic: str, messages: Sequence[Pb]) -> list[str]:
        """Store the messages for every subscription of the topic whose filter takes them; their ids.

        Returns after COMMIT: whatever has an id survives the end of this process.
        """
        self.topic(topic)
        check_messages(messages)
        routed: list[tuple[bytes, list[Backlog]]] = []
        for message in messages:
            message.message_id = ""
            message.ClearField("publish_time")
            takers = [b for b in self._listeners.get(topic, ()) if b.policy.filter(message.attributes)]
            routed.append((message.SerializeToString(), takers))
        now = self._clock.now()

        def operation(connection: sqlite3.Connection) -> list[int]:
            ids = [self._store.new_id() for _ in routed]
            pairs = zip(ids, routed, strict=True)
            rows = [(backlog.key, id_, now, body) for id_, (body, takers) in pairs for backlog in takers]
            insert_messages(rows)(connection)
            return ids

        def hand_over(ids: list[int]) -> None:
            for id_, (body, takers) in zip(ids, routed, strict=True):
                for backlog in takers:
                    backlog.arrived(id_, now, body)

        return [str(id_) for id_ in self._store.submit(operation, hand_over).result()]

    def _bury(self, backlog: Backlog, id_: int, attempts: int) -> None:
        """Move one message to the dead-letter topic in one transaction. Called with the backlog's lock held."""
        target, source = backlog.policy.dead_letter_topic, backlog.policy.name
        if target not in self._topics:
            backlog.try_later(id_)
            return
        now = self._clock.now()
        listeners = self._listeners.get(target, ())
        if not listeners:
            log.warning("%s: %s has no subscription, message %s is lost", source, target, id_)

        def operation(connection: sqlite3.Connection) -> list[tuple[Backlog, int, bytes]]:
            row = connection.execute(
                "SELECT published, body FROM messages WHERE subscription = ? AND id = ?", (backlog.key, id_)
            ).fetchone()
            if row is None:
                return []
            body = _dead_letter(row[1], source, attempts, row[0])
            attributes = PubsubMessage.FromString(body).attributes
            new = self._store.new_id()
            moved = [(listener, new, body) for listener in listeners if listener.policy.filter(attributes)]
            insert_messages([(listener.key, new, now, body) for listener, new, body in moved])(connection)
            delete_messages(backlog.key, [id_])(connection)
            return moved

        def hand_over(moved: list[tuple[Backlog, int, bytes]]) -> None:
            backlog.buried(id_)
            for listener, new, body in moved:
                listener.arrived(new, now, body)

        self._store.later(operation, hand_over)

    def _purge(self) -> None:
        now = self._clock.now()
        for backlog in self.backlogs():
            oldest = now - backlog.policy.retention

            def operation(connection: sqlite3.Connection, key: int = backlog.key, oldest: float = oldest) -> int:
                # Ids grow with time: what is too old stands in front.
                return connection.execute(
                    "DELETE FROM messages WHERE subscription = ? AND published < ?", (key, oldest)
                ).rowcount

            self._store.later(operation, backlog.expired)
        self._clock.call_at(now + _PURGE, self._purge)


def _dead_letter(body: bytes, subscription: str, attempts: int, published: float) -> bytes:
    """The message as it is forwarded, with the attributes the cloud adds (docs, "Dead-letter topics")."""
    message = PubsubMessage.FromString(body)
    _, project, _, short = subscription.split("/")
    message.attributes["CloudPubSubDeadLetterSourceDeliveryCount"] = str(attempts)
    message.attributes["CloudPubSubDeadLetterSourceSubscription"] = short
    message.attributes["CloudPubSubDeadLetterSourceSubscriptionProject"] = project
    message.attributes["CloudPubSubDeadLetterSourceTopicPublishTime"] = timestamp(published)
    return bytes(message.SerializeToString())


def check_messages(messages: Sequence[Pb]) -> None:
    """Raise INVALID_ARGUMENT for what the cloud does not take."""
    if not 0 < len(messages) <= _MESSAGES:
        raise invalid(f"A publish request holds 1 to {_MESSAGES} messages, not {len(messages)}.")
    if sum(message.ByteSize() for message in messages) > MESSAGE_BYTES:
        raise invalid(f"Request payload size exceeds the limit: {MESSAGE_BYTES} bytes.")
    for message in messages:
        if not message.data and not message.attributes:
            raise invalid("Some messages are empty: a message needs data or an attribute.")
        if len(message.attributes) > _ATTRIBUTES:
            raise invalid(f"A message holds at most {_ATTRIBUTES} attributes.")
        for key, value in message.attributes.items():
            if not 0 < len(key.encode()) <= _KEY_BYTES or key.startswith("goog"):
                raise invalid(f"Attribute keys are 1 to {_KEY_BYTES} bytes and do not begin with 'goog'.")
            if len(value.encode()) > _VALUE_BYTES:
                raise invalid(f"Attribute values hold at most {_VALUE_BYTES} bytes.")
        if len(message.ordering_key.encode()) > _ORDERING_BYTES:
            raise invalid(f"Ordering keys hold at most {_ORDERING_BYTES} bytes.")
