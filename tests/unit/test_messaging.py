"""Publishing later through Cloud Tasks: a task's name is its message and time, once."""

from __future__ import annotations

from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from google.api_core.exceptions import AlreadyExists

from shared.messaging import GoogleBus, Outgoing
from shared.settings import load_settings


class Queue:
    """A queue that remembers every name it ever took, as Cloud Tasks does for up to a day after the task has run."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def queue_path(self, project: str, location: str, queue: str) -> str:
        """The queue's full name."""
        return f"projects/{project}/locations/{location}/queues/{queue}"

    def create_task(self, *, parent: str, task: Any, timeout: float) -> None:
        """Take a task under a name that is new."""
        assert task.name.startswith(parent)
        if task.name in self.names:
            raise AlreadyExists("the name is taken")
        self.names.append(task.name)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    """The queue behind the bus."""
    found = Queue()
    monkeypatch.setattr(GoogleBus, "_tasks_client", lambda _: found)
    return found


def later(by: timedelta) -> Outgoing:
    """A message that is not to come before a time from now."""
    return Outgoing(uuid4(), uuid4(), "embed-chunks", "{}", {}, datetime.now(UTC) + by)


@pytest.fixture
def bus(queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GoogleBus:
    """The bus of Google's clients, with nothing behind it but the queue."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "")  # the bus sets it for its client; afterwards it is as it was
    nowhere = "postgresql+pg8000://none@127.0.0.1/none"
    return GoogleBus(load_settings(database_url=nowhere, noesis_home=tmp_path, pubsub_emulator_host="127.0.0.1:1"))


def test_a_message_that_is_sent_later_twice_comes_once(queue: Queue, bus: GoogleBus) -> None:
    """The process that wrote it and the sweep may both come by."""
    message = later(timedelta(minutes=5))
    for _ in range(2):
        bus.publish_later(message)
    assert len(queue.names) == 1


def test_a_task_that_ran_by_a_fast_clock_is_made_again(queue: Queue, bus: GoogleBus) -> None:
    """It came a second early, is put off to the same moment, and its name is taken by itself: it must not be lost."""
    message = later(timedelta(seconds=1))
    for _ in range(2):
        bus.publish_later(message)
    first, second = queue.names
    assert second.startswith(first)


def test_publishing_returns_when_the_last_message_is_confirmed(bus: GoogleBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are sent before the first is waited for, and one that the bus does not confirm is not taken for published."""
    confirmations: list[Future[str]] = []

    class Publisher:
        """Takes every message; the second is never confirmed."""

        def topic_path(self, project: str, topic: str) -> str:
            """The topic's full name."""
            return f"projects/{project}/topics/{topic}"

        def publish(self, topic: str, data: bytes, timeout: float, **attributes: str) -> Future[str]:
            """Take a message and promise its id."""
            promised: Future[str] = Future()
            confirmations.append(promised)
            if len(confirmations) == 2:
                promised.set_exception(TimeoutError("not confirmed"))
            else:
                promised.set_result("1")
            return promised

    monkeypatch.setattr(bus, "_publisher", Publisher())
    with pytest.raises(TimeoutError, match="not confirmed"):
        bus.publish([later(timedelta(0)) for _ in range(3)])
    assert len(confirmations) == 3
