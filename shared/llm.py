"""Models, always through the LiteLLM proxy: embed texts, chat with streaming. The only module that talks to it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Protocol

import httpx

from shared import tracing
from shared.completions import ChatReply, Completion, CutOff, ToolCall, filtered, garbled, is_filtered, server_sent
from shared.embeddings import Embedded, UnusableVectors, embedded, read_vectors
from shared.errors import PermanentError, Postponed, TooSlow, TransientError
from shared.rerankings import Reranked, reranked
from shared.settings import Settings

InputType = Literal["query", "passage"]

TIMEOUT = httpx.Timeout(110, connect=5)
"""Seconds between two signs of life; the longest silence we bear."""

CHAT_SECONDS = 110
"""The longest answer: a node of the agent ends within 120 s (REQUIREMENTS section 2), also with a silent model."""

EMBED_SECONDS = 180
"""The longest embedding request, for the same reason; with the silence before it still below the ledger's lease."""

RERANK_SECONDS = 10
"""The longest re-ranking: an improvement that somebody waits for, and can go without."""

ANSWER_BYTES = 64 * 1024 * 1024
"""More than 512 vectors of 4,000 numbers need; a body without an end must not fill the memory."""

WAIT_DEFAULT = timedelta(seconds=30)
WAIT_LONGEST = timedelta(days=1)
"""A provider's daily limit is over by then; a longer Retry-After is a mistake."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a chat model can do: `writes` sentences of its own (rewrite a question, answer in another language), or
    only quotes; and calls `tools`."""

    writes: bool = False
    tools: bool = False


class Models(Protocol):
    """What we ask of models. The twin for tests is `shared.fakes.FakeModels`."""

    def embed_counted(
        self,
        texts: Sequence[str],
        *,
        model: str,
        dimension: int,
        input_type: InputType,
        seconds: float | None = None,
    ) -> Embedded:
        """One vector a text, in order, with the tokens they cost; `seconds` is the longest that may take."""

    def embed(
        self,
        texts: Sequence[str],
        *,
        model: str,
        dimension: int,
        input_type: InputType,
        seconds: float | None = None,
    ) -> list[list[float]]:
        """One vector a text, in order."""

    def rerank(self, question: str, documents: Sequence[str], *, model: str) -> Reranked:
        """How relevant each document is to the question, in the order of the documents."""

    def chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] = (),
        max_tokens: int | None = None,
    ) -> Iterator[str | ChatReply]:
        """The answer piece by piece, then the ChatReply; messages and tools as OpenAI's chat completions have them.

        A piece of a tool call is an empty text.
        """

    def abilities(self) -> Abilities:
        """What the configured chat model can do."""


class LiteLLM:
    """The proxy over HTTP, in OpenAI's wire format."""

    def __init__(
        self, settings: Settings, timeout: httpx.Timeout | None = None, embed_seconds: float = EMBED_SECONDS
    ) -> None:
        self._settings = settings
        self._embed_seconds = embed_seconds
        self._abilities: Abilities | None = None
        self._http = httpx.Client(
            base_url=settings.litellm_url,
            headers={"Authorization": f"Bearer {settings.model_api_key()}"},
            timeout=timeout or TIMEOUT,
            # As many are kept as may be open: one made anew for every call costs both sides a millisecond of CPU.
            limits=httpx.Limits(max_connections=20, max_keepalive_connections=20),
        )

    def close(self) -> None:
        """Give the connections back; for processes that go on without it (tests)."""
        self._http.close()

    def embed(
        self,
        texts: Sequence[str],
        *,
        model: str,
        dimension: int,
        input_type: InputType,
        seconds: float | None = None,
    ) -> list[list[float]]:
        """One vector a text, in order; raises like `embed_counted`."""
        return self.embed_counted(
            texts, model=model, dimension=dimension, input_type=input_type, seconds=seconds
        ).vectors

    def embed_counted(
        self,
        texts: Sequence[str],
        *,
        model: str,
        dimension: int,
        input_type: InputType,
        seconds: float | None = None,
    ) -> Embedded:
        """One vector a text, in order, with the tokens they cost.

        Raises PermanentError `model-refused`, UnusableVectors (other count, dimension, NaN), Postponed when the
        provider asks for time, TooSlow, and TransientError when the proxy cannot be reached or talks nonsense.
        """
        # base64 where the proxy can (input_types.for_provider): numbers in JSON cost it more than a request does.
        body: dict[str, Any] = {"model": model, "input": list(texts), "encoding_format": "base64"}
        body["input_type"] = input_type
        # The address belongs to EMBEDDINGS_MODEL; another space's model is where its provider is.
        if self._settings.embeddings_api_base and model == self._settings.embeddings_model:
            body["api_base"] = self._settings.embeddings_api_base
        longest = min(self._embed_seconds, seconds or self._embed_seconds)
        deadline = time.monotonic() + longest
        # Vectors are noise: the proxy would spend a millisecond a vector on packing what hardly gets smaller.
        headers = _trace_headers() | {"Accept-Encoding": "identity"}
        wait = self._http.timeout if seconds is None else httpx.Timeout(longest, connect=min(5, longest))
        with (
            _transport_errors(),
            self._http.stream("POST", "/v1/embeddings", json=body, headers=headers, timeout=wait) as response,
        ):
            answer = _json(_read(response, deadline))
        return embedded(answer, len(texts), dimension)

    def rerank(self, question: str, documents: Sequence[str], *, model: str) -> Reranked:
        """How relevant each document is to the question, in the order of the documents; larger is better.

        Raises UnusableRanking (other count, foreign index, NaN), and what `embed_counted` raises besides.
        """
        body = {"model": model, "query": question, "documents": list(documents), "return_documents": False}
        deadline = time.monotonic() + RERANK_SECONDS
        with (
            _transport_errors(),
            self._http.stream(
                "POST", "/rerank", json=body, headers=_trace_headers(), timeout=httpx.Timeout(RERANK_SECONDS, connect=5)
            ) as response,
        ):
            answer = _json(_read(response, deadline))
        return reranked(answer, len(documents))

    def chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] = (),
        max_tokens: int | None = None,
    ) -> Iterator[str | ChatReply]:
        """The answer piece by piece, then the ChatReply; a piece of a tool call is an empty text.

        Raises like `embed_counted`, PermanentError `content-filtered`, and CutOff when an answer that had begun ends
        in the middle or takes longer than CHAT_SECONDS.
        """
        settings = self._settings
        body: dict[str, Any] = {
            "model": settings.chat_model,
            "messages": list(messages),
            "max_tokens": max_tokens or settings.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if tools:
            body["tools"] = list(tools)
        completion = Completion()
        began = False
        deadline = time.monotonic() + CHAT_SECONDS
        try:
            with (
                _transport_errors(),
                self._http.stream("POST", "/v1/chat/completions", json=body, headers=_trace_headers()) as response,
                _ending(response, deadline),
            ):
                _check(response, b"" if response.status_code == 200 else response.read())
                began = True
                for event in server_sent(_until(deadline, response.iter_bytes())):
                    # Also what says nothing: whoever waits for a long tool call must be able to look up.
                    if (piece := completion.read(event)) or completion.calling:
                        yield piece
            reply = completion.reply(settings.chat_model)
        except TransientError as error:
            if not began:
                raise
            late = time.monotonic() > deadline
            detail = f"the model's answer took longer than {CHAT_SECONDS} s" if late else str(error)
            raise CutOff(detail, *completion.counted, completion.written) from error
        yield reply

    def abilities(self) -> Abilities:
        """What the configured chat model can do: by CHAT_ABILITIES, else as the proxy knows the model.

        A model that LiteLLM's map does not know writes but is given no tools, until the setting says otherwise.
        Raises TransientError when the proxy does not answer.
        """
        settings = self._settings
        if settings.chat_abilities != "auto":
            return ABILITIES[settings.chat_abilities]
        if settings.chat_model == "extractive":
            return ABILITIES["quotes"]
        if self._abilities is None:
            with _transport_errors():
                response = self._http.get("/v1/model/info", timeout=10)
            _check(response, response.content)
            self._abilities = ABILITIES["tools" if _calls_tools(response, settings.chat_model) else "writes"]
        return self._abilities


ABILITIES = {"quotes": Abilities(), "writes": Abilities(True), "tools": Abilities(True, True)}


def _calls_tools(response: httpx.Response, model: str) -> bool:
    """Whether the proxy knows the model as one that calls functions (LiteLLM's model_info)."""
    known = _json(response.content)
    rows = known.get("data") if isinstance(known, dict) else None
    return any(
        isinstance(row, dict)
        and row.get("model_name") == model
        and bool((row.get("model_info") or {}).get("supports_function_calling"))
        for row in rows or ()
    )


def _read(response: httpx.Response, deadline: float) -> bytes:
    """The body of an answer that has to be there, whole, by the deadline (time.monotonic). Raises like `_check`."""
    body = bytearray()
    for piece in response.iter_bytes():
        body += piece
        if len(body) > ANSWER_BYTES:
            raise garbled()
        if time.monotonic() > deadline:
            raise TooSlow("the model's answer came too slowly")
    _check(response, bytes(body))
    return bytes(body)


def _until(deadline: float, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        if time.monotonic() > deadline:
            raise TransientError(f"the model's answer took longer than {CHAT_SECONDS} s")
        yield piece


@contextmanager
def _ending(response: httpx.Response, deadline: float) -> Iterator[None]:
    """Cut the connection at the deadline, also while the model is silent: a read would wait for TIMEOUT again."""

    def cut() -> None:
        stream = response.extensions.get("network_stream")
        raw = stream.get_extra_info("socket") if stream is not None else None
        if raw is not None:
            with suppress(OSError):  # it may be closed by now
                raw.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _trace_headers() -> dict[str, str]:
    traceparent = tracing.current("traceparent")
    return {"traceparent": traceparent} if traceparent else {}


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise garbled() from None


def _check(response: httpx.Response, body: bytes) -> None:
    status = response.status_code
    if status == 200:
        return
    if status in (429, 503, 529):
        raise Postponed(datetime.now(UTC) + retry_after(response), "the model provider asks for time")
    if status in (400, 404, 413, 422):
        if is_filtered(_error_of(body)):
            raise filtered()
        raise PermanentError(
            "model-refused",
            f"The model refused the request (HTTP {status}).",
            "Check CHAT_MODEL and EMBEDDINGS_MODEL, and that the text fits the model.",
        )
    if status in (408, 504):  # the proxy's own patience with the provider
        raise TooSlow(f"the model proxy answers HTTP {status}")
    # 401 and 403 too: a wrong key is ours to mend, and no document is to blame for it.
    raise TransientError(f"the model proxy answers HTTP {status}")


def _error_of(body: bytes) -> Any:
    """The error object of a refusal, as far as there is one."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return told.get("error") if isinstance(told, dict) else None


def retry_after(response: httpx.Response) -> timedelta:
    """How long the provider wants us to wait: Retry-After in seconds or as a date (RFC 9110, 10.2.3), capped.

    LiteLLM hands a provider's headers on under a prefix (get_response_headers in its llm_response_utils).
    """
    headers = response.headers
    value = headers.get("retry-after") or headers.get("llm_provider-retry-after") or ""
    try:
        wait = timedelta(seconds=float(value))
    except (ValueError, OverflowError):
        try:
            wait = parsedate_to_datetime(value) - datetime.now(UTC)
        except (ValueError, TypeError, OverflowError):
            wait = WAIT_DEFAULT
    return min(max(wait, timedelta(seconds=1)), WAIT_LONGEST)


class _transport_errors:  # noqa: N801 # reads as a statement: `with _transport_errors():`
    """Whatever keeps us from the proxy is shared by everyone: TransientError."""

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, httpx.ReadTimeout):
            raise TooSlow(f"the model did not answer in time: {type(error).__name__}") from error
        if isinstance(error, httpx.RequestError):
            raise TransientError(f"the model proxy cannot be reached: {type(error).__name__}") from error


def make_models(settings: Settings) -> Models:
    """The models behind LITELLM_URL."""
    return LiteLLM(settings)


__all__ = [
    "Abilities",
    "ChatReply",
    "CutOff",
    "Embedded",
    "InputType",
    "LiteLLM",
    "Models",
    "ToolCall",
    "UnusableVectors",
    "make_models",
    "read_vectors",
    "retry_after",
]
