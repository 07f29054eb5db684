"""Whatever becomes of one document, every other document of its tenant stays as it is, to the last column."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID, uuid5

import pytest
from sqlalchemy import text

from shared.database import operator_session, tenant_session
from shared.dead_letters.replay import EXHAUSTED
from shared.documents.cancellation import cancel_document
from shared.documents.ending import fail_unread, fail_version, withdraw
from shared.documents.hard_deletion import purge_documents
from shared.documents.intake import Reception, ensure_document, receive
from shared.documents.resumption import resume_version
from shared.documents.turns import take_turn
from shared.documents.waiting import go_on, wait_for
from shared.errors import PermanentError
from shared.events import Access, DocumentWithdrawn
from shared.fakes import FakeBus
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import (
    back_to,
    count,
    delete,
    document_id,
    look,
    make,
    restore,
    submission,
    take,
)
from tests.integration.purge_material import operator

CORRUPT = PermanentError("corrupt", "Unreadable.", "Mend it.")
TABLES = ("rag.documents", "rag.versions", "rag.chunks", "rag.answering_periods", "core.waiting_messages")


def received(tenant: Principal, version: int, external_id: str = "doc", **more: object) -> Reception:
    """A version that nobody has read yet."""
    event = submission(tenant, version, external_id).model_copy(update=more)
    with tenant_session(tenant.tenant_id) as session:
        return receive(session, event, "upstream")


def failed(tenant: Principal, version: int, external_id: str = "doc") -> None:
    """A version that cannot be read."""
    reception = received(tenant, version, external_id)
    with tenant_session(tenant.tenant_id) as session:
        fail_version(session, tenant.tenant_id, reception.version_id, CORRUPT)


def exhausted(tenant: Principal, version: int, external_id: str = "doc") -> Reception:
    """A version whose message failed on every delivery."""
    reception = take(tenant, submission(tenant, version, external_id), f"{external_id} {version}")
    with tenant_session(tenant.tenant_id) as session:
        fail_version(session, tenant.tenant_id, reception.version_id, PermanentError(EXHAUSTED, "Failed.", "Wait."))
    return reception


def resumed(tenant: Principal) -> None:
    """The same, and its dead letter is replayed."""
    reception = exhausted(tenant, 3)
    with tenant_session(tenant.tenant_id) as session:
        assert resume_version(session, tenant.tenant_id, reception.version_id, EXHAUSTED)


def cancelled(tenant: Principal) -> int:
    """What is in progress of the document is cancelled."""
    with tenant_session(tenant.tenant_id) as session:
        return cancel_document(session, tenant.tenant_id, document_id(tenant))


def withdrawn(tenant: Principal, external_id: str = "doc") -> None:
    """Its source takes the document back."""
    event = DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id=external_id, source_version=9)
    with tenant_session(tenant.tenant_id) as session:
        withdraw(session, event, "upstream")


def laid_aside(tenant: Principal, version: int, external_id: str = "doc") -> Reception:
    """A version that waits for its turn."""
    event = submission(tenant, version, external_id)
    with tenant_session(tenant.tenant_id) as session:
        reception = receive(session, event, "upstream")
        assert not take_turn(session, reception, event, "documents-upstream", 0)
    return reception


def uploaded(tenant: Principal, external_id: str) -> None:
    """An upload of which nothing was received yet."""
    with tenant_session(tenant.tenant_id) as session:
        ensure_document(session, submission(tenant, 1, external_id), "upstream", document_id(tenant, external_id))


def waited(tenant: Principal) -> None:
    """A version waits for its provider, and goes on."""
    reception = received(tenant, 3)
    with tenant_session(tenant.tenant_id) as session:
        wait_for(session, tenant.tenant_id, reception.version_id, "provider", None)
        go_on(session, tenant.tenant_id, reception.version_id)


Act = Callable[[Principal, Services, FakeBus], object]
ACTS: dict[str, Act] = {
    "received": lambda tenant, *_: received(tenant, 3),
    "received for fewer": lambda tenant, *_: received(tenant, 3, access=Access(members=("boss@example.com",))),
    "stored": lambda tenant, *_: take(tenant, submission(tenant, 3), "third"),
    "replaced": lambda tenant, services, bus: make(services, bus, tenant, 3, "third"),
    "unchanged": lambda tenant, *_: take(tenant, submission(tenant, 3), "second"),
    "failed and resumed": lambda tenant, *_: resumed(tenant),
    "failed": lambda tenant, *_: failed(tenant, 3),
    "cancelled": lambda tenant, *_: (take(tenant, submission(tenant, 3), "third"), cancelled(tenant)),
    "cancelled in the line": lambda tenant, *_: (laid_aside(tenant, 3), cancelled(tenant)),
    "waited": lambda tenant, *_: waited(tenant),
    "rolled back": lambda tenant, *_: back_to(tenant, version_of(tenant, 1)),
    "withdrawn": lambda tenant, *_: withdrawn(tenant),
    "deleted": lambda tenant, *_: delete(tenant),
    "deleted in the line": lambda tenant, *_: (laid_aside(tenant, 3), delete(tenant)),
    "restored": lambda tenant, *_: (delete(tenant), restore(tenant)),
    "restored while stored": lambda tenant, *_: (
        take(tenant, submission(tenant, 3), "third"),
        delete(tenant),
        restore(tenant),
    ),
    "restored while received": lambda tenant, *_: (received(tenant, 3), delete(tenant), restore(tenant)),
    "purged": lambda tenant, services, _: purge_documents(operator(tenant), [document_id(tenant)], services.storage),
}


def version_of(tenant: Principal, number: int) -> UUID:
    """The id of a version of the document."""
    return uuid5(document_id(tenant), f"version:{number}")


def others(tenant: Principal) -> list[tuple[str, str]]:
    """Every row of every other document, as text, by table."""
    with operator_session() as session:
        return [
            (table, row)
            for table in TABLES
            for row in session.execute(
                text(
                    f"select cast(to_jsonb(t) as text) as row from {table} t "
                    "where tenant_id = :tenant and document_id <> :document order by row"
                ),
                {"tenant": tenant.tenant_id, "document": document_id(tenant)},
            ).scalars()
        ]


@pytest.mark.parametrize("act", ACTS)
def test_every_other_document_stays_as_it_is(
    tenant: Principal, fake_services: Services, bus: FakeBus, act: str
) -> None:
    """One that answers with a history, one that failed, one in progress, one in the line, and those that are gone."""
    for name in ("doc", "answering", "deleted", "withdrawn"):
        make(fake_services, bus, tenant, 1, "first", external_id=name)
        make(fake_services, bus, tenant, 2, "second", external_id=name)
    take(tenant, submission(tenant, 3, "answering"), "third")
    failed(tenant, 1, "failed")
    exhausted(tenant, 1, "exhausted")
    received(tenant, 1, "received")
    delete(tenant, "deleted")
    withdrawn(tenant, "withdrawn")
    uploaded(tenant, "uploaded")
    bus.published.clear()
    # An end makes room for who is in the line: that one may change then.
    queued = act != "replaced"
    if queued:
        laid_aside(tenant, 1, "in the line")
    assert count(tenant, "rag.versions", "state = 'searchable'") == 2  # no document was one of the others to another
    before = others(tenant)
    assert {table for table, _ in before} == set(TABLES[: None if queued else -1])
    ACTS[act](tenant, fake_services, bus)
    assert others(tenant) == before


def test_an_upload_that_is_given_up_is_the_only_one(tenant: Principal, bus: FakeBus) -> None:
    """Its message was lost; those of the others are on their way."""
    for name in ("doc", "uploaded"):
        uploaded(tenant, name)
    before = others(tenant)
    with tenant_session(tenant.tenant_id) as session:
        assert fail_unread(session, tenant.tenant_id, document_id(tenant), CORRUPT)
    assert others(tenant) == before
    assert look(tenant).state == "failed"
