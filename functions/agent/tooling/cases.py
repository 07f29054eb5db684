"""The example of business tools: read a case, set its status. Both in the member's rights."""

from __future__ import annotations

from sqlalchemy.orm import Session

from functions.agent.tooling.working import Found, Work
from shared.tools import cases
from shared.tools.arguments import GetCaseArguments, UpdateCaseArguments


def get_case(arguments: GetCaseArguments, work: Work) -> Found:
    """A case. Raises PermanentError `unknown-case`."""
    with work.session() as session:
        return Found(_told(cases.read_case(session, work.principal, arguments.case_number)))


def update_case(session: Session, arguments: UpdateCaseArguments, work: Work) -> Found:
    """Change a case in the transaction that stores the outcome. Raises PermanentError `unknown-case`."""
    changed = cases.update_case(session, work.principal, arguments.case_number, arguments.status, arguments.note)
    return Found("Changed. " + _told(changed))


def _told(case: cases.Case) -> str:
    return (
        f"Case {case.case_number}: {case.title}\nStatus: {case.status}\nNote: {case.note or '(none)'}\n"
        f"Revision {case.revision}, changed by {case.changed_by} on {case.updated_at:%Y-%m-%d %H:%M} UTC"
    )
