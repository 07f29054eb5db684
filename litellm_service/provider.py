"""The bundled models as a LiteLLM provider: `noesis/use-v3`, `noesis/e5-small` and `noesis/extractive`."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from litellm import CustomLLM, ModelResponse
from litellm.llms.custom_llm import CustomLLMError
from litellm.types.utils import ChatCompletionUsageBlock, EmbeddingResponse, GenericStreamingChunk, Usage

from litellm_service import extractive, vectors

EXTRACTIVE = "extractive"
EMBEDDINGS = ("use-v3", "e5-small")
# Words in one chunk of a streamed answer.
_CHUNK_WORDS = 6
_WORDS = re.compile(r"\S+\s*|\s+")


class InvalidRequest(CustomLLMError):  # type: ignore[misc]
    """The request cannot be served as it is: HTTP 400, the message says why."""

    def __init__(self, message: str) -> None:
        super().__init__(status_code=400, message=message)


class BundledModels(CustomLLM):  # type: ignore[misc]
    """What LiteLLM calls; the parameters that are not used here arrive in `kwargs`."""

    def __init__(self) -> None:
        super().__init__()
        # Answers wait for vectors, so they need threads of their own.
        self._answers = ThreadPoolExecutor(vectors.processors(), thread_name_prefix=EXTRACTIVE)

    def completion(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """Answer a chat and block until it is there."""
        messages = _chat_messages(kwargs)
        return _filled(
            kwargs["model_response"], kwargs["model"], messages, extractive.answer(messages, sentence_vectors())
        )

    async def acompletion(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """Answer a chat."""
        messages = _chat_messages(kwargs)
        return _filled(kwargs["model_response"], kwargs["model"], messages, await self._answer(messages))

    def streaming(self, *args: Any, **kwargs: Any) -> Iterator[GenericStreamingChunk]:
        """Answer a chat in several pieces and block for each."""
        messages = _chat_messages(kwargs)
        yield from _chunks(messages, extractive.answer(messages, sentence_vectors()))

    async def astreaming(self, *args: Any, **kwargs: Any) -> AsyncIterator[GenericStreamingChunk]:
        """Answer a chat in several pieces."""
        messages = _chat_messages(kwargs)
        for chunk in _chunks(messages, await self._answer(messages)):
            yield chunk

    def embedding(self, *args: Any, **kwargs: Any) -> EmbeddingResponse:
        """Embed texts and block until the vectors are there."""
        texts, input_type = _embedding_request(kwargs)
        found = vectors.model(kwargs["model"]).encode(texts, input_type)
        return _embedded(kwargs["model_response"], kwargs["model"], texts, found, _asked(kwargs))

    async def aembedding(self, *args: Any, **kwargs: Any) -> EmbeddingResponse:
        """Embed texts."""
        texts, input_type = _embedding_request(kwargs)
        found = await vectors.embed(kwargs["model"], texts, input_type)
        return _embedded(kwargs["model_response"], kwargs["model"], texts, found, _asked(kwargs))

    async def _answer(self, messages: Sequence[dict[str, Any]]) -> str:
        def work() -> str:
            return extractive.answer(messages, sentence_vectors())

        return await asyncio.get_running_loop().run_in_executor(self._answers, work)


@cache
def sentence_vectors() -> vectors.SentenceVectors:
    """The one memory of sentences' vectors: what was re-ranked is quoted from without encoding it again."""
    return vectors.SentenceVectors(vectors.model("use-v3"))


def _chat_messages(kwargs: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of a chat request to the extractive answerer, or InvalidRequest."""
    if kwargs["model"] != EXTRACTIVE:
        raise InvalidRequest(f"{kwargs['model']} is no chat model")
    messages: list[dict[str, Any]] = kwargs["messages"]
    return messages


def _asked(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The options of an embedding request; LiteLLM drops OpenAI's own before it calls a custom provider."""
    request = (kwargs.get("litellm_params") or {}).get("proxy_server_request") or {}
    body = request.get("body") or {}
    asked: dict[str, Any] = {name: body[name] for name in ("dimensions", "encoding_format") if name in body}
    asked.update(kwargs["optional_params"])
    return asked


def _embedding_request(kwargs: dict[str, Any]) -> tuple[list[str], vectors.InputType]:
    return read_embedding_request(kwargs["model"], kwargs["input"], _asked(kwargs))


def read_embedding_request(name: str, given: Any, options: Mapping[str, Any]) -> tuple[list[str], vectors.InputType]:
    """Texts and input type of an embedding request, or InvalidRequest."""
    if name not in EMBEDDINGS:
        raise InvalidRequest(f"{name} is no embedding model")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest("input must be a string or a list of strings with at least one (tokens are not taken)")
    if len(texts) > vectors.MAX_TEXTS:
        raise InvalidRequest(f"{len(texts)} texts in one request; at most {vectors.MAX_TEXTS}")
    if max(map(len, texts)) > vectors.MAX_TEXT_CHARS or sum(map(len, texts)) > vectors.MAX_REQUEST_CHARS:
        raise InvalidRequest(
            f"a text may have {vectors.MAX_TEXT_CHARS} characters, a request {vectors.MAX_REQUEST_CHARS}"
        )
    dimensions = vectors.DIMENSIONS[name]
    if options.get("dimensions") not in (None, dimensions):
        raise InvalidRequest(f"{name} has {dimensions} dimensions, not {options['dimensions']}")
    if options.get("input_type") not in (None, "query", "passage"):
        raise InvalidRequest("input_type must be query or passage")
    return texts, "query" if options.get("input_type") == "query" else "passage"


def rows(found: vectors.Vectors, as_base64: bool) -> list[dict[str, Any]]:
    """OpenAI's form of vectors: lists of numbers, or float32 in base64 when asked for (a quarter of the bytes)."""
    return [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode() if as_base64 else row.tolist(),
        }
        for index, row in enumerate(found)
    ]


def _embedded(
    response: EmbeddingResponse, name: str, texts: list[str], found: vectors.Vectors, options: dict[str, Any]
) -> EmbeddingResponse:
    response.model = name
    response.data = rows(found, options.get("encoding_format") == "base64")
    tokens = vectors.estimated_tokens(texts)
    response.usage = Usage(prompt_tokens=tokens, completion_tokens=0, total_tokens=tokens)
    return response


def _usage(messages: Sequence[dict[str, Any]], answer: str) -> ChatCompletionUsageBlock:
    asked = sum(vectors.estimated_tokens([str(message.get("content") or "")]) for message in messages)
    answered = vectors.estimated_tokens([answer])
    return ChatCompletionUsageBlock(prompt_tokens=asked, completion_tokens=answered, total_tokens=asked + answered)


def _filled(response: ModelResponse, name: str, messages: Sequence[dict[str, Any]], answer: str) -> ModelResponse:
    response.model = name
    response.choices[0].message.content = answer
    response.choices[0].finish_reason = "stop"
    response.usage = Usage(**_usage(messages, answer))
    return response


def _chunks(messages: Sequence[dict[str, Any]], answer: str) -> Iterator[GenericStreamingChunk]:
    """The answer in groups of words, then an empty chunk with the usage."""
    words = _WORDS.findall(answer)
    for start in range(0, len(words), _CHUNK_WORDS):
        yield _chunk("".join(words[start : start + _CHUNK_WORDS]), None)
    yield _chunk("", _usage(messages, answer))


def _chunk(text: str, usage: ChatCompletionUsageBlock | None) -> GenericStreamingChunk:
    return GenericStreamingChunk(
        text=text,
        is_finished=usage is not None,
        finish_reason="stop" if usage is not None else "",
        usage=usage,
        index=0,
        tool_use=None,
    )


bundled_models = BundledModels()
