"""Models, always through the LiteLLM proxy: embed texts, chat with streaming. The only module that talks to it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Protocol

import httpx

from shared import tracing
from shared.errors import PermanentError, Postponed, TransientError
from shared.settings import Settings

InputType = Literal["query", "passage"]

TIMEOUT = httpx.Timeout(120, connect=5)
"""Seconds between two signs of life; the longest silence we bear."""

CHAT_SECONDS = 300
"""The longest answer: a model that drips on for ever must not outlive the service's 540 s."""

EMBED_SECONDS = 180
"""The longest embedding request, for the same reason; with the silence before it still below the ledger's lease."""

ANSWER_BYTES = 64 * 1024 * 1024
"""More than 512 vectors of 4,000 numbers need; a body without an end must not fill the memory."""

WAIT_DEFAULT = timedelta(seconds=30)
WAIT_LONGEST = timedelta(days=1)
"""A provider's daily limit is over by then; a longer Retry-After is a mistake."""


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A complete answer with what it cost; tokens as the provider counted them."""

    text: str
    model: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Embedded:
    """One vector a text, in order, and the tokens the provider counted (0: it did not say)."""

    vectors: list[list[float]]
    tokens: int


class UnusableVectors(PermanentError):
    """An answer that came, and is paid for (`tokens`), but cannot be stored: other count, dimension, NaN."""

    def __init__(self, detail: object, tokens: int) -> None:
        super().__init__(
            "wrong-vectors",
            f"The embedding model answered with something unusable: {detail}.",
            "Check EMBEDDINGS_MODEL and EMBEDDINGS_DIM against the model.",
        )
        self.tokens = tokens


class Models(Protocol):
    """What we ask of models. The twin for tests is `shared.fakes.FakeModels`."""

    def embed_counted(self, texts: Sequence[str], *, model: str, dimension: int, input_type: InputType) -> Embedded:
        """One vector a text, in order, with the tokens they cost."""

    def embed(self, texts: Sequence[str], *, model: str, dimension: int, input_type: InputType) -> list[list[float]]:
        """One vector a text, in order."""

    def chat(self, messages: Sequence[dict[str, str]]) -> Iterator[str | ChatReply]:
        """The answer piece by piece, then the ChatReply."""


class LiteLLM:
    """The proxy over HTTP, in OpenAI's wire format."""

    def __init__(
        self, settings: Settings, timeout: httpx.Timeout | None = None, embed_seconds: float = EMBED_SECONDS
    ) -> None:
        self._settings = settings
        self._embed_seconds = embed_seconds
        self._http = httpx.Client(
            base_url=settings.litellm_url,
            headers={"Authorization": f"Bearer {settings.model_api_key()}"},
            timeout=timeout or TIMEOUT,
            limits=httpx.Limits(max_connections=20, max_keepalive_connections=4),
        )

    def embed(self, texts: Sequence[str], *, model: str, dimension: int, input_type: InputType) -> list[list[float]]:
        """One vector a text, in order; raises like `embed_counted`."""
        return self.embed_counted(texts, model=model, dimension=dimension, input_type=input_type).vectors

    def embed_counted(self, texts: Sequence[str], *, model: str, dimension: int, input_type: InputType) -> Embedded:
        """One vector a text, in order, with the tokens they cost.

        Raises PermanentError `model-refused`, UnusableVectors (other count, dimension, NaN), Postponed when the
        provider asks for time, TransientError when the proxy cannot be reached, is too slow or talks nonsense.
        """
        body: dict[str, Any] = {"model": model, "input": list(texts), "encoding_format": "float"}
        body["input_type"] = input_type
        if self._settings.embeddings_api_base:
            body["api_base"] = self._settings.embeddings_api_base
        deadline = time.monotonic() + self._embed_seconds
        with (
            _transport_errors(),
            self._http.stream("POST", "/v1/embeddings", json=body, headers=_trace_headers()) as response,
        ):
            answer = _json(_read(response, deadline))
        return _embedded(answer, len(texts), dimension)

    def chat(self, messages: Sequence[dict[str, str]]) -> Iterator[str | ChatReply]:
        """The answer piece by piece, then the ChatReply. Raises like `embed`; a cut stream is a TransientError."""
        settings = self._settings
        body = {
            "model": settings.chat_model,
            "messages": list(messages),
            "max_tokens": settings.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        pieces: list[str] = []
        usage: dict[str, Any] = {}
        finished = False
        with (
            _transport_errors(),
            self._http.stream("POST", "/v1/chat/completions", json=body, headers=_trace_headers()) as response,
        ):
            if response.status_code != 200:
                response.read()
            _check(response)
            for event in _server_sent(response, time.monotonic() + CHAT_SECONDS):
                piece, ended, counted = _read_event(event)
                finished = finished or ended
                usage = counted or usage
                if piece:
                    pieces.append(piece)
                    yield piece
        if not finished:
            raise TransientError("the model's answer was cut off")
        yield ChatReply(
            "".join(pieces),
            settings.chat_model,
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
        )


def read_vectors(answer: Any, count: int, dimension: int) -> list[list[float]]:
    """The vectors of an embeddings answer, put in order by `index` and checked one by one.

    A provider that returns too few, misnumbered, wrongly sized or non-finite vectors would silently spoil the index.
    """
    try:
        rows = sorted(answer["data"], key=lambda row: row["index"])
        if [row["index"] for row in rows] != list(range(count)):
            raise ValueError(f"{len(rows)} vectors for {count} texts")
        if not all(isinstance(row["embedding"], list) for row in rows):
            raise ValueError("a vector is not a list of numbers")
        vectors = [[float(x) for x in row["embedding"]] for row in rows]
        for vector in vectors:
            if len(vector) != dimension:
                raise ValueError(f"dimension {len(vector)} instead of {dimension}")
            if not all(map(math.isfinite, vector)):
                raise ValueError("a vector with NaN or infinity")
            if not any(vector):
                raise ValueError("a vector of zeros has no direction")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnusableVectors(error, 0) from None
    return vectors


def _embedded(answer: Any, count: int, dimension: int) -> Embedded:
    usage = answer.get("usage") if isinstance(answer, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    tokens = _count(usage.get("prompt_tokens")) or _count(usage.get("total_tokens"))
    try:
        return Embedded(read_vectors(answer, count, dimension), tokens)
    except UnusableVectors as error:
        error.tokens = tokens
        raise


def _read(response: httpx.Response, deadline: float) -> bytes:
    """The body of an answer that has to be there, whole, by the deadline (time.monotonic). Raises like `_check`."""
    body = bytearray()
    for piece in response.iter_bytes():
        body += piece
        if len(body) > ANSWER_BYTES:
            raise _garbled()
        if time.monotonic() > deadline:
            raise TransientError("the model's answer came too slowly")
    _check(response)
    return bytes(body)


def _server_sent(response: httpx.Response, deadline: float) -> Iterator[Any]:
    for line in response.iter_lines():
        if time.monotonic() > deadline:
            raise TransientError(f"the model's answer took longer than {CHAT_SECONDS} s")
        if not line.startswith("data:"):
            continue
        payload = line[5:].strip()
        if payload == "[DONE]":
            return
        try:
            event = json.loads(payload)
        except (ValueError, RecursionError):
            raise _garbled() from None
        if isinstance(event, dict) and "error" in event:
            raise TransientError("the model failed in the middle of its answer")
        yield event


def _read_event(event: Any) -> tuple[str, bool, dict[str, Any]]:
    """The text of a chunk, whether the answer is finished, and its usage; the wire format is the provider's word."""
    try:
        choices = event.get("choices") or ()
        piece = "".join((choice.get("delta") or {}).get("content") or "" for choice in choices)
        ended = any(choice.get("finish_reason") is not None for choice in choices)
        usage = event.get("usage") or {}
    except (AttributeError, TypeError):
        raise _garbled() from None
    return piece, ended, usage if isinstance(usage, dict) else {}


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _garbled() -> TransientError:
    return TransientError("the model's answer is garbled")


def _trace_headers() -> dict[str, str]:
    traceparent = tracing.current("traceparent")
    return {"traceparent": traceparent} if traceparent else {}


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise _garbled() from None


def _check(response: httpx.Response) -> None:
    status = response.status_code
    if status == 200:
        return
    if status in (429, 503, 529):
        raise Postponed(datetime.now(UTC) + retry_after(response), "the model provider asks for time")
    if status in (400, 404, 413, 422):
        raise PermanentError(
            "model-refused",
            f"The model refused the request (HTTP {status}).",
            "Check CHAT_MODEL and EMBEDDINGS_MODEL, and that the text fits the model.",
        )
    # 401 and 403 too: a wrong key is ours to mend, and no document is to blame for it.
    raise TransientError(f"the model proxy answers HTTP {status}")


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
        if isinstance(error, httpx.RequestError):
            raise TransientError(f"the model proxy cannot be reached: {type(error).__name__}") from error


def make_models(settings: Settings) -> Models:
    """The models behind LITELLM_URL."""
    return LiteLLM(settings)
