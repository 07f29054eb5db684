"""The stream of server-sent events, with time moved by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy.exc import InterfaceError

from shared.conversations.runs import RunEvent
from web.streams import PACE, frame, run_events


class Time:
    """A monotonic clock that waiting moves on."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.waits = 0

    def now(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        self.seconds += seconds
        self.waits += 1


def stream(time: Time, *batches: Sequence[RunEvent], ending: RunEvent | None = None, after: int = 0) -> Iterator[str]:
    """A stream over a run whose polls give these batches, then nothing."""
    left = list(batches)

    def read(seq: int) -> Sequence[RunEvent]:
        return [event for event in left.pop(0) if event.seq > seq] if left else []

    return run_events(read, lambda _seq: ending, after, now=time.now, wait=time.wait)


def test_a_silent_run_gets_heartbeats_and_an_end() -> None:
    """A comment every 15 seconds, the end after five minutes, a poll every 150 ms."""
    time = Time()
    pieces = list(stream(time))
    assert pieces[0] == "retry: 1000\n\n"
    assert set(pieces[1:]) == {": alive\n\n"}
    assert 19 <= len(pieces[1:]) <= 20
    assert time.seconds - 1000 >= PACE.limit
    assert 1950 <= time.waits <= 2050


def test_an_event_postpones_the_heartbeat() -> None:
    """Silence is counted from the last word."""
    time = Time()
    silent: list[Sequence[RunEvent]] = [()] * 90  # 13.5 s
    pieces = stream(time, *silent, [RunEvent(1, "token", {"text": "a"})])
    assert [next(pieces) for _ in range(2)][1].startswith("id: 1\n")
    spoken = time.seconds
    assert next(pieces) == ": alive\n\n"
    assert 15 <= time.seconds - spoken < 15.5


def test_nothing_follows_the_last_event() -> None:
    """`answer` and `failed` end the stream, whatever else is there."""
    for kind in ("answer", "failed"):
        pieces = list(stream(Time(), [RunEvent(1, kind, {}), RunEvent(2, "token", {})]))
        assert len(pieces) == 2


def test_a_run_that_ended_without_a_word_ends_the_stream() -> None:
    """Cancelled, or seen before: the ending is sent with the last id."""
    (_, last) = stream(Time(), after=7, ending=RunEvent(7, "failed", {"state": "cancelled"}))
    assert last == 'id: 7\nevent: failed\ndata: {"state": "cancelled"}\n\n'


def test_a_database_that_does_not_answer_ends_the_stream_quietly() -> None:
    """The client comes again with what it has seen."""

    def read(_seq: int) -> Sequence[RunEvent]:
        raise InterfaceError("select", None, Exception("gone"))

    assert list(run_events(read, lambda _seq: None, 0, now=Time().now, wait=Time().wait)) == ["retry: 1000\n\n"]


def test_a_frame_cannot_be_broken_by_its_content() -> None:
    """Line ends of every kind stay inside the data."""
    text = frame(RunEvent(3, "token", {"text": "a\n\nevent: answer\r\u2028\x85b"}))
    assert text.isascii()
    assert text.splitlines()[0:2] == ["id: 3", "event: token"]
    assert len(text.splitlines()) == 4
