"""Who changes a document by hand: a curator of the tenant, or an operator; and the document, locked for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal
from shared.documents.reading import MAY_SEE
from shared.errors import PermanentError
from shared.tenants.directory import Principal

CURATING_ROLES = ("curator", "admin", "operator")
OVERRULING_ROLES = ("admin", "operator")
"""Who may bring back what its source withdrew."""


@dataclass(frozen=True, slots=True)
class Actor:
    """A person who acts on documents of one tenant. `name` is what the records say: an id, never an address.

    `member_id` is None for an operator, who sees every document of the tenant.
    """

    tenant_id: UUID
    name: str
    member_id: UUID | None
    may_overrule: bool


def as_curator(principal: Principal) -> Actor:
    """The member as one who may change documents. Raises PermanentError `not-allowed` for the role `member`."""
    if principal.role not in CURATING_ROLES:
        raise PermanentError(
            "not-allowed",
            "Your role may read documents, not delete or change them.",
            "Ask a curator or an administrator of your organisation.",
        )
    overrules = principal.role in OVERRULING_ROLES
    return Actor(principal.tenant_id, f"member:{principal.member_id}", principal.member_id, overrules)


def as_operator(tenant_id: UUID, login: str) -> Actor:
    """An operator, by login; only processes that have the operator's database role call this."""
    return Actor(tenant_id, f"operator:{login}", None, may_overrule=True)


def read_for(session: Session, actor: Actor, document_id: UUID, *, lock: bool = False) -> Any:
    """The document's row; with `lock` nobody else changes it until the transaction ends.

    Raises PermanentError `unknown-document`: the same for one that does not exist, is another tenant's or purged, and
    one that the member may not see.
    """
    row = session.execute(
        text(
            "select d.document_id, d.source, d.external_id, d.title, d.state, d.reason, d.message, d.next_action, "
            "d.current_version_id, d.withdrawn_version, d.deleted_at, d.deleted_by, d.deleted_version_id, "
            "d.floor_version, d.acts from rag.documents d "
            "where d.tenant_id = :tenant and d.document_id = :document "
            f"and (cast(:member as uuid) is null or {MAY_SEE}) {'for update of d' if lock else ''}"
        ),
        {"tenant": actor.tenant_id, "document": document_id, "member": actor.member_id},
    ).first()
    if row is None:
        raise unknown_document()
    return row


def unknown_document() -> PermanentError:
    """There is no such document for this person."""
    return PermanentError("unknown-document", "There is no such document.", "See the list of documents.")


def with_attachments(session: Session, tenant_id: UUID, document_ids: Sequence[UUID]) -> list[UUID]:
    """The documents and everything that travelled inside them, at any depth, locked, the outermost first.

    One order for everybody (`intake.receive` too), so that nobody waits in a circle. Looked up again once the locks
    are there: an attachment that was received meanwhile belongs to it too.
    """
    wanted = _tree(session, tenant_id, document_ids)
    while True:
        locked = session.execute(
            text(
                "select document_id from rag.documents where tenant_id = :tenant "
                "and document_id = any(cast(:ids as uuid[])) "
                "order by length(metadata ->> 'attachment_depth') nulls first, metadata ->> 'attachment_depth', "
                "document_id for update"
            ),
            {"tenant": tenant_id, "ids": array_literal(wanted)},
        ).scalars()
        found = list(locked)
        wanted = _tree(session, tenant_id, found)
        if set(wanted) <= set(found):
            return found


def _tree(session: Session, tenant_id: UUID, document_ids: Sequence[UUID]) -> list[UUID]:
    found = session.execute(
        text(
            "with recursive tree as (select document_id, source, external_id from rag.documents "
            "where tenant_id = :tenant and document_id = any(cast(:ids as uuid[])) "
            "union select d.document_id, d.source, d.external_id from rag.documents d "
            "join tree t on d.source = t.source and d.attachment_of = t.external_id "
            "where d.tenant_id = :tenant) select document_id from tree"
        ),
        {"tenant": tenant_id, "ids": array_literal(document_ids)},
    ).scalars()
    return list(found)


def find_document(session: Session, actor: Actor, reference: str, source: str = "") -> UUID:
    """The id of a document that is named by its id or by what its source calls it.

    Raises PermanentError `unknown-document`, and `ambiguous-document` when several sources have one of that name.
    """
    rows = session.execute(
        text(
            "select d.document_id from rag.documents d where d.tenant_id = :tenant "
            "and (cast(d.document_id as text) = lower(:ref) or d.external_id = :ref) "
            "and (:source = '' or d.source = :source) "
            f"and (cast(:member as uuid) is null or {MAY_SEE}) limit 2"
        ),
        {"tenant": actor.tenant_id, "ref": reference, "source": source, "member": actor.member_id},
    ).scalars()
    found = list(rows)
    if not found:
        raise unknown_document()
    if len(found) > 1:
        raise PermanentError("ambiguous-document", "Several sources have a document of this name.", "Name the source.")
    document_id: UUID = found[0]
    return document_id
