"""Streamed chats on the short way to LiteLLM's router: what the caller gets is what LiteLLM's own route gives."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.scripted_model import CHAT, KEY, REFUSED, RETRY_AFTER, Say, Script, behind_proxy, serving

TEXT = "„Alle Beschäftigten haben Anspruch auf 30 Arbeitstage Urlaub.“ [1]"
BODY: dict[str, Any] = {
    "model": CHAT,
    "messages": [{"role": "user", "content": "Wie viele?"}],
    "max_tokens": 100,
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_usage": True},
}
TOOL = {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}
DETOUR = {"user": "somebody"}
"""An option that only LiteLLM's own route knows."""


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    """A scripted model."""
    with serving(Script()) as served:
        yield served


@pytest.fixture(scope="module")
def proxy(script: Script, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The real proxy before it."""
    with (
        behind_proxy(script, tmp_path_factory.mktemp("litellm")) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client,
    ):
        yield client


def ask(proxy: httpx.Client, **options: Any) -> httpx.Response:
    """One chat."""
    return proxy.post("/v1/chat/completions", json=BODY | options)


def events(reply: httpx.Response) -> list[Any]:
    """What came, without what is new for every request."""
    found: list[Any] = []
    for line in reply.text.splitlines():
        if line:
            payload = line.removeprefix("data: ")
            found.append(payload if payload == "[DONE]" else json.loads(payload))
    for event in found:
        if isinstance(event, dict):
            event.pop("created", None)
    return found


def took_the_short_way(reply: httpx.Response) -> bool:
    """LiteLLM's own route names each call."""
    return "x-litellm-call-id" not in reply.headers


@pytest.mark.parametrize("calls", [(), (("search", '{"query": "Urlaub"}'), ("search", "{}"))])
def test_a_plain_chat_takes_no_detour_and_gets_the_same(
    proxy: httpx.Client, script: Script, calls: tuple[tuple[str, str], ...]
) -> None:
    """Words, tool calls, usage and end; and the provider is asked the same."""
    script.fresh(then=Say(TEXT, calls))
    tools = {"tools": [TOOL]} if calls else {}
    direct, through = ask(proxy, **tools), ask(proxy, **tools, **DETOUR)
    assert (took_the_short_way(direct), took_the_short_way(through)) == (True, False)
    assert events(direct) == events(through)
    assert events(direct)[-1] == "[DONE]"
    assert events(direct)[-2]["usage"]["completion_tokens"] == script.billed["out"] / 2
    assert direct.headers["content-type"] == through.headers["content-type"]
    first, second = script.asked
    assert first == {name: value for name, value in second.items() if name not in DETOUR}


@pytest.mark.parametrize("fault", [*REFUSED, "reset", "html", "empty", "truncated", "cut", "no-choices", "filter"])
def test_a_fault_is_told_as_by_the_detour(proxy: httpx.Client, script: Script, fault: str) -> None:
    """Status, reason and the time to wait; the provider is asked once."""
    told = []
    for options in ({}, DETOUR):
        script.fresh(Say(TEXT, fault=fault), then=Say("asked again"))
        reply = ask(proxy, **options)
        assert len(script.asked) == 1
        if reply.status_code == 200:
            said = events(reply)
            errors = [event["error"] for event in said if "error" in event]
            shown: Any = ([event for event in said if "error" not in event], [error["code"] for error in errors])
        else:
            error = reply.json()["error"]
            shown = (error["code"], error["message"])
            assert ("llm_provider-retry-after" in reply.headers) == fault.endswith("retry-after")
            wait = reply.headers.get("retry-after") or reply.headers.get("llm_provider-retry-after")
            assert wait == (str(RETRY_AFTER) if fault.endswith("retry-after") else None)
        told.append((reply.status_code, shown))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    "body",
    [
        BODY | {"stream": False},
        BODY | {"stream_options": {"include_usage": False}},
        BODY | {"model": "unknown"},
        BODY | {"messages": []},
        BODY | {"messages": "Hi"},
        {name: value for name, value in BODY.items() if name != "messages"},
    ],
)
def test_whatever_is_not_plain_goes_through_litellm(proxy: httpx.Client, script: Script, body: dict[str, Any]) -> None:
    """Also what is to be refused: the proxy's own words for it."""
    script.fresh(then=Say(TEXT))
    assert not took_the_short_way(proxy.post("/v1/chat/completions", json=body))


def test_headers_for_litellm_are_heard(proxy: httpx.Client, script: Script) -> None:
    """Whoever sends one wants LiteLLM to act on it."""
    script.fresh(then=Say(TEXT))
    reply = proxy.post("/v1/chat/completions", json=BODY, headers={"x-litellm-tags": "a"})
    assert (reply.status_code, took_the_short_way(reply)) == (200, False)


def test_a_wrong_key_gets_nowhere(proxy: httpx.Client, script: Script) -> None:
    """The model is not asked."""
    script.fresh(then=Say(TEXT))
    reply = proxy.post("/v1/chat/completions", json=BODY, headers={"Authorization": f"Bearer {KEY}x"})
    assert (reply.status_code, script.asked) == (401, [])


def test_who_hangs_up_ends_the_providers_answer(proxy: httpx.Client, script: Script) -> None:
    """A run that was cancelled pays for no words that nobody reads; the next question is answered."""
    pieces: list[threading.Thread] = []
    script.fresh(then=Say("Wort " * 2_000))

    def pace(_: int) -> None:
        pieces.append(threading.current_thread())
        time.sleep(0.01)  # a provider's pace: without it the answer is there before anybody can leave

    script.before_piece = pace
    with proxy.stream("POST", "/v1/chat/completions", json=BODY) as reply:
        assert next(reply.iter_lines()).startswith("data: ")
    pieces[0].join(60)  # the request's own: it ends with the answer, or when nobody is there to send it to
    assert not pieces[0].is_alive()
    assert len(pieces) < 1_500
    assert script.billed["out"] == 0
    script.fresh(then=Say(TEXT))
    assert events(ask(proxy))[-1] == "[DONE]"
