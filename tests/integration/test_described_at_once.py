"""What a submission says about its document (title, collection, metadata) holds from its reception on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text

from shared.database import tenant_session
from shared.documents.ending import fail_version
from shared.documents.intake import Reception, receive
from shared.errors import PermanentError, Superseded
from shared.events import DocumentSubmitted
from shared.fakes import FakeBus
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import document_id, look


def received(tenant: Principal, version: int, **said: Any) -> Reception:
    """A version is received that says this about its document."""
    event = DocumentSubmitted(
        tenant_id=tenant.tenant_id,
        external_id="doc",
        source_version=version,
        content="",
        occurred_at=datetime.now(UTC),
        **said,
    )
    with tenant_session(tenant.tenant_id) as session:
        return receive(session, event, "upstream")


def described(tenant: Principal) -> tuple[object, ...]:
    """Title, collection and metadata of the document."""
    with tenant_session(tenant.tenant_id) as session:
        row = session.execute(
            text(
                "select d.title, c.name, d.metadata from rag.documents d join rag.collections c "
                "on c.tenant_id = d.tenant_id and c.collection_id = d.collection_id where d.document_id = :document"
            ),
            {"document": document_id(tenant)},
        ).one()
    return tuple(row)


def test_a_newer_version_says_what_its_document_is_called(tenant: Principal, bus: FakeBus) -> None:
    """Its title replaces the one before; where it gives none, that one stays, and not an empty one."""
    received(tenant, 1, title="One", collection="drafts", metadata={"year": "2025"})
    assert described(tenant) == ("One", "drafts", {"year": "2025"})
    received(tenant, 2, title="Two", collection="final", metadata={"year": "2026"})
    assert described(tenant) == ("Two", "final", {"year": "2026"})
    received(tenant, 3, collection="final")
    assert described(tenant) == ("Two", "final", {})


def test_an_older_version_says_nothing_any_more(tenant: Principal, bus: FakeBus) -> None:
    """It is refused before it has changed anything."""
    received(tenant, 2, title="Two", collection="final", metadata={"year": "2026"})
    with pytest.raises(Superseded):
        received(tenant, 1, title="One", collection="drafts")
    assert described(tenant) == ("Two", "final", {"year": "2026"})


def test_upstream_cannot_make_a_document_an_attachment(tenant: Principal, bus: FakeBus) -> None:
    """Those names of metadata are ingest's own: what a "parent" does not carry would be withdrawn with it."""
    received(tenant, 1, metadata={"attachment_of": "another", "attachment_depth": "1", "year": "2026"})
    assert described(tenant)[2] == {"year": "2026"}


def test_a_new_version_does_not_show_the_failure_of_the_one_before(tenant: Principal, bus: FakeBus) -> None:
    """A document that failed is received again, and waits for nothing but this version."""
    failed = received(tenant, 1)
    with tenant_session(tenant.tenant_id) as session:
        fail_version(session, tenant.tenant_id, failed.version_id, PermanentError("corrupt", "Unreadable.", "Mend it."))
    assert (look(tenant).state, look(tenant).reason) == ("failed", "corrupt")
    received(tenant, 2)
    assert (look(tenant).state, look(tenant).reason) == ("received", None)
