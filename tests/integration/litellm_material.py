"""A stand-in for an OpenAI-compatible provider, and what is asked of the proxy before it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.loopback import served

KEY = "sk-test-0123456789abcdef"
PROVIDER_KEY = "sk-provider-0123456789"
CHAT, EMBEDDINGS = "openai/some-chat-model", "openai/some-embedding-model"
RERANKER = "hosted_vllm/some-reranker"


@dataclass
class StandIn:
    """A small OpenAI-compatible server that remembers what it was asked."""

    url: str = ""
    requests: list[tuple[str, str | None, dict[str, Any]]] = field(default_factory=list)

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, str, bytes]:
        """Status, content type and body of the answer to one request."""
        if path.endswith("/embeddings"):
            if body["input"][0].startswith("wait"):
                return 429, "application/json", b'{"error": {"message": "slow down", "type": "x", "code": "y"}}'
            rows = [
                {"object": "embedding", "index": i, "embedding": [float(len(text)), 1.0]}
                for i, text in enumerate(body["input"])
            ]
            usage = {"prompt_tokens": 3, "total_tokens": 3}
            return 200, "application/json", json.dumps({"object": "list", "data": rows, "usage": usage}).encode()
        if path.endswith("/rerank"):
            rows = [{"index": i, "relevance_score": 1 / (1 + i)} for i in reversed(range(len(body["documents"])))]
            return 200, "application/json", json.dumps({"results": rows, "usage": {"total_tokens": 9}}).encode()
        if body["messages"][-1]["content"].startswith("fail"):
            error = {"error": {"message": f"too many: {body['messages']}", "type": "rate_limit", "code": "429"}}
            return 429, "application/json", json.dumps(error).encode()
        frame = {"id": "1", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": "Hello world"}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
            answer = {**frame, "object": "chat.completion", "choices": [choice], "usage": usage}
            return 200, "application/json", json.dumps(answer).encode()
        deltas: list[tuple[dict[str, str], str | None]] = [({"content": "Hello "}, None), ({"content": "world"}, None)]
        chunks = [
            {**frame, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": d, "finish_reason": end}]}
            for d, end in [*deltas, ({}, "stop")]
        ]
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        return 200, "text/event-stream", "".join([*lines, "data: [DONE]\n\n"]).encode()


@contextmanager
def standing_in() -> Iterator[StandIn]:
    """The stand-in on a free port."""
    state = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append((self.path, self.headers["Authorization"], body))
            status, kind, reply = state.reply(self.path, body)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if status == 429:
                self.send_header("Retry-After", "17")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
            return

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as state.url:
        yield state


@dataclass(frozen=True)
class Service:
    """The running proxy: a client with the key, its address and what it logged."""

    client: httpx.Client
    url: str
    log: Path


def embed(service: Service, texts: list[str], model: str = "use-v3", **options: object) -> np.ndarray:
    """Vectors through the proxy, one row a text."""
    reply = service.client.post("/v1/embeddings", json={"model": model, "input": texts, **options})
    assert reply.status_code == 200, reply.text
    data = reply.json()["data"]
    assert [row["index"] for row in data] == list(range(len(texts)))
    return np.array([row["embedding"] for row in data], dtype=np.float32)


def ask(service: Service, content: str, model: str = "extractive", **options: object) -> httpx.Response:
    """A chat with one user message."""
    messages = [{"role": "system", "content": "Cite."}, {"role": "user", "content": content}]
    return service.client.post("/v1/chat/completions", json={"model": model, "messages": messages, **options})


def streamed(reply: httpx.Response) -> list[dict[str, Any]]:
    """The events of a streamed answer but the last, which must be [DONE]."""
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]
