"""Reading a streamed chat completion in OpenAI's wire format: pieces of text, tool calls, how it ended, what it cost.

Pure: bytes to events, events to a reply. The wire is the provider's word, so every field may be missing or of another
type; what cannot be read is a TransientError, never half a reply.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from shared.errors import PermanentError, TransientError

LONGEST_ARGUMENTS = 200_000
"""Characters of one tool call's arguments; a model that goes on for ever must not fill the memory."""

LONGEST_TEXT = 1_000_000
"""Characters of an answer, many times MAX_TOKENS of any model; the same for one that heeds no limit."""

MOST_CALLS = 128
"""Tool calls of one reply that are kept, as many as OpenAI takes tools; an agent does far fewer at once."""

DEEPEST_ARGUMENTS = 20
"""Objects and lists inside one another; checkpoints, JSON and Python each end somewhere, and tools need two."""


STREAM_BYTES = 64 * 1024 * 1024
EVENT_BYTES = 1024 * 1024
"""One event; usually a word, at most a whole answer. Both bounds keep a stream without an end from the memory."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model wants used. `malformed` says what is wrong with arguments that are no JSON object."""

    call_id: str
    name: str
    arguments: dict[str, Any]
    malformed: str = ""


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A complete answer with what it cost; tokens as the provider counted them (0: it did not say).

    `finish_reason` is OpenAI's: stop, length, tool_calls, content_filter.
    """

    text: str
    model: str
    input_tokens: int
    output_tokens: int
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str = "stop"


class CutOff(TransientError):
    """The answer stopped in the middle; the tokens are what the provider had counted until then (0: it did not say).

    `written` is all it had sent, tool calls too: what nobody counted is booked by it.
    """

    def __init__(self, detail: str, input_tokens: int, output_tokens: int, written: str = "") -> None:
        super().__init__(detail)
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.written = written


def server_sent(pieces: Iterable[bytes]) -> Iterator[Any]:
    """The decoded events of a stream until `[DONE]` or its end. Raises TransientError when it is garbled or endless."""
    for line in _lines(pieces):
        if not line.startswith(b"data:"):
            continue
        payload = line[5:].strip()
        if payload == b"[DONE]":
            return
        try:
            event = json.loads(payload)
        except (ValueError, RecursionError):
            raise garbled() from None
        yield event


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines that end where bytes say so: U+2028, U+2029 and U+0085, where `str.splitlines` ends them too, may stand
    inside JSON as they are."""
    held = bytearray()
    size = 0
    for piece in pieces:
        size += len(piece)
        held += piece
        if b"\n" in piece:
            *lines, rest = held.split(b"\n")
            held = rest
            yield from map(bytes, lines)
        if size > STREAM_BYTES or len(held) > EVENT_BYTES:
            raise garbled()
    yield bytes(held)


@dataclass
class _Partial:
    """A tool call whose arguments are still coming."""

    call_id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass
class Completion:
    """Collects the events of one stream."""

    pieces: list[str] = field(default_factory=list)
    finish_reason: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    calls: dict[int, _Partial] = field(default_factory=dict)
    calling: bool = False
    """The last event brought a piece of a tool call."""
    _length: int = 0
    _half: str = ""
    """The first half of a character that a server has divided between two events."""

    def read(self, event: Any) -> str:
        """Take one event; returns its piece of text. Raises TransientError when it is garbled or an error."""
        if isinstance(event, dict) and "error" in event:
            if is_filtered(event["error"]):
                raise filtered()
            raise TransientError("the model failed in the middle of its answer")
        try:
            piece, self.calling = "", False
            for choice in event.get("choices") or ():
                delta = choice.get("delta") or {}
                content = delta.get("content") or ""
                if not isinstance(content, str):
                    raise TypeError
                piece += content
                self._length += len(content)
                self.finish_reason = str(choice.get("finish_reason") or self.finish_reason)
                for part in delta.get("tool_calls") or ():
                    self._call(part)
            if self._length > LONGEST_TEXT:
                raise ValueError
            usage = event.get("usage")
        except (AttributeError, TypeError, ValueError):
            raise garbled() from None
        self.usage = usage if isinstance(usage, dict) and usage else self.usage
        piece = self._whole(piece)
        if piece:
            self.pieces.append(piece)
        return piece

    def _whole(self, piece: str) -> str:
        """The piece in whole characters; half of one at its end waits for the next."""
        piece, self._half = self._half + piece, ""
        if "\ud800" <= piece[-1:] <= "\udbff":
            piece, self._half = piece[:-1], piece[-1]
        return readable(piece)

    def _call(self, part: Any) -> None:
        self.calling = True
        # Some servers leave the index out and send each call whole, under an id of its own.
        known = {call.call_id: index for index, call in self.calls.items()}
        fresh = part.get("id") and part["id"] not in known
        index = part.get("index")
        if not isinstance(index, int):
            index = len(self.calls) if fresh else known.get(part.get("id"), max(self.calls, default=0))
        if index not in self.calls and len(self.calls) >= MOST_CALLS:
            return
        call = self.calls.setdefault(index, _Partial())
        function = part.get("function") or {}
        call.call_id = str(part.get("id") or call.call_id)
        call.name += str(function.get("name") or "")
        call.arguments += str(function.get("arguments") or "")
        if len(call.arguments) + len(call.name) + len(call.call_id) > LONGEST_ARGUMENTS:
            raise ValueError

    @property
    def counted(self) -> tuple[int, int]:
        """Tokens in and out, as far as the provider has told."""
        return count(self.usage.get("prompt_tokens")), count(self.usage.get("completion_tokens"))

    @property
    def written(self) -> str:
        """Everything that has come: text, and tool calls as they were written."""
        return "".join([*self.pieces, *(call.name + call.arguments for call in self.calls.values())])

    def reply(self, model: str) -> ChatReply:
        """The whole. Raises TransientError when the stream ended before the answer did."""
        if not self.finish_reason:
            raise TransientError("the model's answer was cut off")
        calls = tuple(tool_call(call.call_id, call.name, call.arguments) for _, call in sorted(self.calls.items()))
        return ChatReply("".join(self.pieces), model, *self.counted, calls, self.finish_reason)


def tool_call(call_id: str, name: str, arguments: str) -> ToolCall:
    """A call as the model wrote it; arguments that are no JSON object of bounded size are told, not guessed.

    What comes out can be stored: no NUL, no half characters, no number that JSON does not know.
    """
    call_id, name = readable(call_id), readable(name)
    try:
        value = json.loads(
            arguments or "{}", parse_constant=_no_number, parse_float=_finite_float, parse_int=_small_int
        )
        if not isinstance(value, dict):
            return ToolCall(call_id, name, {}, "the arguments are not a JSON object")
        return ToolCall(call_id, name, _readable_values(value, DEEPEST_ARGUMENTS))
    except _Unusable as error:
        return ToolCall(call_id, name, {}, str(error))
    except (ValueError, RecursionError):
        return ToolCall(call_id, name, {}, "the arguments are not JSON")


class _Unusable(Exception):
    """JSON, but nothing that a tool takes; the message says why."""


def _no_number(name: str) -> NoReturn:
    raise _Unusable(f"the arguments are not JSON: it has no {name}")


def _finite_float(written: str) -> float:
    number = float(written)
    if not math.isfinite(number):
        raise _Unusable("the arguments hold a number that is too large")
    return number


def _small_int(written: str) -> int:
    # 64 bits, because checkpoints (MessagePack) have no more.
    if len(written) > 20 or not -(2**63) <= int(written) < 2**63:
        raise _Unusable("the arguments hold a number that is too large")
    return int(written)


def _readable_values(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, dict | list) and not depth:
        raise _Unusable("the arguments are nested too deeply")
    if isinstance(value, list):
        return [_readable_values(item, depth - 1) for item in value]
    if isinstance(value, dict):
        return {readable(name): _readable_values(item, depth - 1) for name, item in value.items()}
    return value


_UNREADABLE = re.compile("[\x00\ud800-\udfff]")


def readable(text: str) -> str:
    """The text as it can be stored and sent: halves of a character are joined; what is alone, and NUL, is U+FFFD."""
    if not _UNREADABLE.search(text):
        return text
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return joined.replace("\x00", "\ufffd")


MOST_COUNTED = 10_000_000
"""Tokens of one call; no model reads or writes so many. A larger count is a mistake and would empty a budget."""


def count(value: object) -> int:
    """A provider's number of tokens; what is none is 0."""
    return value if type(value) is int and 0 < value <= MOST_COUNTED else 0


def garbled() -> TransientError:
    """What came is not the wire format."""
    return TransientError("the model's answer is garbled")


def filtered() -> PermanentError:
    """The provider's own content filter refused."""
    return PermanentError(
        "content-filtered", "The model's provider refused to answer this question.", "Ask it in another way."
    )


_FILTERED = (
    "content_filter",
    "content_policy",
    "ContentPolicyViolation",
    # Providers' own sentences: LiteLLM hands the sentence on and loses the code.
    "content management policy",
    "safety system",
)


def is_filtered(error: Any) -> bool:
    """Whether a provider's error speaks of its content filter (OpenAI and Azure: code `content_filter`;
    LiteLLM: `ContentPolicyViolationError`)."""
    if not isinstance(error, dict):
        return False
    told = " ".join(str(error.get(name) or "") for name in ("code", "type", "message"))
    return any(sign in told for sign in _FILTERED)
