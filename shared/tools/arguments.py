"""The typed arguments of the built-in tools. Pure. What does not fit is told to the model, which can mend it.

Unknown fields are refused, never dropped: a model that invents an option must learn that it has no effect. Docstrings
and descriptions are part of the JSON Schema that the model reads.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from shared.errors import PermanentError


class Arguments(BaseModel):
    """What all arguments have in common: frozen, and no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _storable(value: str) -> str:
    # PostgreSQL refuses NUL, a lone surrogate desynchronises its driver (FACTS); models emit both now and then.
    if any(char == "\x00" or "\ud800" <= char <= "\udfff" for char in value):
        raise ValueError("must not contain NUL or lone surrogates")
    return value


Line = Annotated[str, Field(max_length=400), AfterValidator(_storable)]
Word = Annotated[str, Field(max_length=63), AfterValidator(_storable)]
CaseNumber = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,63}$")]
CaseStatus = Literal["open", "in-progress", "waiting", "closed"]


class SearchArguments(Arguments):
    """What to search for."""

    query: Annotated[Line, Field(min_length=2, description="A question or words, in German or English")]
    collection: Annotated[Word, Field(description="Only this collection; empty: all")] = ""
    results: Annotated[int, Field(ge=1, le=10)] = 5


class ListArguments(Arguments):
    """Which documents to list."""

    title_contains: Annotated[Line, Field(description="Part of the title or file name; empty: all")] = ""
    collection: Annotated[Word, Field(description="Only this collection; empty: all")] = ""
    limit: Annotated[int, Field(ge=1, le=50)] = 20


class OpenArguments(Arguments):
    """Which document to read, and from where on."""

    document_id: Annotated[UUID, Field(description="Id of the document, as search and list_documents give it")]
    first_part: Annotated[int, Field(ge=0, le=1_000_000, description="Part to begin with, from 0")] = 0


class CompareArguments(Arguments):
    """Which versions of a document to compare."""

    document_id: Annotated[UUID, Field(description="Id of the document")]
    older: Annotated[int | None, Field(ge=0, lt=2**63, description="Version number; empty: the one before")] = None
    newer: Annotated[int | None, Field(ge=0, lt=2**63, description="Version number; empty: the current one")] = None


class CalculateArguments(Arguments):
    """What to calculate."""

    expression: Annotated[
        str,
        Field(min_length=1, max_length=400, description="e.g. round(1250 * 0.19, 2); + - * / // % ** sqrt abs min max"),
        AfterValidator(_storable),
    ]
    numbers: Annotated[
        Literal["en", "de"], Field(description="de: decimal comma, points group thousands, ; separates arguments")
    ] = "en"


class DatesArguments(Arguments):
    """What to do with dates. They are read as 2026-03-31, 31.03.2026, 31. März 2026, March 31, 2026 or `today`."""

    action: Annotated[
        Literal["describe", "difference", "add"], Field(description="describe a date, two dates' difference, or add")
    ]
    date: Annotated[Line, Field(min_length=1)]
    other: Annotated[Line, Field(description="Second date, for difference")] = ""
    amount: Annotated[int, Field(ge=-100_000, le=100_000, description="How many, for add; may be negative")] = 0
    unit: Literal["days", "working-days", "weeks", "months", "years"] = "days"


class GetCaseArguments(Arguments):
    """Which case to read."""

    case_number: CaseNumber


class UpdateCaseArguments(Arguments):
    """How to change a case."""

    case_number: CaseNumber
    status: CaseStatus
    note: Annotated[str, Field(max_length=1_000), AfterValidator(_storable)] = ""


class HttpArguments(Arguments):
    """A request to a host that the tenant allows. Headers and credentials are not yours to give."""

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    url: Annotated[str, Field(min_length=1, max_length=2048), AfterValidator(_storable)]
    body: Annotated[str, Field(max_length=16_384, description="JSON or text"), AfterValidator(_storable)] = ""


def read_arguments(model: type[Arguments], given: dict[str, Any]) -> Arguments:
    """The typed arguments. Raises PermanentError `bad-arguments` with a sentence that names what is wrong.

    The sentence names fields and rules, not values: values may be content.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        known = set(model.model_fields)
        said = []
        for problem in error.errors(include_input=False, include_url=False):
            place = ".".join(str(part) for part in problem["loc"] if isinstance(part, int) or part in known)
            said.append(f"{place or 'arguments'}: {problem['msg']}")
        detail = "; ".join(dict.fromkeys(said))[:600]
        raise PermanentError(
            "bad-arguments", f"The arguments do not fit the tool: {detail}.", f"It takes {', '.join(sorted(known))}."
        ) from None
