"""Spans: what a process did for one message or request, recorded in memory and sent when it is done.

`operation` is the outermost span of a process (a door, a page that asks), `span` anything inside. Both cost next to
nothing when no collector is configured. What was recorded is kept or thrown away as a whole at the end of the
operation: kept when the trace id falls into the sample (every process decides alike) or when a span saw an error.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from shared.errors import Postponed, Superseded
from shared.tracing.context import Policy, bound, current, policy

Kind = Literal["internal", "server", "client", "producer", "consumer"]

MOST_SPANS = 512
"""Spans one operation keeps; more are counted and dropped: a loop must not fill the memory."""

MOST_ATTRIBUTES = 64

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


@dataclass(slots=True)
class Span:
    """One piece of work. Times are nanoseconds since 1970; `error` is a kind or a reason code, never a text."""

    name: str
    kind: Kind
    span_id: str
    parent_id: str
    started: int
    ended: int = 0
    error: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    is_operation: bool = False

    def set(self, **attributes: Any) -> None:
        """Add what became known meanwhile; `shared.tracing.attributes` says under which names it travels."""
        if len(self.attributes) < MOST_ATTRIBUTES:
            self.attributes |= {name: value for name, value in attributes.items() if value is not None}

    def fail(self, reason: str) -> None:
        """It went wrong without an exception: the trace is kept. `reason` is a code, never a text."""
        self.error = reason


class _Unrecorded(Span):
    """Where nothing records."""

    def set(self, **attributes: Any) -> None:
        """Nothing."""

    def fail(self, reason: str) -> None:
        """Nothing."""


UNRECORDED: Span = _Unrecorded("", "internal", "", "", 0)


@dataclass(slots=True)
class Recording:
    """The spans of one operation in this process, and the policy under which they leave."""

    trace_id: str
    sampled: bool
    policy: Policy
    spans: list[Span] = field(default_factory=list)
    dropped: int = 0

    @property
    def failed(self) -> bool:
        """Whether a span saw an error."""
        return any(span.error for span in self.spans)

    def add(self, span: Span) -> None:
        """Keep a span that has ended; of too many, some that failed and the operation itself are kept."""
        room = 2 * MOST_SPANS if span.error else MOST_SPANS
        if len(self.spans) < room or span.is_operation:
            self.spans.append(span)
        else:
            self.dropped += 1


class Sink(Protocol):
    """Who takes what was recorded: `shared.tracing.export.Exporter`."""

    def is_sampled(self, trace_id: str, rate: float | None) -> bool:
        """Whether a trace falls into the sample."""

    def take(self, recording: Recording) -> None:
        """Send it or throw it away; never raises, never takes longer than it promises."""


_sink: Sink | None = None
_here: ContextVar[tuple[Recording, Span] | None] = ContextVar("span", default=None)


def use_sink(sink: Sink | None) -> None:
    """Record for this sink from now on; None records nothing."""
    global _sink
    _sink = sink


@contextmanager
def operation(name: str, *, traceparent: str = "", kind: Kind = "server", **attributes: Any) -> Iterator[Span]:
    """The outermost span of this process: continues `traceparent`, or begins a trace; is sent when it ends."""
    sink = _sink
    if sink is None:
        with bound(**({"traceparent": traceparent} if traceparent else {})):
            yield UNRECORDED
        return
    continued = _TRACEPARENT.fullmatch(traceparent)
    trace_id, parent_id = (continued[1], continued[2]) if continued else (secrets.token_hex(16), "")
    rules = policy()
    recording = Recording(trace_id, sink.is_sampled(trace_id, rules.sample_rate), rules)
    try:
        with _recorded(recording, name, kind, parent_id, attributes, is_operation=True) as span:
            yield span
    finally:
        sink.take(recording)


@contextmanager
def span(name: str, *, kind: Kind = "internal", **attributes: Any) -> Iterator[Span]:
    """A piece of work inside an operation; nothing outside of one."""
    here = _here.get()
    if here is None:
        yield UNRECORDED
        return
    recording, parent = here
    with _recorded(recording, name, kind, parent.span_id, attributes) as made:
        yield made


@contextmanager
def _recorded(
    recording: Recording,
    name: str,
    kind: Kind,
    parent_id: str,
    attributes: dict[str, Any],
    *,
    is_operation: bool = False,
) -> Iterator[Span]:
    began = time.perf_counter_ns()
    made = Span(name, kind, secrets.token_hex(8), parent_id, time.time_ns(), is_operation=is_operation)
    made.set(**attributes)
    token = _here.set((recording, made))
    try:
        with bound(traceparent=f"00-{recording.trace_id}-{made.span_id}-{'01' if recording.sampled else '00'}"):
            yield made
    except BaseException as error:
        if not _is_expected(error):
            made.error = made.error or getattr(error, "reason", "") or type(error).__name__
        raise
    finally:
        _here.reset(token)
        made.ended = made.started + time.perf_counter_ns() - began
        recording.add(made)


def _is_expected(error: BaseException) -> bool:
    """Ways to stop early that are no errors; LangGraph's are known by name, because importing it costs 0.85 s."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, Postponed | Superseded | GeneratorExit) or "GraphBubbleUp" in names


def fail_operation(reason: str) -> None:
    """Mark the span at hand as failed: for use cases that record their failure and go on."""
    here = _here.get()
    if here is not None:
        here[1].fail(reason)


def annotate(**attributes: Any) -> None:
    """Add to the span at hand what became known in it."""
    here = _here.get()
    if here is not None:
        here[1].set(**attributes)


def current_traceparent(otherwise: str) -> str:
    """What a new message continues: the span at hand, or what the caller would begin."""
    return current("traceparent") or otherwise


def continued_by(traceparent: str) -> str:
    """The span at hand when it belongs to the same trace, else the traceparent itself.

    For messages that carry the trace of their document or run: inside work on that trace they continue the work.
    """
    here = current("traceparent")
    return here if here[3:35] == traceparent[3:35] else traceparent
