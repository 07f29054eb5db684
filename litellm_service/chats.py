"""Streamed chats, handed to LiteLLM's router without what its proxy does around a request.

A streamed chat takes LiteLLM's proxy some 35 ms of processor time. A fifth of that goes by, around its router, looking
for what is not there without a database: keys, teams and users, their limits, guardrails, prices for headers (and, at
every request, a module that its open edition does not have).

Router, deployment, adapter, the normal form of chunks and the translation of errors are LiteLLM's own, and every answer
goes through them. Only the plain good case comes here: a streamed chat with its usage, asked by the key's holder,
without options that our callers do not use. Everything else goes to LiteLLM's route as if this were not there. With a
database (virtual keys, their limits and logs) all requests do.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from litellm_service.direct import PASSED, Direct, again, has_key

PATHS = ("/v1/chat/completions", "/chat/completions")
_NEEDED = frozenset({"model", "messages", "stream", "stream_options"})
_KNOWN = _NEEDED | {"max_tokens", "temperature", "tools"}
"""A request with anything else wants something of LiteLLM's proxy."""
_FOR_LITELLM = (b"x-litellm", b"anthropic", b"langfuse", b"openai")
"""Beginnings of headers that LiteLLM's proxy acts upon."""
_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class Chat:
    """The ASGI application behind the route."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or hand it on as it came. Raises LiteLLM's ProxyException for a refusal."""
        request = Request(scope, receive)
        body = await request.body()
        asked = _read(body) if has_key(request) and _is_plain(request) else None
        if asked is None:
            scope[PASSED] = True
            await self._router(scope, again(body, receive), send)
            return
        answer = _Answer(asked, send)
        answering = asyncio.create_task(answer.stream())
        leaving = asyncio.create_task(_until_gone(receive))
        try:
            # Who hangs up has cancelled: the provider is not to go on for nobody.
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not answering.done():
                answering.cancel()
                with suppress(asyncio.CancelledError):
                    await answering
        error = None if answering.cancelled() else answering.exception()
        if error is not None:
            await answer.fail(error)


class _Answer:
    """One answer on its way out."""

    def __init__(self, asked: dict[str, Any], send: Send) -> None:
        self._asked = asked
        self._send = send
        self._begun = False

    async def stream(self) -> None:
        """Ask the router and send what comes, as server-sent events."""
        from litellm.proxy import proxy_server  # late: it takes ten seconds and reads the environment

        from litellm_service.hooks import whole_streams  # late: it imports litellm

        model = self._asked["model"]
        stream = await proxy_server.llm_router.acompletion(**self._asked)
        try:
            async for chunk in whole_streams.async_post_call_streaming_iterator_hook(None, stream, self._asked):
                chunk.model = model  # the name that was asked for, as LiteLLM's proxy does it
                piece = proxy_server._serialize_streaming_chunk(chunk)
                await self._tell(proxy_server._format_streaming_sse_chunk(piece))
        finally:
            await stream.aclose()
        await self._tell(b"data: [DONE]\n\n", last=True)

    async def fail(self, error: BaseException) -> None:
        """An answer that had begun ends with the error; else raises what LiteLLM makes of it, for its handlers."""
        from litellm._logging import verbose_proxy_logger
        from litellm.proxy import proxy_server
        from litellm.proxy._types import ProxyException, UserAPIKeyAuth
        from litellm.proxy.common_request_processing import ProxyBaseLLMRequestProcessing

        if not self._begun:
            await ProxyBaseLLMRequestProcessing(data=self._asked).handle_llm_api_exception(
                e=error, user_api_key_dict=UserAPIKeyAuth(), proxy_logging_obj=proxy_server.proxy_logging_obj
            )
        verbose_proxy_logger.error("a streamed answer broke off", exc_info=error)
        # As LiteLLM's own generator of streams tells it (proxy_server.async_data_generator).
        told = ProxyException(
            message=getattr(error, "message", str(error)),
            type=getattr(error, "type", "None"),
            param=getattr(error, "param", "None"),
            code=getattr(error, "status_code", 500),
        )
        await self._tell(f"data: {json.dumps({'error': told.to_dict()})}\n\n", last=True)

    async def _tell(self, event: str | bytes, *, last: bool = False) -> None:
        if not self._begun:
            self._begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        body = event.encode() if isinstance(event, str) else event
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _is_plain(request: Request) -> bool:
    return not any(name.startswith(_FOR_LITELLM) for name, _ in request.headers.raw)


def _read(body: bytes) -> dict[str, Any] | None:
    """The request; None when it is not for us."""
    from litellm.proxy import proxy_server  # late: see `_Answer.stream`

    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(asked, dict) or not _NEEDED <= asked.keys() <= _KNOWN:
        return None
    if asked["stream"] is not True or asked["stream_options"] != {"include_usage": True}:
        return None
    messages, router = asked["messages"], proxy_server.llm_router
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        return None
    if router is None or not isinstance(asked["model"], str) or asked["model"] not in router.model_names:
        return None
    return asked


def install(app: Any) -> None:
    """Put the routes in front of those of LiteLLM's application; none where LiteLLM has keys of its own to check."""
    if "DATABASE_URL" not in os.environ:
        app.router.routes[:0] = [Direct(path, Chat(app.router)) for path in PATHS]
