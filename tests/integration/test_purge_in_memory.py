"""A worker may hold passages that it has not written down yet: nothing in the database says so, only the time does."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from shared.conversations.runs import Lease, RunEvent, ask, hold, take_lease
from shared.database import operator_session, tenant_session
from shared.documents.acting import as_curator
from shared.documents.deletion import delete_document
from shared.documents.hard_deletion import purge_documents
from shared.errors import Superseded
from shared.fakes import FakeBus
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import document_id, make
from tests.integration.purge_material import SECRET, operator, see


@pytest.fixture
def at_work(tenant: Principal, fake_services: Services, bus: FakeBus) -> Lease:
    """A question that a worker has just begun with; a document that it may have read by now."""
    make(fake_services, bus, tenant, 1, SECRET)
    with tenant_session(tenant.tenant_id) as session:
        run_id = ask(session, tenant, "When does the merger close?")
        return take_lease(session, tenant.tenant_id, run_id)


def deleted(tenant: Principal, ago: str) -> None:
    """A person deletes the document, some time ago."""
    with tenant_session(tenant.tenant_id) as session:
        delete_document(session, as_curator(tenant), document_id(tenant))
    with operator_session() as session:
        session.execute(
            text(
                "update rag.documents set deleted_at = now() - cast(:ago as interval) "
                "where tenant_id = :tenant and document_id = :document"
            ),
            {"ago": ago, "tenant": tenant.tenant_id, "document": document_id(tenant)},
        )


def tells(tenant: Principal, lease: Lease) -> None:
    """The worker writes what it has read."""
    with tenant_session(tenant.tenant_id) as session:
        hold(session, lease, [RunEvent(lease.next_seq, "token", {"text": SECRET})])


@pytest.mark.parametrize("ago", ["", "1 minute"], ids=["not yet deleted", "just deleted"])
def test_whoever_may_have_a_purged_document_in_memory_begins_anew(
    tenant: Principal, fake_services: Services, at_work: Lease, ago: str
) -> None:
    """It was searchable a moment ago: what the worker is about to write would bring the text back after the proof."""
    if ago:
        deleted(tenant, ago)
    done = purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage)
    assert (done.documents, done.rows["restarted_runs"]) == (1, 1)
    assert see(tenant, at_work.run_id).state == "queued"
    with pytest.raises(Superseded):
        tells(tenant, at_work)


def test_a_purge_of_what_was_hidden_for_long_disturbs_nobody(
    tenant: Principal, fake_services: Services, at_work: Lease
) -> None:
    """No worker lives as long as that, so none can have read it."""
    deleted(tenant, "11 minutes")
    done = purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage)
    assert (done.documents, done.rows["restarted_runs"]) == (1, 0)
    assert see(tenant, at_work.run_id).state == "running"
    with tenant_session(tenant.tenant_id) as session:
        hold(session, at_work)
