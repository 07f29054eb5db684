"""The daily job purges what was deleted 30 days ago and empties old versions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text

from functions.ingest.ingestion import withdraw_document
from functions.maintenance.running import run_job
from shared.database import operator_session, tenant_session
from shared.documents.acting import as_curator
from shared.documents.deletion import delete_document
from shared.documents.history import read_history, roll_back
from shared.errors import PermanentError
from shared.events import DocumentWithdrawn, RunJob
from shared.fakes import FakeBus
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import acts, age, count, document_id, look, make
from tests.integration.purge_material import OTHER, SECRET


def run_purge(services: Services) -> dict[str, Any]:
    """Run the daily job now."""
    counts = run_job(RunJob(job="purge-documents", slot=datetime.now(UTC)), services, seconds=None)
    return dict(counts or {})


def test_the_daily_job_purges_what_was_deleted_30_days_ago(
    tenant: Principal, make_tenant: Callable[..., Principal], fake_services: Services, bus: FakeBus
) -> None:
    """By a person or by upstream, of every tenant; a younger deletion can still be restored."""
    run_purge(fake_services)  # what other tests left
    second = make_tenant()
    for whose in (tenant, second):
        make(fake_services, bus, whose, 1, SECRET)
        make(fake_services, bus, whose, 1, OTHER, external_id="young")
        gone = DocumentWithdrawn(tenant_id=whose.tenant_id, external_id="doc", source_version=1)
        withdraw_document(gone, "upstream")
        with tenant_session(whose.tenant_id) as session:
            delete_document(session, as_curator(whose), document_id(whose, "young"))
        age(whose, "rag.documents", "deleted_at", "31 days", "external_id = 'doc'")
    counts = run_purge(fake_services)
    assert (counts["documents"], counts["unproven"]) == (2, 0)
    for whose in (tenant, second):
        assert look(whose) is None
        assert look(whose, "young").state == "deleted"
        assert ("job:purge-documents", "document-expired") in acts(whose)
    assert run_purge(fake_services)["documents"] == 0


def test_one_document_that_cannot_be_proven_gone_does_not_stop_the_others(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """It stays, hidden, and is counted; the rest of its slice is purged."""
    for external_id, content in (("doc", SECRET), ("other", OTHER)):
        make(fake_services, bus, tenant, 1, content, external_id=external_id)
        with tenant_session(tenant.tenant_id) as session:
            delete_document(session, as_curator(tenant), document_id(tenant, external_id))
    age(tenant, "rag.documents", "deleted_at", "31 days")
    with operator_session() as session:
        session.execute(
            text("update core.members set name = :name where tenant_id = :t"),
            {"t": tenant.tenant_id, "name": f"{document_id(tenant)}"},
        )
    counts = run_purge(fake_services)
    assert (counts["documents"], counts["unproven"]) == (1, 1)
    assert look(tenant).state == "deleted"
    assert look(tenant, "other") is None
    with operator_session() as session:  # or the next test's job finds it
        session.execute(text("update core.members set name = 'x' where tenant_id = :t"), {"t": tenant.tenant_id})
    assert run_purge(fake_services)["documents"] == 1


def test_old_versions_lose_their_content_and_stay_in_the_history(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """The last five keep it whatever their age, younger ones than 30 days too; what answers always does."""
    versions = [make(fake_services, bus, tenant, n, f"text number {n}", "common").version_id for n in range(1, 9)]
    assert run_purge(fake_services)["versions"] == 0
    age(tenant, "rag.versions", "updated_at", "31 days")
    counts = run_purge(fake_services)
    assert (counts["versions"], counts["chunks"]) == (2, 4)
    with tenant_session(tenant.tenant_id) as session:
        rows = read_history(session, as_curator(tenant), document_id(tenant))
    assert [(row.source_version, row.kept) for row in rows] == [(n, n > 2) for n in range(8, 0, -1)]
    assert count(tenant, "rag.embeddings") == count(tenant, "rag.chunk_terms") == count(tenant, "rag.chunks") == 12
    with pytest.raises(PermanentError) as purged, tenant_session(tenant.tenant_id) as session:
        roll_back(session, as_curator(tenant), document_id(tenant), versions[0])
    assert purged.value.reason == "version-purged"
    with tenant_session(tenant.tenant_id) as session:
        roll_back(session, as_curator(tenant), document_id(tenant), versions[2])
    assert look(tenant).current == 3
