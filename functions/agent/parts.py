"""A checkpoint without what is stored already: large values of the state are parts, lists grow by a part.

A step changes little of what a run carries: the passages that it read at its beginning are the same at its end, and
what tools find is added at the end of lists. So the checkpoint itself holds the small values and names the parts of the
large ones (`parts`); a step stores the parts that are new. Compared are bytes, not objects: a value that was changed in
place is noticed. Parts are plain MessagePack, in which the erasure of documents finds their ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from langgraph.checkpoint.base import ChannelVersions, Checkpoint
from langgraph.checkpoint.serde.base import SerializerProtocol

from shared.conversations.steps import Part

FORMAT = "msgpack+parts"
"""How such a checkpoint is marked. A release that does not know it stops at it, instead of going on without state."""

SMALL = 512
"""Bytes; what is smaller stays in the checkpoint: a row of its own would cost more."""

Encoded = tuple[str, bytes]
"""Format and bytes of a value, as the serializer gives them."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Items of a list from `first` on, as they are stored; `single`: the value as it is, no list."""

    first: int
    items: tuple[Encoded, ...]
    single: bool = False


@dataclass
class Stored:
    """What of a thread is stored: the runs of items of each channel, and the checkpoint they belong to."""

    last: str | None = None
    """The thread's only checkpoint; None when there may be others."""
    written: bool = False
    """Tasks have written something that is stored under a checkpoint: it goes with that one."""
    channels: dict[str, tuple[_Run, ...]] = field(default_factory=dict)
    small: frozenset[str] = frozenset()
    """Channels that were found to be small: they are not measured again until they are written."""

    def take(self, divided: Divided) -> None:
        """This checkpoint is stored now."""
        self.last, self.channels = divided.body["id"], divided.channels
        self.small = frozenset(divided.body["channel_values"])


@dataclass(frozen=True, slots=True)
class Divided:
    """A checkpoint to be stored: its body, the parts that are new, and all its channels for the next one."""

    body: dict[str, Any]
    parts: tuple[Part, ...]
    channels: dict[str, tuple[_Run, ...]]


def divide(serde: SerializerProtocol, checkpoint: Checkpoint, new_versions: ChannelVersions, stored: Stored) -> Divided:
    """The checkpoint as body and parts; `new_versions` names the channels that were written since the last one."""
    small: dict[str, Any] = {}
    channels: dict[str, tuple[_Run, ...]] = {}
    parts: list[Part] = []
    for channel, value in checkpoint["channel_values"].items():
        before = stored.channels.get(channel, ())
        if before and channel not in new_versions:
            channels[channel] = before
            continue
        if channel in stored.small and channel not in new_versions:
            small[channel] = value
            continue
        runs = _runs(serde, value, before)
        if not runs:
            small[channel] = value
            continue
        channels[channel] = runs
        parts += [_part(serde, channel, run, value) for run in runs if run not in before]
    body: dict[str, Any] = {**checkpoint, "channel_values": small}
    if channels:
        body["parts"] = {name: [None if run.single else run.first for run in runs] for name, runs in channels.items()}
    return Divided(body, tuple(parts), channels)


def _runs(serde: SerializerProtocol, value: Any, before: tuple[_Run, ...]) -> tuple[_Run, ...]:
    """How a value is stored; empty when it is small. Runs that are stored already stay what they are."""
    if value is None or isinstance(value, int | float) or (isinstance(value, str) and len(value) < SMALL // 4):
        return ()
    if not isinstance(value, list):
        encoded = serde.dumps_typed(value)
        return (_Run(0, (encoded,), single=True),) if len(encoded[1]) >= SMALL else ()
    items = tuple(serde.dumps_typed(item) for item in value)
    if sum(len(body) for _, body in items) < SMALL:
        return ()
    runs, upto = [], 0
    for run in before:
        if run.single or items[upto : upto + len(run.items)] != run.items:
            break
        runs.append(run)
        upto += len(run.items)
    if upto < len(items):
        runs.append(_Run(upto, items[upto:]))
    return tuple(runs)


def _part(serde: SerializerProtocol, channel: str, run: _Run, value: Any) -> Part:
    encoded = run.items[0] if run.single else serde.dumps_typed(value[run.first :])
    return Part(channel, run.first, *encoded)


def unite(
    serde: SerializerProtocol, body: dict[str, Any], parts: dict[tuple[str, int], Encoded]
) -> tuple[Checkpoint, dict[str, tuple[_Run, ...]]]:
    """The whole checkpoint, and how its channels are stored. Raises KeyError when a part is missing."""
    whole = dict(body)
    values = dict(whole["channel_values"])
    channels: dict[str, tuple[_Run, ...]] = {}
    for channel, firsts in whole.pop("parts").items():
        if firsts == [None]:
            encoded = parts[channel, 0]
            values[channel] = serde.loads_typed(encoded)
            channels[channel] = (_Run(0, (encoded,), single=True),)
            continue
        values[channel] = []
        runs = []
        for first in firsts:
            items = serde.loads_typed(parts[channel, first])
            values[channel] += items
            runs.append(_Run(first, tuple(serde.dumps_typed(item) for item in items)))
        channels[channel] = tuple(runs)
    whole["channel_values"] = values
    checkpoint: Any = whole
    return checkpoint, channels
