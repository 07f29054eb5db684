"""A checkpoint in parts: nothing is stored twice, nothing is lost, whatever becomes of the state."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from functions.agent.parts import FORMAT, SMALL, Divided, Encoded, Stored, divide, unite

SERDE = JsonPlusSerializer()
LONG = "Alle Beschäftigten haben Anspruch auf 30 Arbeitstage Urlaub. " * 12


class Thread:
    """What the database would hold of a thread, and what the saver remembers of it."""

    def __init__(self, serde: JsonPlusSerializer = SERDE) -> None:
        self.serde = serde
        self.stored = Stored()
        self.rows: dict[tuple[str, int], Encoded] = {}
        self.body = b""

    def put(self, values: dict[str, Any], written: set[str]) -> Divided:
        """Store a checkpoint with these channels, of which some were written."""
        checkpoint = empty_checkpoint() | {"channel_values": values}
        divided = divide(self.serde, checkpoint, dict.fromkeys(written, 1), self.stored)
        self.rows |= {(part.channel, part.first): (part.format, part.body) for part in divided.parts}
        self.stored.take(divided)
        self.body = SERDE.dumps_typed(divided.body)[1]
        return divided

    def get(self) -> dict[str, Any]:
        """The channels of the last checkpoint, read the way another process reads them."""
        body = SERDE.loads_typed(("msgpack", self.body))
        if "parts" not in body:
            return dict(body["channel_values"])
        checkpoint, channels = unite(SERDE, body, self.rows)
        assert channels == self.stored.channels
        assert "parts" not in checkpoint
        return checkpoint["channel_values"]


items = st.lists(st.sampled_from([LONG + str(n) for n in range(5)] + ["short", None, 7]), max_size=6)
values = st.one_of(
    items, st.sampled_from([None, 1, 0.5, True, "", "short", LONG, {"text": LONG}, {"text": "x"}, b"raw"])
)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), values, min_size=1), min_size=1, max_size=6))
def test_what_is_put_together_is_what_was_divided(updates: list[dict[str, Any]]) -> None:
    """Channels that grow, shrink, change their kind or become small: every checkpoint is read as it was."""
    thread, state = Thread(), dict[str, Any]()
    for update in updates:
        state = state | update
        thread.put(state, set(update))
        assert thread.get() == state


class Counting(JsonPlusSerializer):
    """Notes what it is asked to write."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    def dumps_typed(self, obj: Any) -> Encoded:
        """Like the serializer."""
        self.asked.append(obj)
        return super().dumps_typed(obj)


def test_what_was_not_written_is_not_measured_again() -> None:
    """A step costs what it changed, not what the state holds; a small value that became large is a part."""
    serde = Counting()
    thread, state = Thread(serde), {"plan": {"step": 1}, "notes": ["a"], "passages": [LONG]}
    thread.put(state, set(state))
    serde.asked.clear()
    state |= {"plan": {"step": 2}}
    thread.put(state, {"plan"})
    assert serde.asked == [{"step": 2}]
    state |= {"notes": ["a", LONG]}
    assert [part.channel for part in thread.put(state, {"notes"}).parts] == ["notes"]
    assert thread.get() == state


def test_a_list_that_grows_brings_only_its_end() -> None:
    """And a value that was written again as it is brings nothing."""
    thread = Thread()
    first = [{"number": n, "text": LONG} for n in range(3)]
    assert [(p.channel, p.first) for p in thread.put({"passages": first}, {"passages"}).parts] == [("passages", 0)]
    longer = [*first, {"number": 3, "text": LONG}]
    (part,) = thread.put({"passages": longer}, {"passages"}).parts
    assert (part.first, SERDE.loads_typed((part.format, part.body))) == (3, longer[3:])
    assert thread.put({"passages": list(longer)}, {"passages"}).parts == ()
    assert thread.get() == {"passages": longer}
    assert len(thread.body) < SMALL


def test_a_value_that_was_changed_in_place_is_stored() -> None:
    """The same object, other content: what counts is what it says."""
    thread = Thread()
    passages = [{"text": LONG}, {"text": LONG}]
    thread.put({"passages": passages}, {"passages"})
    passages[0]["text"] = "something else"
    thread.put({"passages": passages}, {"passages"})
    assert thread.get()["passages"][0]["text"] == "something else"


def test_who_begins_anew_knows_what_is_stored() -> None:
    """A saver that has read a checkpoint stores only what is new, as the one that wrote it would."""
    thread = Thread()
    passages = [{"text": LONG + str(n)} for n in range(3)]
    thread.put({"passages": passages, "draft": LONG}, {"passages", "draft"})
    _, channels = unite(SERDE, SERDE.loads_typed(("msgpack", thread.body)), thread.rows)
    thread.stored = Stored(channels=channels)
    assert thread.put({"passages": [*passages], "draft": LONG, "steps": 1}, {"passages", "draft", "steps"}).parts == ()


def test_ids_of_documents_stand_in_parts_as_text() -> None:
    """The erasure of a document looks for them in the bytes."""
    which = "0b0f5f0e-7f3a-4a53-9a53-1f1e0f5b6d11"
    passages = [{"document_id": which, "text": LONG}]
    (part,) = Thread().put({"passages": passages}, {"passages"}).parts
    assert which.encode() in part.body


def test_a_release_that_knows_no_parts_stops_at_them() -> None:
    """It must not go on with half a state as if that were all."""
    with pytest.raises(NotImplementedError):
        JsonPlusSerializer().loads_typed((FORMAT, b""))


def test_a_missing_part_is_no_empty_value() -> None:
    """Reading fails instead."""
    thread = Thread()
    thread.put({"passages": [LONG]}, {"passages"})
    thread.rows.clear()
    with pytest.raises(KeyError):
        thread.get()
