"""Every tool the product knows: what it is for, its arguments, its effect, and how it is guarded by default.

A tool exists only here; a tenant's row in `core.tenant_tools` switches it, says who may use it and whether a person
must agree. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from shared.errors import PermanentError
from shared.tools.arguments import (
    Arguments,
    CalculateArguments,
    CompareArguments,
    DatesArguments,
    GetCaseArguments,
    HttpArguments,
    ListArguments,
    OpenArguments,
    SearchArguments,
    UpdateCaseArguments,
)

Effect = Literal["none", "read", "write", "external"]
"""`none` computes; `read` reads what its user may read; `write` changes the tenant's rows; `external` leaves us."""

Asking = Literal["always", "untrusted", "never"]
"""When a person must agree: always; as soon as anything but the member's own question is in the context; never."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool. `enabled` and `asking` hold where the tenant has said nothing."""

    name: str
    purpose: str
    arguments: type[Arguments]
    effect: Effect
    enabled: bool
    asking: Asking

    def schema(self, addition: str = "") -> dict[str, Any]:
        """The tool in the OpenAI format (https://platform.openai.com/docs/guides/function-calling)."""
        described = f"{self.purpose} {addition}".strip()
        parameters = _plain(self.arguments.model_json_schema())
        return {
            "type": "function",
            "function": {"name": self.name, "description": described, "parameters": parameters},
        }


def _plain(schema: Any) -> Any:
    """A JSON Schema without pydantic's titles, which cost tokens and say nothing."""
    if isinstance(schema, dict):
        return {
            key: ({name: _plain(part) for name, part in value.items()} if key == "properties" else _plain(value))
            for key, value in schema.items()
            if key != "title"
        }
    return [_plain(part) for part in schema] if isinstance(schema, list) else schema


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool("search", "Search the documents for passages.", SearchArguments, "read", True, "never"),
        Tool("list_documents", "List documents by title.", ListArguments, "read", True, "never"),
        Tool("open_document", "Read a document part by part.", OpenArguments, "read", True, "never"),
        Tool(
            "compare_versions",
            "Show what changed between versions of a document.",
            CompareArguments,
            "read",
            True,
            "never",
        ),
        Tool("calculate", "Calculate exactly with decimal numbers.", CalculateArguments, "none", True, "never"),
        Tool(
            "dates",
            "Weekdays, differences and sums of dates; no public holidays.",
            DatesArguments,
            "none",
            True,
            "never",
        ),
        Tool("get_case", "Read a case by its number.", GetCaseArguments, "read", False, "never"),
        Tool("update_case", "Set the status of a case.", UpdateCaseArguments, "write", False, "untrusted"),
        Tool("http_request", "Call an allowed web service.", HttpArguments, "external", False, "untrusted"),
    )
}


def find_tool(name: str) -> Tool:
    """The tool of a name. Raises PermanentError `unknown-tool`."""
    tool = TOOLS.get(name)
    if tool is None:
        raise PermanentError("unknown-tool", "There is no such tool.", f"There are {', '.join(TOOLS)}.")
    return tool
