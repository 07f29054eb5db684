"""What a provider calls the difference between a query and a passage, and in which form it gives vectors. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BUNDLED = ("use-v3", "e5-small")
# As the embedding references of the providers name them; for others the parameter is left out, because OpenAI and
# servers like it refuse what they do not know.
_NAMES: Mapping[str, Mapping[str, str]] = {
    "cohere": {"query": "search_query", "passage": "search_document"},
    "nvidia_nim": {"query": "query", "passage": "passage"},
    "voyage": {"query": "query", "passage": "document"},
}


def for_provider(request: Mapping[str, Any]) -> dict[str, Any]:
    """The body of an embedding request with `input_type` as its model's provider takes it, or without.

    Requests with `input_type` are ours: we read vectors as numbers and as base64, and ask for the latter. Of others
    than the bundled models we want numbers all the same: servers like OpenAI's refuse a format they do not know.
    """
    name, asked = str(request.get("model", "")), request.get("input_type")
    if asked is None or name in _BUNDLED:
        return dict(request)
    rest = {key: value for key, value in request.items() if key != "input_type"}
    if rest.get("encoding_format") == "base64":
        rest["encoding_format"] = "float"
    named = _NAMES.get(name.partition("/")[0], {}).get(str(asked))
    return rest | {"input_type": named} if named else rest
