"""The HTTP tool: only where the tenant allows, with credentials that the model never sees."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from functions.agent.tooling.working import Found, Work
from shared.errors import PermanentError
from shared.fetching.addresses import Target, allowance, check_url
from shared.fetching.sending import Response, send
from shared.settings import Settings
from shared.tools.arguments import HttpArguments
from shared.tools.egress import SAFE, Endpoint, HttpSettings

ANSWER_BYTES = 256 * 1024
_TEXT = ("text/", "application/json", "application/xml", "application/problem+json")
SECRET_SHORTEST = 6
"""A shorter secret is not looked for in answers: too much else would look like it."""


def destination(arguments: HttpArguments, given: dict[str, Any], settings: Settings) -> tuple[Endpoint, Target]:
    """The allowed entry a request falls under. Raises PermanentError `destination-not-allowed`, FetchFailed."""
    target = check_url(arguments.url, allowance(settings.tool_hosts_allow))
    return HttpSettings.model_validate(given).endpoint(arguments.method, target), target


def repeatable(arguments: HttpArguments, endpoint: Endpoint) -> bool:
    """Whether a request of which nobody knows what it did may be sent again."""
    return arguments.method in SAFE or endpoint.repeatable


def request(arguments: HttpArguments, given: dict[str, Any], work: Work, key: str) -> Found:
    """Send the request; `key` is its Idempotency-Key (draft-ietf-httpapi-idempotency-key-header).

    Raises PermanentError `http-error` for an answer of 400 and more, and like `destination` and `sending.send`.
    """
    settings = work.services.settings
    endpoint, target = destination(arguments, given, settings)
    secrets = _secrets(endpoint, work.principal.tenant_slug, settings)
    headers = {name: secrets[secret] for name, secret in endpoint.headers.items()} | {"Idempotency-Key": key}
    body = arguments.body.encode()
    if body:
        headers["Content-Type"] = "application/json" if _is_json(arguments.body) else "text/plain; charset=utf-8"
    answer = send(
        target,
        arguments.method,
        headers,
        body,
        allowed=allowance(settings.tool_hosts_allow),
        seconds=work.deadline.left(),
        limit=ANSWER_BYTES,
    )
    told = f"HTTP {answer.status} {answer.media_type}\n{_shown(answer)}"
    for secret in secrets.values():
        # Some services repeat what they were sent, headers included, with or without their "Bearer".
        for part in sorted({secret, quote(secret, safe=""), *secret.split()}, key=len, reverse=True):
            told = told.replace(part, "[secret]") if len(part) >= SECRET_SHORTEST and part != "Bearer" else told
    if answer.status >= 400:
        raise PermanentError("http-error", told, "")
    return Found(told)


def _secrets(endpoint: Endpoint, slug: str, settings: Settings) -> dict[str, str]:
    """The values of an entry's secrets by name. One tenant's entry can only name secrets of that tenant."""
    found = {}
    for name in endpoint.headers.values():
        value = settings.tool_secrets.get(f"{slug}/{name}")
        if value is None:
            raise PermanentError(
                "tool-secret-missing", "A credential of this destination is not set.", "Have an operator set it."
            )
        found[name] = value.get_secret_value()
    return found


def _is_json(body: str) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def _shown(answer: Response) -> str:
    if 300 <= answer.status < 400:
        return "The service redirects; redirects are not followed."
    if not answer.media_type.startswith(_TEXT) and not answer.media_type.endswith(("+json", "+xml")):
        return f"({len(answer.body)} bytes that are not text)" if answer.body else ""
    return answer.body.decode("utf-8", "replace") + ("\n(cut)" if answer.cut else "")
