"""Deleting and restoring a document on the page."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest
from flask import Flask
from flask.testing import FlaskClient

from shared.fakes import FakeBus
from shared.services import Services
from shared.settings import load_settings
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import acts, document_id, look, make, submission, take
from web import create_app, protection


@pytest.fixture
def acting(tenant: Principal, monkeypatch: pytest.MonkeyPatch) -> list[Principal]:
    """Who is signed in: the last of the list."""
    found = [tenant]
    monkeypatch.setattr(protection, "current_principal", lambda: found[-1])
    return found


@pytest.fixture
def client(acting: list[Principal], fake_services: Services) -> FlaskClient:
    """A browser that is signed in, with the token of its page."""
    key = "a-key-for-this-test-only-0123456789abcdef"
    app: Flask = create_app(services=Services(load_settings(secret_key=key, local_sign_in=True)))
    found = app.test_client()
    page = found.get("/").text
    found.environ_base["HTTP_X_CSRF_TOKEN"] = page.split('name="csrf-token" content="')[1].split('"')[0]
    return found


def test_a_curator_deletes_and_restores_on_the_page(
    client: FlaskClient, tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """The list follows at once; deleting twice is harmless, restoring what is not deleted says why."""
    make(fake_services, bus, tenant, 1, "text")
    address = f"/documents/{document_id(tenant)}"
    assert "data-curates" in client.get("/").text
    assert client.post(f"{address}/delete").json == {"deleted": 1}
    assert client.post(f"{address}/delete").json == {"deleted": 0}
    assert client.get("/documents").json == {"documents": []}
    assert client.get(address).status_code == 404
    assert client.post(f"{address}/restore").json == {"state": "searchable"}
    again = client.post(f"{address}/restore")
    assert (again.status_code, again.json and again.json["reason"]) == (422, "not-deleted")
    assert len((client.get("/documents").json or {})["documents"]) == 1


def test_a_curator_stops_what_is_in_progress(
    client: FlaskClient, tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """The version that answers stays; a second stop finds nothing; who did it is on record."""
    make(fake_services, bus, tenant, 1, "text")
    take(tenant, submission(tenant, 2), "another text")
    address = f"/documents/{document_id(tenant)}"
    assert client.post(f"{address}/cancel").json == {"cancelled": 1}
    assert client.post(f"{address}/cancel").json == {"cancelled": 0}
    assert (look(tenant).state, look(tenant).current, look(tenant).reason) == ("searchable", 1, "cancelled")
    assert [what for _, what in acts(tenant)] == ["ingestion-cancelled"]
    assert client.post(f"/documents/{uuid4()}/cancel").status_code == 404


def test_who_may_only_read_is_refused(
    client: FlaskClient, acting: list[Principal], tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """A member gets 403 and no button, also for a document that does not exist; a post without the token too."""
    make(fake_services, bus, tenant, 1, "text")
    acting.append(replace(tenant, role="member"))
    assert "data-curates" not in client.get("/").text
    for which in (document_id(tenant), uuid4()):
        assert client.post(f"/documents/{which}/cancel").status_code == 403
        answer = client.post(f"/documents/{which}/delete", headers={"Accept-Language": "de"})
        assert answer.status_code == 403
        assert "Ihre Rolle" in (answer.json or {})["detail"]
    acting.append(tenant)
    assert client.post(f"/documents/{uuid4()}/delete").status_code == 404
    client.environ_base["HTTP_X_CSRF_TOKEN"] = "wrong"
    assert client.post(f"/documents/{document_id(tenant)}/delete").status_code == 403
    assert look(tenant).state == "searchable"
