"""Under which names what we know travels: OpenTelemetry's conventions for GenAI, and Langfuse's own names. Pure.

Sources: https://opentelemetry.io/docs/specs/semconv/gen-ai/ and
https://langfuse.com/integrations/native/opentelemetry (property mapping; the names are those of its Python SDK 5.0.4).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from shared.masking import Mask

CONTENT = frozenset({"input", "output"})
"""Attributes that carry texts: only where the policy says so, and masked."""

CONTENT_LIMIT = 32_000
"""Characters of one text in a span: a prompt with its passages."""

_NAMES: dict[str, tuple[str, ...]] = {
    "tenant_id": ("noesis.tenant_id", "langfuse.trace.metadata.tenant_id"),
    "trace_name": ("langfuse.trace.name",),
    "member_id": ("user.id",),
    "conversation_id": ("session.id", "gen_ai.conversation.id"),
    "observation": ("langfuse.observation.type",),
    "operation": ("gen_ai.operation.name",),
    "provider": ("gen_ai.provider.name",),
    "model": ("gen_ai.request.model", "langfuse.observation.model.name"),
    "input_tokens": ("gen_ai.usage.input_tokens",),
    "output_tokens": ("gen_ai.usage.output_tokens",),
    "cost_eur": ("noesis.cost_eur",),
    "prompt_version": ("noesis.prompt_version",),
    "tool": ("gen_ai.tool.name",),
    "input": ("langfuse.observation.input",),
    "output": ("langfuse.observation.output",),
    "error": ("error.type", "langfuse.observation.status_message"),
    "subscription": ("messaging.destination.subscription.name",),
    "topic": ("messaging.destination.name",),
    "message_id": ("messaging.message.id",),
    "messages": ("messaging.batch.message_count",),
    "method": ("http.request.method",),
    "route": ("http.route",),
    "status": ("http.response.status_code",),
}
_PROMPT = re.compile(r"(.+?)-(\d+)(?::[0-9a-f]+)?")


def wire_attributes(attributes: Mapping[str, Any], error: str, mask: Mask, *, content: bool) -> dict[str, Any]:
    """The attributes of a span as they leave: renamed, texts masked, content left out unless it is wanted.

    Values are str, int, float, bool or lists of str. What has no name of its own becomes `noesis.<name>`.
    """
    wired: dict[str, Any] = {}
    for name, value in {**attributes, **({"error": error, "level": "ERROR"} if error else {})}.items():
        if name in CONTENT and not content:
            continue
        plain = _text(value, mask) if name in CONTENT else _plain(value, mask)
        for key in _NAMES.get(name, ("langfuse.observation.level" if name == "level" else f"noesis.{name}",)):
            wired[key] = plain
    wired |= _usage(attributes)
    if (prompt := _PROMPT.fullmatch(str(attributes.get("prompt_version", "")))) is not None:
        wired |= {"langfuse.observation.prompt.name": prompt[1], "langfuse.observation.prompt.version": int(prompt[2])}
    return wired


def _usage(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Langfuse sums up what stands in these two; it has no currency, so costs there are EUR (docs/privacy.md)."""
    tokens = {
        part: attributes[name]
        for part, name in (("input", "input_tokens"), ("output", "output_tokens"))
        if name in attributes
    }
    usage = {"langfuse.observation.usage_details": json.dumps(tokens)} if tokens else {}
    if "cost_eur" in attributes:
        usage["langfuse.observation.cost_details"] = json.dumps({"total": float(attributes["cost_eur"])})
    return usage


def _text(value: Any, mask: Mask) -> str:
    """A text, or messages as JSON with each text masked by itself."""

    def masked(part: Any) -> Any:
        if isinstance(part, str):
            return mask(part, limit=CONTENT_LIMIT)
        if isinstance(part, list | tuple):
            return [masked(item) for item in part]
        if isinstance(part, Mapping):
            return {str(name): masked(item) for name, item in part.items()}
        return part if isinstance(part, bool | int | float) or part is None else mask(str(part))

    found = masked(value)
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _plain(value: Any, mask: Mask) -> Any:
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return [mask(item) for item in value[:100]]
    if isinstance(value, dict | list | tuple):
        return mask(json.dumps(value, ensure_ascii=False, default=str))
    return mask(str(value))
