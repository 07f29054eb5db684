"""Who may see a document while its versions differ in that: narrower at once, wider with the text it was meant for.

A submission brings a text and who may see it. Until that text answers the old one does, and nobody may see it who was
not allowed to see it by its own list; whom a later submission leaves out no longer may either. So a document's list is
the one of what answers, narrowed by all that came after it. Also when those failed: that the text could not be read
takes nothing back of what upstream said about who may see it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal, write_one
from shared.events import Access

NOBODY = ""
"""The group in the list of a document that nobody may see: no group has this name, and an empty list is everybody."""

MAY_SEE_VERSION = """(v.access_members is null or (v.access_members = '{{}}' and v.access_groups = '{{}}')
 or v.access_members && {members} or v.access_groups && {groups})"""
"""Whether the text of a version `v` may be seen by who has these addresses and groups, besides the document's list."""

# From the last version with the content that answers: what came after it, and itself.
_SINCE = """
select v.access_members, v.access_groups, d.access_members as of_members, d.access_groups as of_groups
from rag.documents d join rag.versions v on v.tenant_id = d.tenant_id and v.document_id = d.document_id
where d.tenant_id = :tenant and d.document_id = :document and v.source_version >= (
    select max(s.source_version) from rag.versions c join rag.versions s on s.tenant_id = c.tenant_id
    and s.document_id = c.document_id and s.content_hash = c.content_hash
    and (s.version_id = c.version_id or s.state = 'unchanged')
    where c.tenant_id = :tenant and c.version_id = d.current_version_id)
order by v.source_version
"""


@dataclass(frozen=True, slots=True)
class AccessList:
    """E-mail addresses and names of groups; both empty means every member."""

    members: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()

    @classmethod
    def of(cls, members: Iterable[str], groups: Iterable[str]) -> Self:
        """The list with these entries; addresses are compared in lower case."""
        return cls(frozenset(member.lower() for member in members), frozenset(groups))

    @property
    def is_open(self) -> bool:
        """Whether every member of the tenant is meant."""
        return not self.members and not self.groups

    def narrowed(self, other: Self) -> AccessList:
        """Whom both name in the same way.

        Who is in one by address and in the other by group is left out until one list alone decides: who is in a group
        may change at any time, and a list must not keep it as it was.
        """
        if self.is_open:
            return other
        if other.is_open:
            return self
        members, groups = self.members & other.members, self.groups & other.groups
        return AccessList(members, groups if members or groups else frozenset({NOBODY}))


def list_of(access: Access) -> AccessList:
    """A submission's list."""
    return AccessList.of(access.members, access.groups)


def parameters(access: AccessList) -> dict[str, str]:
    """A list as the parameters `members` and `groups` of a statement, array literals."""
    return {"members": array_literal(sorted(access.members)), "groups": array_literal(sorted(access.groups))}


def settle_access(session: Session, tenant_id: UUID, document_id: UUID) -> bool:
    """Write who may see the document now, after its versions or the one that answers changed; whether that changed.

    The caller holds the document's lock. Without a version that answers there is no text to protect, and what the
    newest submission said stays.
    """
    rows = session.execute(text(_SINCE), {"tenant": tenant_id, "document": document_id}).all()
    if not rows:
        return False
    before = AccessList.of(rows[0].of_members, rows[0].of_groups)
    access = None
    for row in rows:
        if row.access_members is not None:
            own = AccessList.of(row.access_members, row.access_groups)
            access = own if access is None else access.narrowed(own)
        elif access is None:
            access = before
    if access is None or access == before:
        return False
    _write(session, tenant_id, document_id, access)
    return True


_INSIDE = """
with recursive tree as (
    select document_id, source, external_id, 0 as depth from rag.documents
    where tenant_id = :tenant and document_id = :document
    union all select d.document_id, d.source, d.external_id, t.depth + 1 from rag.documents d join tree t
    on d.source = t.source and d.attachment_of = t.external_id
    where d.tenant_id = :tenant and t.depth < 9)
select d.document_id, d.access_members, d.access_groups from rag.documents d join tree t
on t.document_id = d.document_id where d.tenant_id = :tenant order by t.depth, d.document_id for update of d
"""


def narrow_attachments(session: Session, tenant_id: UUID, document_id: UUID) -> None:
    """Close what travelled inside a document, at any depth, to those who may not see the document any more.

    At once, like the document itself; opening them is for the submissions of their own that follow. The caller holds
    the document's lock, and it is the first of those that are taken here.
    """
    rows = session.execute(text(_INSIDE), {"tenant": tenant_id, "document": document_id}).all()
    outer, *inside = [(row.document_id, AccessList.of(row.access_members, row.access_groups)) for row in rows]
    for attachment_id, before in inside:
        access = before.narrowed(outer[1])
        if access != before:
            _write(session, tenant_id, attachment_id, access)


def _write(session: Session, tenant_id: UUID, document_id: UUID, access: AccessList) -> None:
    write_one(
        session,
        "update rag.documents set access_members = cast(:members as text[]), "
        "access_groups = cast(:groups as text[]) where tenant_id = :tenant and document_id = :document",
        {"tenant": tenant_id, "document": document_id} | parameters(access),
    )
