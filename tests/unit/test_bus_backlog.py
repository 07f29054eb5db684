"""The window of one subscription: bounded, in order, and right about leases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from local.bus.backlog import Backlog
from local.bus.clock import Clock
from local.bus.policy import Policy, read
from local.bus.store import Store, insert_messages
from local.bus.window import Holder
from local.bus.wire import Subscription


def _policy(**settings: object) -> Policy:
    return read(Subscription(name="projects/p/subscriptions/sub", topic="projects/p/topics/t", **settings))


@pytest.fixture
def clock() -> Iterator[Clock]:
    """A running clock."""
    clock = Clock()
    clock.start()
    yield clock
    clock.stop()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store of its own."""
    store = Store(tmp_path / "bus.sqlite3")
    yield store
    store.close()


@pytest.fixture
def backlog(store: Store, clock: Clock) -> Backlog:
    """The backlog of subscription 1, without dead letters."""
    return Backlog(1, _policy(), store, clock, lambda backlog, id_, attempts: None)


def _publish(store: Store, backlog: Backlog, ids: range, body: bytes = b"x", at: float | None = None) -> None:
    published = backlog._clock.now() if at is None else at

    def hand_over(_: None) -> None:
        for id_ in ids:
            backlog.arrived(id_, published, body)

    store.submit(insert_messages([(backlog.key, id_, published, body) for id_ in ids]), hand_over).result(60)


def test_messages_come_in_order_through_a_small_window(store: Store, backlog: Backlog) -> None:
    """5,000 messages: all of them, once, oldest first, with at most 1,000 known at any time."""
    _publish(store, backlog, range(1, 5001))
    seen: list[int] = []
    while deliveries := backlog.lease(Holder(), 100):
        assert len(backlog._window.held) <= 1000
        seen += [delivery.id for delivery in deliveries]
        backlog.ack([delivery.id for delivery in deliveries])
    assert seen == list(range(1, 5001))


def test_large_bodies_are_not_kept_in_memory(store: Store, backlog: Backlog) -> None:
    """Twenty messages of a megabyte: about four are held, the others wait on the disk."""
    _publish(store, backlog, range(1, 21), b"x" * 1_000_000)
    assert sum(len(held.body or b"") for held in backlog._window.held.values()) <= 5_000_000
    assert len(backlog.lease(Holder(), 100)) == 20
    assert all(held.body is None for held in backlog._window.held.values())


def test_finished_leases_leave_no_deadlines_behind(store: Store, backlog: Backlog) -> None:
    """At full speed with a deadline of ten minutes the queue of deadlines must not grow to a million."""
    for start in range(1, 20_001, 1000):
        _publish(store, backlog, range(start, start + 1000))
        while deliveries := backlog.lease(Holder(), 100, seconds=600):
            backlog.ack([delivery.id for delivery in deliveries])
    assert len(backlog._deadlines) < 2500


def test_a_stale_lease_neither_fails_nor_extends_the_next_one(store: Store, backlog: Backlog, clock: Clock) -> None:
    """After a redelivery only the new lease counts; an acknowledgement is welcome from either."""
    _publish(store, backlog, range(1, 2))
    (first,) = backlog.lease(Holder(), 1)
    clock.advance(11)
    (second,) = backlog.lease(Holder(), 1, wait=5)
    assert (first.attempt, second.attempt) == (1, 2)
    backlog.nack(1, first.attempt)
    assert not backlog.extend(1, first.attempt, 600)
    assert backlog.lease(Holder(), 1) == []
    backlog.ack([1])
    clock.advance(11)
    assert backlog.lease(Holder(), 1) == []


def test_a_failed_message_does_not_hold_up_the_next(store: Store, backlog: Backlog, clock: Clock) -> None:
    """While one waits for its backoff, others are delivered; then it comes with the next attempt."""
    config = Subscription(name="projects/p/subscriptions/sub", topic="projects/p/topics/t")
    config.retry_policy.minimum_backoff.seconds = 30
    backlog.update(read(config))
    _publish(store, backlog, range(1, 3))
    (one,) = backlog.lease(Holder(), 1)
    backlog.nack(one.id, one.attempt)
    assert [delivery.id for delivery in backlog.lease(Holder(), 5, seconds=600)] == [2]
    clock.advance(9)
    assert backlog.lease(Holder(), 5) == []
    backlog.ack([2])
    clock.advance(22)
    assert [(delivery.id, delivery.attempt) for delivery in backlog.lease(Holder(), 5)] == [(1, 2)]


def test_an_undelivered_message_is_given_back_without_an_attempt(store: Store, backlog: Backlog) -> None:
    """Nobody listened: ready again at once, and still the first attempt."""
    _publish(store, backlog, range(1, 2))
    (one,) = backlog.lease(Holder(), 1)
    backlog.give_back(one.id, one.attempt)
    assert backlog.lease(Holder(), 1) == [one]


def test_a_throttled_backlog_leases_one_at_a_time_after_its_pause(store: Store, backlog: Backlog, clock: Clock) -> None:
    """The push window of a service in trouble, and its end."""
    _publish(store, backlog, range(1, 5))
    backlog.throttle(1, 30)
    assert backlog.lease(Holder(), 5) == []
    clock.advance(31)
    (probe,) = backlog.lease(Holder(), 5)
    assert backlog.lease(Holder(), 5) == []
    backlog.ack([probe.id])
    backlog.throttle(None, 0)
    assert len(backlog.lease(Holder(), 5)) == 3


def test_flow_control_counts_messages_and_bytes(store: Store, backlog: Backlog) -> None:
    """A holder gets no more than it has room for, and room again with every acknowledgement."""
    _publish(store, backlog, range(1, 11), b"x" * 100)
    by_count, by_size = Holder(messages=2), Holder(size=250)
    assert len(backlog.lease(by_count, 10)) == 2
    assert len(backlog.lease(by_size, 10)) == 3
    backlog.ack([1])
    assert len(backlog.lease(by_count, 10)) == 1


def test_what_outlives_its_retention_is_dropped(store: Store, backlog: Backlog, clock: Clock) -> None:
    """Eight days old: not delivered, and its row is deleted."""
    _publish(store, backlog, range(1, 2), at=clock.now() - 8 * 86400)
    assert backlog.lease(Holder(), 1) == []
    store.submit(lambda connection: None).result(60)
    assert store.count(1) == 0


def test_backoff_doubles_between_its_bounds() -> None:
    """10, 20, 40 … capped; a billion failures do not overflow."""
    config = Subscription(name="projects/p/subscriptions/sub", topic="projects/p/topics/t")
    config.retry_policy.minimum_backoff.seconds, config.retry_policy.maximum_backoff.seconds = 10, 60
    policy = read(config)
    assert [policy.backoff(failures) for failures in (1, 2, 3, 4, 10**9)] == [10, 20, 40, 60, 60]
    assert _policy().backoff(5) == 0
