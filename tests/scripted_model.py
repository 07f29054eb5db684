"""A chat model that says what a script tells it, in OpenAI's wire format, with the faults that providers have.

`serving(Script())` runs it on a free port; `behind_proxy(script, folder)` puts the real LiteLLM proxy before it, by the
two settings that README gives for any OpenAI-compatible server. As a program of its own it is a model that takes its
time: `python -m tests.scripted_model --port 9000 --reply-ms 200`.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from shared.fakes import hashed_vector
from tests.loopback import served
from tests.model_proxy import running_proxy

CHAT, EMBEDDINGS, DIMENSION = "openai/scripted", "openai/scripted-vectors", 64
KEY = "sk-scripted-0123456789abcdef"
RETRY_AFTER = 7
REFUSED = {
    "429": 429,
    "429-retry-after": 429,
    "500": 500,
    "503": 503,
    "503-retry-after": 503,
    "401": 401,
    "filter-400": 400,
}
"""Faults before the first word, by their status; they cost nothing."""
UNFINISHED = ("hang", "reset", "html", "empty", "truncated", "cut", "no-choices")
"""Answers that break off or never were one: the provider has not said what they cost and bills nothing."""
FINISHED = ("filter", "length", "no-usage", "wrong-usage")
"""Answers that come whole but are not what one hopes for."""
FAULTS = (*REFUSED, *UNFINISHED, *FINISHED)


@dataclass(frozen=True, slots=True)
class Say:
    """One answer: words and tool calls (name, arguments as the model writes them), or a fault of FAULTS.

    `usage` is what the provider says it counted, instead of what it did; `half`: the line is cut in the first call.
    """

    text: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    fault: str = ""
    usage: dict[str, Any] | None = None
    half: bool = False


@dataclass
class Script:
    """What the model says, one `Say` a request, then `then` for ever; and what it was asked and has billed."""

    says: list[Say] = field(default_factory=list)
    then: Say = field(default_factory=lambda: Say("NO_EVIDENCE"))
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    billed: Counter[str] = field(default_factory=Counter)
    """Tokens `in` and `out` of every answer whose usage went out, `embedded` and `reranked` ones."""
    before_piece: Callable[[int], None] = lambda _number: None
    """Called before each piece of an answer, in the request's thread: a person who cancels meanwhile, say."""
    reply_seconds: float = 0.0
    """Silence before the first word, and as long again spread over the words."""
    keys: dict[str, Any] = field(default_factory=dict)
    """What `GET /jwks` answers."""
    done: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, body: dict[str, Any]) -> Say:
        """What to say to a request."""
        with self.lock:
            self.asked.append(body)
            return self.says.pop(0) if self.says else self.then

    def sell(self, texts: list[str]) -> None:
        """Told which texts a vector is wanted of."""

    def judge(self, question: str, documents: list[str]) -> list[float]:
        """Told what is to be re-ranked; the later, the more relevant."""
        return [number / 100 for number in range(len(documents))]

    def bill(self, **tokens: int) -> None:
        """Write on the bill."""
        with self.lock:
            self.billed.update(tokens)

    def fresh(self, *says: Say, then: Say | None = None) -> None:
        """Begin anew with another script."""
        with self.lock:
            self.says, self.asked, self.billed = list(says), [], Counter()
            self.then = then or Say("NO_EVIDENCE")
            self.before_piece = lambda _number: None


def tokens_of(value: object) -> int:
    """What this provider counts: a token a word."""
    return len(re.findall(r"\w+", json.dumps(value, ensure_ascii=False)))


class _Handler(BaseHTTPRequestHandler):
    script: Script
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._whole(200, json.dumps(self.script.keys).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/embeddings"):
            self._embed(body)
            return
        if self.path.endswith("/rerank"):
            self._rerank(body)
            return
        say = self.script.next(body)
        if say.fault in REFUSED:
            self._refuse(say.fault)
        elif say.fault == "hang":
            self.script.done.wait(30)
            self.close_connection = True
        elif say.fault == "reset":
            self._reset()
        elif say.fault in ("html", "empty"):
            self._whole(200, b"" if say.fault == "empty" else b"<!doctype html><title>Bad gateway</title>")
        else:
            self._stream(body, say)

    def _embed(self, body: dict[str, Any]) -> None:
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        rows = [
            {"object": "embedding", "index": n, "embedding": hashed_vector(t, DIMENSION)} for n, t in enumerate(texts)
        ]
        tokens = sum(map(tokens_of, texts))
        self.script.sell(texts)
        self.script.bill(embedded=tokens)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        self._whole(200, json.dumps({"object": "list", "model": "m", "data": rows, "usage": usage}).encode())

    def _rerank(self, body: dict[str, Any]) -> None:
        tokens = tokens_of([body["query"], body["documents"]])
        relevances = self.script.judge(body["query"], body["documents"])
        self.script.bill(reranked=tokens)
        rows = [{"index": n, "relevance_score": relevance} for n, relevance in enumerate(relevances)]
        self._whole(200, json.dumps({"results": rows, "meta": {"tokens": {"input_tokens": tokens}}}).encode())

    def _stream(self, body: dict[str, Any], say: Say) -> None:
        """Word by word as server-sent events; `cut` and `truncated` end in the middle."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if say.fault == "no-choices":
            self._event(body, {"choices": []})
            self._send(b"data: [DONE]\n\n")
            return
        pieces = re.findall(r"\S+\s*", say.text)
        pause = self.script.reply_seconds / max(1, len(pieces))
        time.sleep(self.script.reply_seconds / 2)
        for number, piece in enumerate(pieces):
            self.script.before_piece(number)
            time.sleep(pause / 2)
            if say.fault in ("cut", "truncated") and number >= len(pieces) // 2:
                if say.fault == "cut":
                    self._reset()
                else:
                    self._send(b'data: {"choices": [{"delta": {"con')
                return
            self._event(body, {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
        for number, (name, arguments) in enumerate(say.calls):
            call = {"index": number, "id": f"call-{number}", "type": "function"}
            half = len(arguments) // 2
            self._call(body, call | {"function": {"name": name, "arguments": arguments[:half]}})
            self.script.before_piece(len(pieces) + number)
            if say.half:
                self._reset()
                return
            self._call(body, {"index": number, "function": {"arguments": arguments[half:]}})
        self._end(body, say)

    def _call(self, body: dict[str, Any], call: dict[str, Any]) -> None:
        self._event(body, {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]})

    def _end(self, body: dict[str, Any], say: Say) -> None:
        reason = {"filter": "content_filter", "length": "length"}.get(say.fault, "tool_calls" if say.calls else "stop")
        self._event(body, {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        tokens = {"in": tokens_of(body["messages"]), "out": tokens_of([say.text, list(say.calls)])}
        usage: dict[str, Any] = {"prompt_tokens": tokens["in"], "completion_tokens": tokens["out"]}
        if say.usage is not None:
            usage = {"prompt_tokens": 0, "completion_tokens": 0} | say.usage
        if say.fault == "wrong-usage":
            usage = {"prompt_tokens": -5, "completion_tokens": 10**9}
        if say.fault != "no-usage":
            self.script.bill(**tokens)
            total = usage["prompt_tokens"] + usage["completion_tokens"]
            self._event(body, {"choices": [], "usage": usage | {"total_tokens": total}})
        self._send(b"data: [DONE]\n\n")

    def _event(self, body: dict[str, Any], event: dict[str, Any]) -> None:
        frame = {"id": "1", "created": 1, "model": body["model"], "object": "chat.completion.chunk"}
        self._send(b"data: " + json.dumps(frame | event).encode() + b"\n\n")

    def _send(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def _refuse(self, fault: str) -> None:
        error = {"message": "no", "type": "x", "code": "y"}
        if fault == "filter-400":
            # Azure's own words: LiteLLM hands the sentence on and loses the code.
            error = {"message": "The response was filtered: content management policy.", "code": "content_filter"}
        headers = {"Retry-After": str(RETRY_AFTER)} if fault.endswith("retry-after") else {}
        self._whole(REFUSED[fault], json.dumps({"error": error}).encode(), **headers)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _whole(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        return


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        return  # a client that hangs up, or a connection that we reset, is what is wanted here


@contextmanager
def serving(script: Script, port: int = 0) -> Iterator[Script]:
    """The model on a port of loopback, 0: a free one."""
    handler = type("Bound", (_Handler,), {"script": script})
    with served(_Server(("127.0.0.1", port), handler)) as script.url:
        try:
            yield script
        finally:
            script.done.set()


@contextmanager
def behind_proxy(script: Script, folder: Path) -> Iterator[str]:
    """The real LiteLLM proxy before a served script; gives its address. Skips where it is not installed."""
    settings = {
        "LITELLM_MASTER_KEY": KEY,
        "CHAT_MODEL": CHAT,
        "OPENAI_API_BASE": f"{script.url}/v1",
        "EMBEDDINGS_MODEL": EMBEDDINGS,
        "EMBEDDINGS_DIM": str(DIMENSION),
        "EMBEDDINGS_API_BASE": f"{script.url}/v1",
    }
    with running_proxy(settings, folder) as url:
        yield url


def main() -> None:
    """Serve one answer until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--reply-ms", type=float, default=200)
    parser.add_argument("--text", default="NO_EVIDENCE")
    chosen = parser.parse_args()
    script = Script(then=Say(chosen.text), reply_seconds=chosen.reply_ms / 1000)
    with serving(script, chosen.port):
        threading.Event().wait()


if __name__ == "__main__":
    main()
