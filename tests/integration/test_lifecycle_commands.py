"""`noesis documents …` from the operator's terminal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.main import noesis
from shared.database import operator_session
from shared.documents.purge_requests import request_purge
from shared.fakes import FakeBus
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import acts, document_id, look, make, submission, take


@pytest.fixture(autouse=True)
def use_fakes(fake_services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands' services are the twins of this test."""
    monkeypatch.setattr("cli.documents.services", lambda: fake_services)
    monkeypatch.setattr("getpass.getuser", lambda: "olga")


def command(tenant: Principal, *arguments: str) -> Result:
    """Run `noesis documents` for the tenant."""
    return CliRunner().invoke(noesis, ["documents", "--tenant", tenant.tenant_slug, *arguments])


def shown(tenant: Principal, name: str = "doc") -> Any:
    """What `show` says."""
    return json.loads(command(tenant, "show", name).output)


def test_without_a_command_the_documents_are_listed(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """As before there were commands."""
    make(fake_services, bus, tenant, 1, "text")
    result = command(tenant)
    assert result.exit_code == 0
    assert "searchable" in result.output
    assert "doc" in result.output


def test_delete_and_restore_by_name_and_by_id(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """Each document is told; one that is unknown makes the status 1 and stops no other."""
    make(fake_services, bus, tenant, 1, "text")
    result = command(tenant, "delete", "no-such", "doc")
    assert result.exit_code == 1
    assert "no-such: There is no such document." in result.output
    assert "doc: deleted" in result.output
    assert (shown(tenant)["state"], shown(tenant)["deleted_by"]) == ("deleted", "operator:olga")
    assert shown(tenant)["restorable_until"] > shown(tenant)["deleted_at"]
    assert command(tenant, "restore", str(document_id(tenant))).exit_code == 0
    assert look(tenant).state == "searchable"


def test_cancel_stops_what_is_in_progress(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """A document that never answered fails with the reason; when nothing is in progress it says so."""
    take(tenant, submission(tenant, 1), "text")
    result = command(tenant, "cancel", "doc", "no-such")
    assert result.exit_code == 1
    assert "doc: cancelled" in result.output
    assert "no-such: There is no such document." in result.output
    assert (look(tenant).state, look(tenant).reason) == ("failed", "cancelled")
    assert "doc: nothing was in progress" in command(tenant, "cancel", "doc").output
    assert acts(tenant) == [("operator:olga", "ingestion-cancelled")]


def test_rollback_takes_the_number_that_history_shows(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """And history tells who did it."""
    make(fake_services, bus, tenant, 10, "good")
    make(fake_services, bus, tenant, 20, "bad")
    assert command(tenant, "rollback", "doc", "30").exit_code == 1
    assert command(tenant, "rollback", "doc", "10").exit_code == 0
    assert look(tenant).current == 10
    told = command(tenant, "history", "doc").output
    assert "← answers" in told
    assert "document-rolled-back by operator:olga" in told


def test_purge_asks_first_and_tells_of_its_proof(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """Without a yes nothing happens."""
    make(fake_services, bus, tenant, 1, "text")
    assert command(tenant, "purge", "doc").exit_code != 0
    assert look(tenant).state == "searchable"
    result = command(tenant, "purge", "doc", "--yes")
    assert result.exit_code == 0
    assert "1 documents are deleted for good" in result.output
    assert look(tenant) is None
    assert command(tenant, "purge").exit_code == 2


def test_many_are_requested_by_one_and_approved_by_another(tenant: Principal, bus: FakeBus) -> None:
    """The same person is refused; the request is listed until it was carried out."""
    for number in range(21):
        take(tenant, submission(tenant, 1, f"doc-{number}"), f"text {number}")
    names = [f"doc-{number}" for number in range(21)]
    assert command(tenant, "purge", *names, "--yes").exit_code == 1
    assert "21 documents" in command(tenant, "purge", *names, "--request", "--note", "GDPR").output
    listed = command(tenant, "purge", "--list").output
    assert "waits for approval  GDPR" in listed
    own = listed.split()[0]
    assert command(tenant, "purge", "--approve", own, "--yes").exit_code == 1
    ids = [document_id(tenant, name) for name in names]
    with operator_session() as operator:
        others = str(request_purge(operator, tenant.tenant_id, "otto", ids).request_id)
    result = command(tenant, "purge", "--approve", others, "--yes")
    assert result.output.splitlines()[-1] == "21 of 21 documents are deleted for good."
    assert look(tenant, "doc-0") is None
