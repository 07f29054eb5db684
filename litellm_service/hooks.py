"""What happens to every request before LiteLLM sends it to a provider."""

from __future__ import annotations

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


input_types = InputTypes()
