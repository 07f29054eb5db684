"""Doing what was allowed: which function does it, what becomes of its errors, and how its outcome is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from xml.sax.saxutils import escape

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from functions.agent.output_checks import plain
from functions.agent.tooling import cases, documents
from functions.agent.tooling.calculating import calculate, shown
from functions.agent.tooling.dates import add, describe, difference, read_date
from functions.agent.tooling.working import Deadline, Found, TooSlow, Work
from shared.errors import PermanentError, TransientError
from shared.fetching.sending import OutcomeUnknown
from shared.tools.arguments import CalculateArguments, DatesArguments
from shared.tools.calls import Outcome
from shared.tools.catalogue import TOOLS

OUTPUT_LIMIT = 12_000
"""Characters of a tool's output that the model reads; about 3,000 tokens."""


def attempt(tool: Callable[[], Found], deadline: Deadline) -> Outcome:
    """Run a tool; what the model can mend, or must be told, is an outcome.

    Raises OutcomeUnknown, and whatever shall be tried again: TransientError, Postponed, failures of the database.
    """
    try:
        found = tool()
    except OutcomeUnknown:
        raise
    except PermanentError as error:
        return Outcome(False, _capped(f"{error.message} {error.next_action}"), error.reason)
    except (TransientError, DBAPIError):
        if not deadline.over:
            raise
        # The time was over first: that is what ended the statement or the request.
        slow = TooSlow()
        return Outcome(False, f"{slow.message} {slow.next_action}", slow.reason)
    return outcome_of(found)


def outcome_of(found: Found) -> Outcome:
    """The outcome of a tool that did what was asked."""
    return Outcome(True, _capped(found.text), None, tuple(dict(passage) for passage in found.passages))


def _capped(text: str) -> str:
    text = plain(text).strip()
    if len(text) <= OUTPUT_LIMIT:
        return text
    return f"{text[:OUTPUT_LIMIT]}\n(cut: {len(text) - OUTPUT_LIMIT} characters more)"


def content(name: str, outcome: Outcome) -> str:
    """The content of a `tool` message: data between markers that nothing inside can close."""
    tool = name if name in TOOLS else "unknown"
    return f'<tool_result tool="{tool}">\n{escape(outcome.text)}\n</tool_result>'


def _calculate(arguments: CalculateArguments, _work: Work) -> Found:
    german = arguments.numbers == "de"
    return Found(f"{arguments.expression} = {shown(calculate(arguments.expression, german=german), german=german)}")


def _dates(arguments: DatesArguments, work: Work) -> Found:
    today = work.services.clock.now().date()
    first = read_date(arguments.date, today)
    if arguments.action == "describe":
        return Found(describe(first))
    if arguments.action == "difference":
        return Found(difference(first, read_date(arguments.other, today)))
    return Found(describe(add(first, arguments.amount, arguments.unit)))


READERS: dict[str, Callable[[Any, Work], Found]] = {
    "search": documents.search,
    "list_documents": documents.list_documents,
    "open_document": documents.open_document,
    "compare_versions": documents.compare_versions,
    "calculate": _calculate,
    "dates": _dates,
    "get_case": cases.get_case,
}
"""Tools that compute or read: they may be repeated."""

WRITERS: dict[str, Callable[[Session, Any, Work], Found]] = {"update_case": cases.update_case}
"""Tools that change rows of the tenant, in the transaction that stores their outcome."""
