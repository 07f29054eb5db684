"""Reading a streamed chat completion in OpenAI's wire format: pieces of text, tool calls, how it ended, what it cost.

Pure: decoded events in, a reply out. The wire is the provider's word, so every field may be missing or of another
type; what cannot be read is a TransientError, never half a reply.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from shared.errors import PermanentError, TransientError

LONGEST_ARGUMENTS = 200_000
"""Characters of one tool call's arguments; a model that goes on for ever must not fill the memory."""


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
    """The answer stopped in the middle; the tokens are what the provider had counted until then (0: it did not say)."""

    def __init__(self, detail: str, input_tokens: int, output_tokens: int) -> None:
        super().__init__(detail)
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens


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

    def read(self, event: Any) -> str:
        """Take one event; returns its piece of text. Raises TransientError when it is garbled or an error."""
        if isinstance(event, dict) and "error" in event:
            if is_filtered(event["error"]):
                raise filtered()
            raise TransientError("the model failed in the middle of its answer")
        try:
            piece = ""
            for choice in event.get("choices") or ():
                delta = choice.get("delta") or {}
                content = delta.get("content") or ""
                if not isinstance(content, str):
                    raise TypeError
                piece += content
                self.finish_reason = str(choice.get("finish_reason") or self.finish_reason)
                for part in delta.get("tool_calls") or ():
                    self._call(part)
            usage = event.get("usage")
        except (AttributeError, TypeError, ValueError):
            raise garbled() from None
        self.usage = usage if isinstance(usage, dict) and usage else self.usage
        if piece:
            self.pieces.append(piece)
        return piece

    def _call(self, part: Any) -> None:
        # Some servers leave the index out and send each call whole, under an id of its own.
        known = {call.call_id: index for index, call in self.calls.items()}
        fresh = part.get("id") and part["id"] not in known
        index = part.get("index")
        if not isinstance(index, int):
            index = len(self.calls) if fresh else known.get(part.get("id"), max(self.calls, default=0))
        call = self.calls.setdefault(index, _Partial())
        function = part.get("function") or {}
        call.call_id = str(part.get("id") or call.call_id)
        call.name += str(function.get("name") or "")
        call.arguments += str(function.get("arguments") or "")
        if len(call.arguments) > LONGEST_ARGUMENTS:
            raise ValueError

    @property
    def counted(self) -> tuple[int, int]:
        """Tokens in and out, as far as the provider has told."""
        return count(self.usage.get("prompt_tokens")), count(self.usage.get("completion_tokens"))

    def reply(self, model: str) -> ChatReply:
        """The whole. Raises TransientError when the stream ended before the answer did."""
        if not self.finish_reason:
            raise TransientError("the model's answer was cut off")
        calls = tuple(tool_call(call.call_id, call.name, call.arguments) for _, call in sorted(self.calls.items()))
        return ChatReply("".join(self.pieces), model, *self.counted, calls, self.finish_reason)


def tool_call(call_id: str, name: str, arguments: str) -> ToolCall:
    """A call as the model wrote it; arguments that are no JSON object are told, not guessed."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return ToolCall(call_id, name, {}, "the arguments are not JSON")
    if not isinstance(value, dict):
        return ToolCall(call_id, name, {}, "the arguments are not a JSON object")
    return ToolCall(call_id, name, value)


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
