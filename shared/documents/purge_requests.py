"""Deleting many documents for good takes two operators: one asks, another one approves; then it runs, in slices.

requested ──approve, by somebody else──▶ approved ──slices──▶ finished
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from shared import audit
from shared.database import array_literal, operator_session, sqlstate
from shared.documents.acting import as_operator, unknown_document, with_attachments
from shared.documents.hard_deletion import Purged, purge_documents
from shared.errors import PermanentError
from shared.storage import Storage

MOST_ALONE = 20
"""Documents, with their attachments, that one operator may delete for good at once."""

SLICE = 10
"""Documents of a transaction when there are many."""


@dataclass(frozen=True, slots=True)
class PurgeRequest:
    """A request to delete documents for good: `left` of `total` are still there."""

    tenant_id: UUID
    request_id: UUID
    total: int
    left: int
    note: str
    requested_by: str
    requested_at: datetime
    approved_by: str | None
    approved_at: datetime | None
    finished_at: datetime | None


_SHOWN = (
    "tenant_id, request_id, total, cardinality(documents) as left, note, requested_by, requested_at, approved_by, "
    "approved_at, finished_at"
)


def purge_alone(tenant_id: UUID, login: str, document_ids: Sequence[UUID], storage: Storage) -> Purged:
    """Delete a few documents for good, now. Raises PermanentError `unknown-document`, `two-people-needed`."""
    with operator_session() as operator:
        tree = with_attachments(operator, tenant_id, document_ids)
    if not set(document_ids) <= set(tree):
        raise unknown_document()
    if len(tree) > MOST_ALONE:
        raise PermanentError(
            "two-people-needed",
            f"Deleting {len(tree)} documents for good (attachments count) takes two people.",
            "Ask for it with --request, and have another operator approve it.",
        )
    return purge_documents(as_operator(tenant_id, login), document_ids, storage)


def request_purge(
    operator: Session, tenant_id: UUID, login: str, document_ids: Sequence[UUID], note: str = ""
) -> PurgeRequest:
    """Ask for documents, with their attachments, to be deleted for good. Raises PermanentError `unknown-document`."""
    tree = with_attachments(operator, tenant_id, document_ids)
    if not tree or not set(document_ids) <= set(tree):
        raise unknown_document()
    request_id = uuid4()
    operator.execute(
        text(
            "insert into core.purge_requests (tenant_id, request_id, documents, total, note, requested_by) "
            "values (:tenant, :request, cast(:documents as uuid[]), :total, :note, :by)"
        ),
        {
            "tenant": tenant_id,
            "request": request_id,
            "documents": array_literal(tree),
            "total": len(tree),
            "note": note,
            "by": as_operator(tenant_id, login).name,
        },
    )
    _record(operator, tenant_id, login, "purge-requested", request_id, documents=len(tree))
    return find_request(operator, request_id)


def approve_purge(operator: Session, request_id: UUID, login: str) -> PurgeRequest:
    """Agree to a request of somebody else; the same person again changes nothing.

    That they are two is a constraint of the table. Raises PermanentError `unknown-request`, `same-person`,
    `request-ended`, `approved-by-another`.
    """
    request = find_request(operator, request_id)
    by = as_operator(request.tenant_id, login).name
    if request.finished_at is not None:
        raise PermanentError("request-ended", "The request was carried out already.", "See the audit record.")
    if request.approved_by is not None:
        if request.approved_by != by:
            raise PermanentError(
                "approved-by-another", "Somebody else has approved it already.", "They can run it again to go on."
            )
        return request
    try:
        operator.execute(
            text(
                "update core.purge_requests set approved_by = :by, approved_at = now() "
                "where tenant_id = :tenant and request_id = :request and approved_by is null"
            ),
            {"tenant": request.tenant_id, "request": request_id, "by": by},
        )
    except DBAPIError as error:
        if sqlstate(error) != "23514":  # check_violation: purge_requests_two_people_check
            raise
        raise PermanentError(
            "same-person", "Who asked for it cannot approve it.", "Have another operator approve it."
        ) from None
    _record(operator, request.tenant_id, login, "purge-approved", request_id, documents=request.total)
    return find_request(operator, request_id)


def carry_out(request_id: UUID, storage: Storage) -> Iterator[PurgeRequest]:
    """Delete what an approved request names, slice by slice; a process that was killed is followed by the same call.

    Raises PermanentError `unknown-request`, `not-approved`.
    """
    while True:
        with operator_session() as operator:
            request = find_request(operator, request_id)
            slice_ids = operator.execute(
                text(
                    "select documents[1:cast(:slice as integer)] from core.purge_requests "
                    "where tenant_id = :tenant and request_id = :request"
                ),
                {"tenant": request.tenant_id, "request": request_id, "slice": SLICE},
            ).scalar_one()
        if request.approved_by is None:
            raise PermanentError("not-approved", "Nobody has approved the request.", "Have another operator do so.")
        if slice_ids:
            login = request.approved_by.removeprefix("operator:")
            purge_documents(as_operator(request.tenant_id, login), slice_ids, storage)
        with operator_session() as operator:
            operator.execute(
                text(
                    # What travelled inside of them is gone with them.
                    "update core.purge_requests q set documents = array(select d.document_id from rag.documents d "
                    "where d.tenant_id = q.tenant_id and d.document_id = any(q.documents)) "
                    "where q.tenant_id = :tenant and q.request_id = :request"
                ),
                {"tenant": request.tenant_id, "request": request_id},
            )
            operator.execute(
                text(
                    "update core.purge_requests set finished_at = coalesce(finished_at, now()) "
                    "where tenant_id = :tenant and request_id = :request and documents = '{}'"
                ),
                {"tenant": request.tenant_id, "request": request_id},
            )
            request = find_request(operator, request_id)
        yield request
        if request.finished_at is not None:
            return


def find_request(operator: Session, request_id: UUID) -> PurgeRequest:
    """A request. Raises PermanentError `unknown-request`."""
    row = operator.execute(
        text(f"select {_SHOWN} from core.purge_requests where request_id = :request"), {"request": request_id}
    ).first()
    if row is None:
        raise PermanentError("unknown-request", "There is no such request.", "See `noesis documents purge --list`.")
    return PurgeRequest(*row)


def open_requests(operator: Session, tenant_id: UUID) -> list[PurgeRequest]:
    """A tenant's requests that were not carried out yet, oldest first."""
    rows = operator.execute(
        text(
            f"select {_SHOWN} from core.purge_requests where tenant_id = :tenant and finished_at is null "
            "order by requested_at"
        ),
        {"tenant": tenant_id},
    )
    return [PurgeRequest(*row) for row in rows]


def _record(operator: Session, tenant_id: UUID, login: str, action: str, request_id: UUID, **details: int) -> None:
    audit.record(
        operator,
        actor=as_operator(tenant_id, login).name,
        action=action,
        subject=str(request_id),
        tenant_id=tenant_id,
        **details,
    )
