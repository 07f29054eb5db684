"""Which submissions a tombstone keeps out: by version and by time, and as far as any word ever reached."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from shared.database import operator_session, tenant_session
from shared.documents.ending import withdraw
from shared.documents.hard_deletion import purge_documents
from shared.documents.tombstones import entomb, is_entombed, raise_tombstone
from shared.errors import Superseded
from shared.events import DocumentWithdrawn
from shared.fakes import FakeBus
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import document_id, look, submission, take
from tests.integration.purge_material import operator

GONE = datetime(2026, 11, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def kept_out(tenant: Principal, version: int, sent: datetime, external_id: str = "doc") -> bool:
    """Whether a submission is about what was deleted for good."""
    with tenant_session(tenant.tenant_id) as session:
        return is_entombed(session, tenant.tenant_id, "upstream", external_id, version, sent)


def entombed(tenant: Principal, version: int, at: datetime) -> None:
    """The document is deleted for good when it was known up to a version."""
    with operator_session() as session:
        entomb(session, tenant.tenant_id, "upstream", "doc", version, at)


def test_only_a_newer_version_that_was_sent_afterwards_is_a_new_document(tenant: Principal) -> None:
    """Both at once; of the version known then, and of the very moment, it is still the old one."""
    entombed(tenant, 3, GONE)
    assert [kept_out(tenant, version, GONE + SECOND) for version in (2, 3, 4)] == [True, True, False]
    assert [kept_out(tenant, 4, sent) for sent in (GONE - SECOND, GONE, GONE + SECOND)] == [True, True, False]
    assert not kept_out(tenant, 1, GONE - SECOND, "another")


def test_a_second_death_takes_nothing_back(tenant: Principal) -> None:
    """A new life that ended earlier or at a lower number, as clocks and restores may have it, opens nothing."""
    entombed(tenant, 5, GONE)
    entombed(tenant, 2, GONE - SECOND)
    assert [kept_out(tenant, version, GONE + SECOND) for version in (5, 6)] == [True, False]
    assert kept_out(tenant, 6, GONE)
    with tenant_session(tenant.tenant_id) as session:
        assert raise_tombstone(session, tenant.tenant_id, "upstream", "doc", 1)
        assert not raise_tombstone(session, tenant.tenant_id, "upstream", "another", 9)
    assert kept_out(tenant, 5, GONE + SECOND)


def test_what_was_withdrawn_at_a_version_that_never_came_stays_away_after_the_purge(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Version 4 was there, 5 was withdrawn before it arrived: 5 is refused for ever, 6 is a new document."""
    take(tenant, submission(tenant, 4), "text")
    with tenant_session(tenant.tenant_id) as session:
        withdraw(
            session, DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="doc", source_version=5), "upstream"
        )
    assert purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage).documents == 1
    later = datetime.now(UTC) + timedelta(hours=1)
    with pytest.raises(Superseded, match="deleted for good"):
        take(tenant, submission(tenant, 5, occurred_at=later), "text")
    assert look(tenant) is None
    take(tenant, submission(tenant, 6, occurred_at=later), "text")
    assert look(tenant) is not None
