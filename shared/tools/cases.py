"""Cases: the example of business data that tools read and write, with the same rule of access as documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal
from shared.errors import PermanentError
from shared.tenants.directory import Principal

_COLUMNS = "case_number, title, status, note, revision, changed_by, updated_at"
_MAY_SEE = """(c.access_groups = '{}' or c.access_groups && array(
    select g.name from core.groups g join core.group_members gm
    on gm.tenant_id = g.tenant_id and gm.group_id = g.group_id
    where g.tenant_id = :tenant and gm.member_id = :member))"""


@dataclass(frozen=True, slots=True)
class Case:
    """A case as a member sees it; `revision` grows with every change."""

    case_number: str
    title: str
    status: str
    note: str
    revision: int
    changed_by: str
    updated_at: datetime


def read_case(session: Session, principal: Principal, case_number: str) -> Case:
    """One case the member may see. Raises PermanentError `unknown-case`, the same for a hidden one."""
    row = session.execute(
        text(
            f"select {_COLUMNS} from core.cases c where c.tenant_id = :tenant and c.case_number = :number "
            f"and {_MAY_SEE}"
        ),
        {"tenant": principal.tenant_id, "member": principal.member_id, "number": case_number},
    ).first()
    if row is None:
        raise _unknown()
    return Case(*row)


def update_case(session: Session, principal: Principal, case_number: str, status: str, note: str) -> Case:
    """Set a case's status and, if given, its note; returns what holds now. Raises PermanentError `unknown-case`."""
    row = session.execute(
        text(
            "update core.cases c set status = :status, note = case when :note = '' then c.note else :note end, "
            "revision = c.revision + 1, changed_by = :email, updated_at = now() "
            f"where c.tenant_id = :tenant and c.case_number = :number and {_MAY_SEE} returning {_COLUMNS}"
        ),
        {
            "tenant": principal.tenant_id,
            "member": principal.member_id,
            "number": case_number,
            "status": status,
            "note": note,
            "email": principal.email,
        },
    ).first()
    if row is None:
        raise _unknown()
    return Case(*row)


def put_case(
    session: Session, tenant_id: UUID, case_number: str, title: str, by: str, *, groups: Sequence[str] = ()
) -> None:
    """Enter a case, or change title and access of an existing one."""
    session.execute(
        text(
            "insert into core.cases as c (tenant_id, case_number, title, changed_by, access_groups) "
            "values (:tenant, :number, :title, :by, cast(:groups as text[])) on conflict (tenant_id, case_number) "
            "do update set title = excluded.title, access_groups = excluded.access_groups, "
            "changed_by = excluded.changed_by, revision = c.revision + 1, updated_at = now()"
        ),
        {"tenant": tenant_id, "number": case_number, "title": title, "by": by, "groups": array_literal(groups)},
    )


def list_cases(session: Session, tenant_id: UUID, limit: int = 200) -> list[Case]:
    """All cases of a tenant, last changed first. For operators."""
    rows = session.execute(
        text(
            f"select {_COLUMNS} from core.cases c where c.tenant_id = :tenant "
            "order by c.updated_at desc, c.case_number limit :limit"
        ),
        {"tenant": tenant_id, "limit": limit},
    )
    return [Case(*row) for row in rows]


def _unknown() -> PermanentError:
    return PermanentError("unknown-case", "There is no such case.", "Check its number.")
