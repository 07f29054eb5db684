"""`noesis submit` of what was deleted: it says so, instead of waiting for what never comes or calling it searchable."""

from __future__ import annotations

import pytest

from cli.submitting import deleted_for_good, why_not
from shared.database import operator_session, tenant_session
from shared.documents.purge_requests import purge_alone
from shared.documents.reading import outcomes
from shared.errors import PermanentError
from shared.fakes import FakeBus
from shared.services import Services
from shared.tenants.directory import Principal, bind_source, unbind_source
from tests.integration.lifecycle_material import delete, document_id, make, submission


def reason(tenant: Principal, version: int) -> str | None:
    """What the command says of the document that it sent in this version."""
    with tenant_session(tenant.tenant_id) as session:
        (row,) = outcomes(session, tenant.tenant_id, {document_id(tenant): version}).values()
    return why_not(row)


def test_a_deleted_document_is_not_called_searchable(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """The unchanged file changes nothing: whoever sends it again is told how it comes back."""
    make(fake_services, bus, tenant, 1, "apples")
    assert reason(tenant, 1) is None
    delete(tenant)
    assert "noesis documents restore" in str(reason(tenant, 1))


def test_a_purged_document_is_told_before_it_is_sent(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """Of its version nothing would ever be heard; a changed file is a new document."""
    make(fake_services, bus, tenant, 1, "apples")
    purge_alone(tenant.tenant_id, "olga", [document_id(tenant)], fake_services.storage)
    same, changed, other = submission(tenant, 1), submission(tenant, 2), submission(tenant, 1, "other")
    assert deleted_for_good(tenant.tenant_id, [same, changed, other]) == [same]


def test_a_tenant_that_the_command_may_not_speak_for_is_told(tenant: Principal) -> None:
    """Its messages would end as dead letters while the command waits."""
    with operator_session() as session:
        unbind_source(session, tenant.tenant_id, "upstream")
    try:
        with pytest.raises(PermanentError, match="may not speak"):
            deleted_for_good(tenant.tenant_id, [submission(tenant, 1)])
    finally:
        with operator_session() as session:
            bind_source(session, tenant.tenant_id, "upstream")
