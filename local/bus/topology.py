"""terraform/topology.yaml on the laptop: the same topics, subscriptions, queues and schedules Terraform makes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from local.bus.broker import Broker
from local.bus.scheduler import Schedule
from local.bus.store import Store
from local.bus.tasks import Tasks
from local.bus.wire import Pb, Queue, Subscription, Topic

log = logging.getLogger(__name__)

# A service on a laptop is one instance: keep it busy, with as much again waiting at its door.
_PUSHES_PER_CONCURRENCY = 2


@dataclass(frozen=True)
class Declared:
    """What the file declares, as resources of one project."""

    topics: list[Pb]
    subscriptions: list[Pb]
    queues: list[Pb]
    schedules: list[Schedule]
    parallel: dict[str, int]


def read(path: Path, project: str, location: str, push_bases: Mapping[str, str]) -> Declared:
    """The resources of the file; a service without a push base gets a pull subscription.

    Raises KeyError or ValueError for a file that is not a topology.
    """
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    services = content.get("services", {})
    subscriptions, parallel = [], {}
    for name, declared in content.get("subscriptions", {}).items():
        config = _subscription(name, declared, project, push_bases)
        subscriptions.append(config)
        service = declared.get("push", {}).get("service", "")
        parallel[config.name] = _PUSHES_PER_CONCURRENCY * int(services.get(service, {}).get("concurrency", 1))
    return Declared(
        topics=[Topic(name=_topic(project, name)) for name in content.get("topics", {})],
        subscriptions=subscriptions,
        queues=[_queue(name, one, project, location) for name, one in content.get("queues", {}).items()],
        schedules=[
            Schedule(job=one["job"], cron=one["cron"], topic=_topic(project, one["topic"]))
            for one in content.get("schedules", {}).values()
        ],
        parallel=parallel,
    )


def apply(declared: Declared, broker: Broker, tasks: Tasks, store: Store) -> None:
    """Create and update what is declared; take away what an earlier file declared, unless something waits in it."""
    topics = {topic.name for topic in broker.topics()}
    for topic in declared.topics:
        if topic.name not in topics:
            broker.create_topic(topic, declared=True)
    existing = {config.name for config in broker.subscriptions()}
    for config in declared.subscriptions:
        if config.name in existing:
            broker.update_subscription(config)
        else:
            broker.create_subscription(config, declared=True)
    for queue in declared.queues:
        tasks.declare(queue)
    _remove_undeclared(declared, broker, tasks, store)


def _remove_undeclared(declared: Declared, broker: Broker, tasks: Tasks, store: Store) -> None:
    subscriptions = {config.name for config in declared.subscriptions}
    for (name,) in store.rows("SELECT name FROM subscriptions WHERE declared"):
        if name not in subscriptions:
            if waiting := broker.backlog(name).status()["backlog"]:
                log.warning("%s is no longer declared but holds %s messages: kept", name, waiting)
            else:
                broker.delete_subscription(name)
    topics = {topic.name for topic in declared.topics}
    for (name,) in store.rows("SELECT name FROM topics WHERE declared"):
        if name not in topics and not broker.subscriptions(name):
            broker.delete_topic(name)
    queues = {queue.name for queue in declared.queues}
    for (name,) in store.rows("SELECT name FROM queues WHERE declared"):
        if name not in queues and not tasks.waiting(name):
            tasks.delete_queue(name)


def _topic(project: str, name: str) -> str:
    return f"projects/{project}/topics/{name}"


def _subscription(name: str, declared: Mapping[str, Any], project: str, push_bases: Mapping[str, str]) -> Pb:
    config = Subscription(
        name=f"projects/{project}/subscriptions/{name}",
        topic=_topic(project, declared["topic"]),
        ack_deadline_seconds=int(declared.get("ack_deadline", 10)),
        filter=declared.get("filter", ""),
    )
    push = declared.get("push")
    if push and push["service"] in push_bases:
        config.push_config.push_endpoint = push_bases[push["service"]].rstrip("/") + push["path"]
    if retry := declared.get("retry"):
        config.retry_policy.minimum_backoff.FromMilliseconds(int(retry["minimum"] * 1000))
        config.retry_policy.maximum_backoff.FromMilliseconds(int(retry["maximum"] * 1000))
    if dead_letter := declared.get("dead_letter"):
        config.dead_letter_policy.dead_letter_topic = _topic(project, dead_letter["topic"])
        config.dead_letter_policy.max_delivery_attempts = int(dead_letter["attempts"])
    return config


def _queue(name: str, declared: Mapping[str, Any], project: str, location: str) -> Pb:
    queue = Queue(name=f"projects/{project}/locations/{location}/queues/{name}")
    queue.rate_limits.max_dispatches_per_second = float(declared["dispatches_per_second"])
    queue.rate_limits.max_concurrent_dispatches = int(declared["concurrency"])
    retry = declared["retry"]
    queue.retry_config.max_attempts = int(retry["attempts"])
    queue.retry_config.min_backoff.FromMilliseconds(int(retry["minimum"] * 1000))
    queue.retry_config.max_backoff.FromMilliseconds(int(retry["maximum"] * 1000))
    queue.retry_config.max_doublings = int(retry["doublings"])
    return queue
