"""A withdrawal may be handled long after what came next was sent: versions put them in order, not the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from shared.database import tenant_session
from shared.documents.acting import as_curator
from shared.documents.deletion import delete_document
from shared.documents.ending import withdraw
from shared.errors import Superseded
from shared.events import DocumentWithdrawn
from shared.fakes import FakeBus
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import document_id, look, submission, take

HOUR = timedelta(hours=1)


def withdrawn(tenant: Principal, version: int) -> None:
    """The source withdraws the document at a version; it is handled now."""
    with tenant_session(tenant.tenant_id) as session:
        withdraw(
            session,
            DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="doc", source_version=version),
            "upstream",
        )


@pytest.mark.parametrize("version", [2, 3])
def test_a_version_that_was_sent_before_an_older_withdrawal_was_handled_is_taken(
    tenant: Principal, bus: FakeBus, version: int
) -> None:
    """Withdrawn at 1 and submitted anew as 2 within a minute, and the withdrawal was an hour in the queue."""
    take(tenant, submission(tenant, 1), "old")
    withdrawn(tenant, 1)
    assert look(tenant).state == "deleted"
    take(tenant, submission(tenant, version, occurred_at=datetime.now(UTC) - HOUR), "new")
    assert look(tenant).state != "deleted"


def test_a_version_that_was_sent_before_a_person_deleted_the_document_is_not(tenant: Principal, bus: FakeBus) -> None:
    """People delete what they see: there the clock decides, whatever the version's number."""
    take(tenant, submission(tenant, 1), "old")
    with tenant_session(tenant.tenant_id) as session:
        delete_document(session, as_curator(tenant), document_id(tenant))
    with pytest.raises(Superseded, match="deleted after this was sent"):
        take(tenant, submission(tenant, 2, occurred_at=datetime.now(UTC) - HOUR), "new")
    take(tenant, submission(tenant, 2, occurred_at=datetime.now(UTC) + HOUR), "new")
    assert look(tenant).state != "deleted"


def test_a_withdrawal_that_comes_late_takes_nothing_newer_away(tenant: Principal, bus: FakeBus) -> None:
    """What is known at a later version stays, and the version that was withdrawn stays away."""
    take(tenant, submission(tenant, 3), "new")
    with pytest.raises(Superseded, match="newer version"):
        withdrawn(tenant, 2)
    assert look(tenant).state != "deleted"
    withdrawn(tenant, 3)
    with pytest.raises(Superseded, match="withdrawn already"):
        withdrawn(tenant, 3)
    with pytest.raises(Superseded, match="withdrawn at this or a later version"):
        take(tenant, submission(tenant, 3), "new")
