"""Embeddings of the bundled models, answered by this process before LiteLLM's own route sees them.

LiteLLM spends some 12 ms of processor time on a request (routing, callbacks, cost, logs), as much as the model does on
a question. For a model in the same process, which costs nothing and has no provider, there is nothing to route, to
count or to log. Only the plain good case is answered here: everything else, also what is to be refused, goes to
LiteLLM as if this were not there. With a database (virtual keys, their limits and logs) all requests do.
"""

from __future__ import annotations

import hmac
import json
import os
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from litellm_service import provider, vectors

PATHS = ("/v1/embeddings", "/embeddings")
_KNOWN = frozenset({"model", "input", "input_type", "encoding_format", "dimensions"})
"""A request with anything else wants something of LiteLLM."""
PASSED = "noesis.passed"
"""Marks a request that was handed on."""


class Direct(Route):
    """Matches a request once: what it does not answer is routed again, to what comes after it."""

    def __init__(self, path: str, answer: ASGIApp) -> None:
        super().__init__(path, answer, methods=["POST"])

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As every route; nothing the second time."""
        return (Match.NONE, {}) if PASSED in scope else super().matches(scope)


class Answer:
    """The ASGI application behind `Direct`."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or hand it on as it came."""
        request = Request(scope, receive)
        body = await request.body()
        wanted = _read(body) if has_key(request) else None
        if wanted is None:
            scope[PASSED] = True
            await self._router(scope, again(body, receive), send)
            return
        name, texts, input_type, as_base64 = wanted
        found = await vectors.embed(name, texts, input_type)
        answer = {"object": "list", "model": name, "data": provider.rows(found, as_base64), "usage": _usage(texts)}
        await Response(json.dumps(answer), media_type="application/json")(scope, receive, send)


def routes(router: Router) -> list[Route]:
    """What is to come before LiteLLM's own routes; nothing where LiteLLM has keys of its own to check."""
    return [] if "DATABASE_URL" in os.environ else [Direct(path, Answer(router)) for path in PATHS]


def has_key(request: Request) -> bool:
    """Whether the request carries the proxy's key."""
    expected = f"Bearer {os.environ.get('LITELLM_MASTER_KEY', '')}"
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _read(body: bytes) -> tuple[str, list[str], vectors.InputType, bool] | None:
    """Model, texts, what they are, and whether base64 is wanted; None when it is not for us."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(asked, dict) or not asked.keys() <= _KNOWN or asked.get("model") not in provider.EMBEDDINGS:
        return None
    try:
        texts, input_type = provider.read_embedding_request(asked["model"], asked.get("input"), asked)
    except provider.InvalidRequest:
        return None
    return asked["model"], texts, input_type, asked.get("encoding_format") == "base64"


def _usage(texts: list[str]) -> dict[str, int]:
    tokens = vectors.estimated_tokens(texts)
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def again(body: bytes, receive: Receive) -> Receive:
    """The body once more, then whatever else arrives (that the client has gone)."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again


def install(app: Any) -> None:
    """Put the routes in front of those of LiteLLM's application."""
    router = cast("Router", app.router)
    router.routes[:0] = routes(router)
