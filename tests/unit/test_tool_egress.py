"""The allow list of the HTTP tool: what falls under an entry, and whether a request could carry anything out."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from shared.errors import PermanentError
from shared.fetching.addresses import allowance, check_url
from shared.tools.arguments import HttpArguments
from shared.tools.catalogue import TOOLS
from shared.tools.egress import Endpoint, HttpSettings

SETTINGS = HttpSettings(
    allow=(
        Endpoint(url="https://API.example.com:443/status"),
        Endpoint(url="https://crm.example.com/orders/*", methods=("GET", "PATCH")),
        Endpoint(url="https://crm.example.com/find?q=*"),
        Endpoint(url="https://bare.example.com"),
        Endpoint(url="https://other.example.com:8443/"),
    )
)


def entry(url: str, method: str = "GET") -> str:
    """The entry a request falls under, or nothing."""
    try:
        target = check_url(url, allowance("other.example.com:8443"))
        return SETTINGS.endpoint(method, target).url
    except PermanentError as error:
        assert error.reason in ("destination-not-allowed", "url-not-allowed")  # noqa: PT017 # both are refusals
        return ""


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com/status",
        "https://API.EXAMPLE.com.:443/status#x",
        "https://crm.example.com/orders/17",
        "https://crm.example.com/orders/17/lines?all=1",
        "https://crm.example.com/find?q=anything&else=1",
        "https://bare.example.com/",
        "https://bare.example.com",
        "https://other.example.com:8443/",
    ],
)
def test_what_is_allowed_is_found(url: str) -> None:
    """In any spelling that means the same address."""
    assert entry(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/status",
        "https://api.example.com:8443/status",
        "https://api.example.com/status/",
        "https://api.example.com/statusx",
        "https://api.example.com/status?x=1",
        "https://api.example.com.evil.example/status",
        "https://evil.example/https://api.example.com/status",
        "https://api.example.com@evil.example/status",
        "https://crm.example.com/orders",
        "https://crm.example.com/ordersx/1",
        "https://crm.example.com/orders/../admin",
        "https://crm.example.com/orders/./1",
        "https://crm.example.com/orders/%2e%2E/admin",
        "https://crm.example.com/orders/..%2fadmin",
        "https://crm.example.com/orders/%252e%252e/admin",
        "https://crm.example.com/orders/..;/admin",
        "https://crm.example.com/find?x=1&q=2",
        "https://crm.example.com/find",
        "https://other.example.com/",
    ],
)
def test_what_is_not_named_is_refused(url: str) -> None:
    """Another scheme, port, host or path, or a way around."""
    assert entry(url) == ""


def test_methods_are_part_of_an_entry() -> None:
    """GET is allowed alone where nothing else is said."""
    assert entry("https://api.example.com/status", "POST") == ""
    assert entry("https://crm.example.com/orders/1", "PATCH")
    assert entry("https://crm.example.com/orders/1", "DELETE") == ""


def test_only_a_whole_address_without_a_body_carries_nothing() -> None:
    """What the model may fill in may be anything it has read."""
    whole, begun = SETTINGS.allow[0], SETTINGS.allow[1]
    assert whole.fixed("")
    assert not whole.fixed("x")
    assert not begun.fixed("")


@pytest.mark.parametrize(
    "url",
    [
        "https://*/",
        "https://*.example.com/",
        "https://example.com*",
        "https://example.com/a*",
        "https://example.com/a/*/b",
        "https://user@example.com/",
        "https://example.com/#x",
        "https://bücher.example/",
        "https://example.com/a b",
        "https://example.com/../a",
        "ftp://example.com/",
        "example.com/a",
        "",
    ],
)
def test_an_entry_that_means_more_than_it_says_is_refused(url: str) -> None:
    """At the time of setting, not of calling."""
    with pytest.raises(ValidationError):
        Endpoint(url=url)


def test_every_tool_has_a_schema_that_models_take() -> None:
    """OpenAI's function format: a name, a purpose, an object without further properties, no titles."""
    for tool in TOOLS.values():
        function = tool.schema()["function"]
        assert function["name"].isidentifier()
        assert 0 < len(function["description"]) < 300
        assert function["parameters"]["type"] == "object"
        assert function["parameters"]["additionalProperties"] is False
        assert "title" not in function["parameters"]
        assert all("title" not in part for part in function["parameters"]["properties"].values())
    assert "headers" not in HttpArguments.model_fields
