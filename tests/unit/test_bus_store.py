"""The store's promises: after COMMIT, in order, one culprit at a time, one process at a time."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.bus.store import Store, delete_messages, insert_messages, record_failure


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store of its own."""
    store = Store(tmp_path / "bus.sqlite3")
    yield store
    store.close()


def test_what_is_answered_is_committed(store: Store, tmp_path: Path) -> None:
    """Another connection sees the rows as soon as the future answers."""
    store.submit(insert_messages([(1, 10, 5.0, b"body")])).result(60)
    with sqlite3.connect(tmp_path / "bus.sqlite3") as other:
        assert other.execute("SELECT subscription, id, body FROM messages").fetchall() == [(1, 10, b"body")]
    other.close()


def test_the_callback_comes_after_the_commit_and_before_the_answer(store: Store, tmp_path: Path) -> None:
    """Whoever is handed a message can count on its row."""
    seen: list[list[tuple[int]]] = []

    def look(_: None) -> None:
        other = sqlite3.connect(tmp_path / "bus.sqlite3")
        seen.append(other.execute("SELECT id FROM messages").fetchall())
        other.close()

    store.submit(insert_messages([(1, 10, 5.0, b"body")]), look).result(60)
    assert seen == [[(10,)]]


def test_a_failing_operation_does_not_take_its_neighbours_along(store: Store) -> None:
    """Operations of one transaction: the culprit gets its error, the others are stored."""
    gate = threading.Event()
    # Holds the writer, so that the next three become one batch.
    first = store.submit(lambda connection: gate.wait(60))
    good = [store.submit(insert_messages([(1, id_, 0.0, b"")])) for id_ in (1, 3)]
    bad = store.submit(insert_messages([(1, 2, 0.0, b""), (1, 1, 0.0, b"")]))
    gate.set()
    first.result(60)
    assert [one.result(60) for one in good] == [None, None]
    with pytest.raises(sqlite3.IntegrityError):
        bad.result(60)
    assert [message.id for message in store.messages_after(1, 0, 10, 1000)] == [1, 3]


def test_one_commit_takes_all_that_wait(store: Store) -> None:
    """Group commit: what arrives during a transaction shares the next one."""
    gate, batches = threading.Event(), set[int]()

    def note(connection: sqlite3.Connection) -> None:
        batches.add(connection.total_changes)

    store.submit(lambda connection: gate.wait(60))
    waiting = [store.submit(note) for _ in range(100)]
    commits: list[str] = []
    gate.set()
    for one in waiting:
        one.result(60)
    store.submit(lambda connection: connection.set_trace_callback(commits.append)).result(60)
    gate.clear()
    store.submit(lambda connection: gate.wait(60))
    waiting = [store.submit(insert_messages([(1, id_, 0.0, b"")])) for id_ in range(100)]
    gate.set()
    for one in waiting:
        one.result(60)
    assert commits.count("COMMIT") <= 3


def test_ids_grow_over_restarts(tmp_path: Path) -> None:
    """An id is never given twice, although acknowledged messages leave no trace."""
    ids: list[int] = []
    for _ in range(3):
        store = Store(tmp_path / "bus.sqlite3")
        ids += [store.submit(lambda connection, store=store: store.new_id()).result(60) for _ in range(3)]  # type: ignore[misc]
        store.close()
    assert ids == sorted(set(ids))


def test_close_writes_what_nobody_waited_for(tmp_path: Path) -> None:
    """Acknowledgements in the queue are on the disk after a clean end."""
    store = Store(tmp_path / "bus.sqlite3")
    store.submit(insert_messages([(1, id_, 0.0, b"") for id_ in range(10)])).result(60)
    store.later(delete_messages(1, list(range(9))))
    store.later(record_failure(1, 9, 3, 77.0))
    store.close()
    again = Store(tmp_path / "bus.sqlite3")
    assert [(one.id, one.failures, one.due) for one in again.messages_after(1, -1, 100, 1000)] == [(9, 3, 77.0)]
    again.close()


def test_a_second_process_is_turned_away(store: Store, tmp_path: Path) -> None:
    """Two buses over one file would each deliver everything."""
    with pytest.raises(BlockingIOError):
        Store(tmp_path / "bus.sqlite3")


def test_a_page_of_messages_is_bounded_by_count_and_bytes(store: Store) -> None:
    """At most so many, at most so large, but always one."""
    store.submit(insert_messages([(1, id_, 0.0, b"x" * 100) for id_ in range(1, 21)])).result(60)
    assert len(store.messages_after(1, 0, 5, 10_000)) == 5
    assert len(store.messages_after(1, 0, 20, 350)) == 4
    assert [one.id for one in store.messages_after(1, 19, 20, 1)] == [20]
    assert store.messages_after(2, 0, 20, 350) == []


def test_the_files_are_only_their_owners(store: Store, tmp_path: Path) -> None:
    """Messages carry documents: no other user of the machine reads them."""
    assert (tmp_path / "bus.sqlite3").stat().st_mode & 0o077 == 0
