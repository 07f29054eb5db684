"""What happens to every request before LiteLLM sends it to a provider, and to every streamed answer on its way back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from litellm.integrations.custom_logger import CustomLogger

from litellm_service.input_types import for_provider


class InputTypes(CustomLogger):  # type: ignore[misc]
    """Translates `input_type` of embedding requests; see `input_types`."""

    async def async_pre_call_hook(
        self, user_api_key_dict: object, cache: object, data: dict[str, Any], call_type: str
    ) -> dict[str, Any] | None:
        """The request to go on with; None leaves it as it is."""
        return for_provider(data) if call_type in ("embedding", "embeddings", "aembedding") else None


class WholeStreams(CustomLogger):  # type: ignore[misc]
    """Tells an answer that broke off from one that ended.

    LiteLLM ends every stream with a `finish_reason`: where the provider sent none it writes "stop" itself
    (CustomStreamWrapper.finish_reason_handler), and half an answer looks whole. Only what the provider sent is among
    the chunks that it keeps.
    """

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: object, response: Any, request_data: dict[str, Any]
    ) -> AsyncIterator[Any]:
        """The chunks as they come; an error in place of an end that the provider did not send."""
        async for chunk in response:
            kept = getattr(response, "chunks", None)
            if _ends(chunk) and isinstance(kept, list) and not any(map(_ends, kept)):
                raise ConnectionError("the provider's answer broke off")
            yield chunk


def _ends(chunk: Any) -> bool:
    return any(getattr(choice, "finish_reason", None) for choice in getattr(chunk, "choices", None) or ())


input_types = InputTypes()
whole_streams = WholeStreams()
