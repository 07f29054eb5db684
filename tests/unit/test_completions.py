"""A streamed chat completion: text, tool calls, how it ended, what it cost; whatever the provider makes of the form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.completions import (
    DEEPEST_ARGUMENTS,
    LONGEST_TEXT,
    MOST_CALLS,
    STREAM_BYTES,
    ChatReply,
    Completion,
    ToolCall,
    is_filtered,
    readable,
    server_sent,
    tool_call,
)
from shared.errors import PermanentError, TransientError


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}], **more}


def part(index: int | None, call_id: str | None = None, name: str | None = None, arguments: str = "") -> dict[str, Any]:
    made: dict[str, Any] = {"function": {"name": name, "arguments": arguments}}
    return made | ({} if index is None else {"index": index}) | ({} if call_id is None else {"id": call_id})


def read(*events: Any) -> ChatReply:
    completion = Completion()
    for event in events:
        completion.read(event)
    return completion.reply("m")


def test_tool_calls_come_in_pieces() -> None:
    """Arguments are joined by the call's index, also when two calls come at once."""
    reply = read(
        chunk({"tool_calls": [part(0, "a", "search", '{"que')]}),
        chunk({"tool_calls": [part(0, None, None, 'ry": "x"}'), part(1, "b", "dates", "{}")]}),
        chunk(finish="tool_calls", usage={"prompt_tokens": 7, "completion_tokens": 3}),
    )
    assert reply == ChatReply(
        "", "m", 7, 3, (ToolCall("a", "search", {"query": "x"}), ToolCall("b", "dates", {})), "tool_calls"
    )


def test_a_server_that_sends_calls_whole_and_without_an_index_is_understood() -> None:
    """Ollama and others leave the index out: the id tells the calls apart."""
    reply = read(
        chunk({"tool_calls": [part(None, "a", "search", '{"query": "x"}')]}),
        chunk({"tool_calls": [part(None, "b", "search", '{"query": "y"}')]}, "stop"),
    )
    assert [call.arguments for call in reply.tool_calls] == [{"query": "x"}, {"query": "y"}]


@pytest.mark.parametrize(
    "arguments",
    [
        "{",
        "[1]",
        '"x"',
        "nonsense",
        "[" * 100_000,
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": 9223372036854775808}',
        '{"a": ' + "9" * 5_000 + "}",
        '{"a": ' * (DEEPEST_ARGUMENTS + 1) + "1" + "}" * (DEEPEST_ARGUMENTS + 1),
        '{"a": ' * 500 + "1" + "}" * 500,
    ],
    ids=range(12),
)
def test_arguments_that_are_no_object_are_told(arguments: str) -> None:
    """The model gets to hear it; nobody guesses what it meant."""
    call = tool_call("a", "search", arguments)
    assert call.arguments == {}
    assert call.malformed


def test_endless_arguments_end_the_answer() -> None:
    """The memory is not the model's."""
    completion = Completion()
    with pytest.raises(TransientError):
        for _ in range(30):
            completion.read(chunk({"tool_calls": [part(0, "a", "search", "x" * 10_000)]}))


def test_a_stream_without_an_end_is_no_answer() -> None:
    """Cut off: what was counted until then is known all the same."""
    completion = Completion()
    completion.read(chunk({"content": "Es "}, usage={"prompt_tokens": 5, "completion_tokens": 1}))
    assert completion.counted == (5, 1)
    with pytest.raises(TransientError):
        completion.reply("m")


@pytest.mark.parametrize(
    ("error", "filtered"),
    [
        ({"code": "content_filter", "message": "x"}, True),
        ({"message": "litellm.ContentPolicyViolationError: x"}, True),
        ({"message": "OpenAIException - filtered due to the content management policy", "code": "400"}, True),
        ({"message": "overloaded", "code": 500}, False),
        ("text", False),
        (None, False),
    ],
)
def test_a_content_filter_is_told_from_a_failure(error: Any, filtered: bool) -> None:
    """The first is the provider's last word, the second is tried again."""
    assert is_filtered(error) is filtered
    with pytest.raises(PermanentError if filtered else TransientError):
        Completion().read({"error": error})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "delta", "content", "tool_calls", "usage", "function", "id", "index"]), inner
        )
    ),
    max_leaves=20,
)


@given(_JSON)
def test_whatever_comes_is_read_or_refused(event: Any) -> None:
    """No event of a provider ends in another error than ours."""
    with suppress(TransientError, PermanentError):
        assert isinstance(Completion().read(event), str)


hostile = st.text(st.characters() | st.sampled_from("\x00\ud800\udfff"), max_size=40)


@given(hostile, st.recursive(st.none() | st.floats() | hostile, st.lists))
def test_what_is_read_can_be_stored(words: str, value: Any) -> None:
    """No NUL, no half character, no NaN comes out of a reply, whatever goes in."""
    call = tool_call(words, words, json.dumps({words: value, "x": words}))
    text = Completion().read(chunk({"content": words})) + readable(words)
    stored = json.dumps([call.call_id, call.name, call.arguments, text], ensure_ascii=False, allow_nan=False)
    assert stored.encode()
    assert not re.search(r"(?<!\\)(?:\\\\)*\\u0000", stored)


def test_half_a_character_waits_for_its_other_half() -> None:
    """A server that divides an emoji between two events writes it whole."""
    completion = Completion()
    pieces = [completion.read(chunk({"content": half})) for half in ("Ja \ud83e", "\uddfe nein", "\ud83e")]
    assert pieces == ["Ja ", "\U0001f9fe nein", ""]


def test_a_model_without_an_end_is_ended() -> None:
    """Neither text nor calls nor a line fill the memory."""
    completion = Completion()
    with pytest.raises(TransientError):
        for _ in range(LONGEST_TEXT // 100_000 + 1):
            completion.read(chunk({"content": "x" * 100_000}))
    reply = read(
        chunk({"tool_calls": [part(n, f"c{n}", "search", "{}") for n in range(MOST_CALLS + 50)]}), chunk(finish="stop")
    )
    assert len(reply.tool_calls) == MOST_CALLS
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 65_536
            yield b"x" * 65_536

    with pytest.raises(TransientError):
        list(server_sent(endless()))
    assert taken < STREAM_BYTES


@given(st.text(), st.integers(1, 9))
def test_events_are_divided_only_where_lines_end(content: str, size: int) -> None:
    """U+2028, U+2029 and U+0085 may stand in JSON; where the network divides the bytes means nothing."""
    event = chunk({"content": content})
    stream = f"data: {json.dumps(event, ensure_ascii=False)}\r\n\r\ndata: [DONE]\n\n".encode("utf-8", "replace")
    wanted = json.loads(stream[6:].partition(b"\r\n")[0])
    assert list(server_sent(stream[at : at + size] for at in range(0, len(stream), size))) == [wanted]
