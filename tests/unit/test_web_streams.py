"""The stream of server-sent events, with time moved by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from uuid import UUID, uuid4

from sqlalchemy.exc import InterfaceError

from shared.conversations.runs import RunEvent
from web.streams import PACE, Places, frame, run_events


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
    """A comment every 15 seconds or so, the end after five minutes, and ever fewer polls."""
    time = Time()
    pieces = list(stream(time))
    assert pieces[0] == "retry: 1000\n\n"
    assert set(pieces[1:]) == {": alive\n\n"}
    assert 18 <= len(pieces[1:]) <= 20
    assert time.seconds - 1000 >= PACE.limit
    assert 200 <= time.waits <= 250


def test_an_event_postpones_the_heartbeat() -> None:
    """Silence is counted from the last word."""
    time = Time()
    silent: list[Sequence[RunEvent]] = [()] * 51  # 13.6 s
    pieces = stream(time, *silent, [RunEvent(1, "token", {"text": "a"})])
    assert [next(pieces) for _ in range(2)][1].startswith("id: 1\n")
    spoken = time.seconds
    assert next(pieces) == ": alive\n\n"
    assert 15 <= time.seconds - spoken < 15.5


def test_words_are_looked_for_often_and_a_silent_run_rarely() -> None:
    """While words come they wait 150 ms at most; after half a minute of nothing two seconds, until the next word."""
    time = Time()
    silent: list[Sequence[RunEvent]] = [()] * 100
    pieces = stream(time, *silent, [RunEvent(1, "token", {"text": "a"})], (), [RunEvent(2, "token", {"text": "b"})])
    spoken = [time.seconds for piece in pieces if piece.startswith("id: ")][:2]
    assert spoken[0] - 1000 > 30
    assert spoken[1] - spoken[0] <= 0.31
    assert PACE.poll(31) == 2.0


def test_without_a_place_a_stream_says_what_there_is_and_ends() -> None:
    """The client comes again after two seconds with what it has seen, and holds no thread meanwhile."""
    time = Time()
    frames = run_events(
        lambda seq: [RunEvent(4, "token", {})], lambda _seq: None, 3, place=nullcontext(False), wait=time.wait
    )
    assert [piece.split("\n")[0] for piece in frames] == ["retry: 2000", "id: 4"]
    assert time.waits == 0
    ended = RunEvent(7, "failed", {})
    last = list(run_events(lambda _seq: (), lambda _seq: ended, 7, place=nullcontext(False), wait=time.wait))[-1]
    assert last.startswith("id: 7\nevent: failed")


def test_one_tenant_cannot_take_the_places_of_all() -> None:
    """Nor all tenants together those of the other requests; what ends, also by a closed connection, gives its place."""
    places = Places(most=3, most_of_one=2)
    mine, other = uuid4(), uuid4()

    def opened(tenant: UUID) -> Iterator[str]:
        return run_events(
            lambda _seq: (), lambda _seq: None, 0, place=places.one(tenant), now=Time().now, wait=Time().wait
        )

    streams = [opened(tenant) for tenant in (mine, mine, mine, other, other)]
    assert [next(one).strip() for one in streams] == [
        "retry: 1000", "retry: 1000", "retry: 2000", "retry: 1000", "retry: 2000",
    ]  # fmt: skip
    for one in streams:
        one.close()  # type: ignore[attr-defined]
    assert next(opened(mine)).strip() == "retry: 1000"


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
