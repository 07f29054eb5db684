"""Large files: an address for exactly these bytes, once, for a quarter of an hour, for this tenant."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.test import TestResponse

from functions.ingest.ingestion import ingest_document
from shared.database import operator_session, tenant_session
from shared.events import DocumentSubmitted, decode
from shared.fakes import FakeBus, FakeClock, FakeStorage
from shared.services import Services
from shared.settings import load_settings
from shared.storage import FolderStorage
from shared.tenants.directory import Principal
from tests.integration.web_browser import signed_in
from web import authentication, create_app

LIMIT = 3_000_000
DATA = b"# Handbuch\n\nDie Pumpe wird jaehrlich gewartet.\n" * 200


@pytest.fixture
def world(database: object, bus: FakeBus, tmp_path: Path) -> Services:
    """A folder store and a clock moved by hand."""
    authentication.forget_memberships()
    settings = load_settings(secret_key="k" * 40, local_sign_in=True, document_max_bytes=LIMIT)
    clock = FakeClock(datetime.now(UTC).replace(microsecond=0))
    return Services(settings, clock=clock, _storage=FolderStorage((tmp_path / "blobs").as_uri()))


@pytest.fixture
def app(world: Services) -> Flask:
    return create_app(services=world)


def terms(data: bytes = DATA, **changed: Any) -> dict[str, Any]:
    return {
        "file_name": "handbuch.md",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "media_type": "text/markdown",
    } | changed


def order(client: FlaskClient, data: bytes = DATA, **changed: Any) -> dict[str, Any]:
    answer = client.post("/uploads", json=terms(data, **changed))
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.get_json()
    return made


def put(app: Flask, made: dict[str, Any], data: bytes = DATA, **options: Any) -> TestResponse:
    """Send the bytes as a stranger does who has nothing but the address."""
    return app.test_client().put(made["url"], data=data, headers=made["headers"], **options)


def test_a_large_file_becomes_a_document(
    app: Flask, world: Services, tenant: Principal, bus: FakeBus, fake_services: Services
) -> None:
    """Ordered, sent without a session, submitted; ingest finds it under the address that was announced."""
    client = signed_in(app, tenant)
    made = order(client)
    assert made["url"].startswith("/uploads/")
    assert client.post(made["submitted"]).get_json()["reason"] == "upload-missing"
    assert put(app, made).status_code == 204
    answer = client.post(made["submitted"])
    assert (answer.status_code, answer.get_json()["state"]) == (201, "received")
    (message,) = bus.published
    event = decode(message.data.encode(), message.attributes)
    assert isinstance(event, DocumentSubmitted)
    assert (event.uri, event.file_name, event.media_type) == (made["uri"], "handbuch.md", "text/markdown")
    ingest_document(event, "web", Services(world.settings, _storage=world.storage, _models=fake_services.models))
    with tenant_session(tenant.tenant_id) as session:
        version = session.execute(text("select state, blob_uri from rag.versions")).one()
    assert tuple(version) == ("ingested", made["uri"])

    assert client.post(made["submitted"]).status_code == 201  # asked again because the answer was lost
    with tenant_session(tenant.tenant_id) as session:
        assert session.execute(text("select count(*) from rag.versions")).scalar_one() == 1
    assert len({m.event_id for m in bus.published if m.topic == "documents-web"}) == 1


def test_an_address_is_good_once(app: Flask, tenant: Principal) -> None:
    """Used up by the first that arrives whole; what breaks off before may be tried again."""
    data = os.urandom(LIMIT)
    made = order(signed_in(app, tenant), data)
    assert put(app, made, data[:-1] + bytes([data[-1] ^ 1])).get_json()["reason"] == "upload-mismatch"
    assert put(app, made, data).status_code == 204
    again = put(app, made, data)
    assert (again.status_code, again.get_json()["reason"]) == (403, "upload-not-allowed")


def test_an_address_is_good_for_a_while(app: Flask, world: Services, tenant: Principal) -> None:
    """Later it is refused like one that never was."""
    made = order(signed_in(app, tenant))
    assert isinstance(world.clock, FakeClock)
    world.clock.advance(timedelta(minutes=15, seconds=1))
    assert put(app, made).get_json()["reason"] == "upload-not-allowed"
    assert list(world.storage.blobs(tenant.tenant_id)) == []


@pytest.mark.parametrize("change", ["token", "no-token", "tenant", "upload", "empty-token"])
def test_an_address_that_was_not_given_out_takes_nothing(
    app: Flask, world: Services, tenant: Principal, make_tenant: Callable[..., Principal], change: str
) -> None:
    """Another token, another tenant, another upload: the same refusal for all, and nothing is stored."""
    made, other = order(signed_in(app, tenant)), make_tenant()
    path, _, token = made["url"].partition("?token=")
    _, _, tenant_id, upload_id = path.split("/")
    url = {
        "token": f"{path}?token={token[:-1]}{'A' if token[-1] != 'A' else 'B'}",
        "no-token": path,
        "empty-token": f"{path}?token=",
        "tenant": f"/uploads/{other.tenant_id}/{upload_id}?token={token}",
        "upload": f"/uploads/{tenant_id}/{uuid4()}?token={token}",
    }[change]
    refused = put(app, made | {"url": url})
    assert (refused.status_code, refused.get_json()["reason"]) == (403, "upload-not-allowed")
    assert list(world.storage.blobs()) == []
    assert put(app, made).status_code == 204


@pytest.mark.parametrize(
    "data", [DATA + b"x", DATA[:-1], b"", os.urandom(len(DATA))], ids=["more", "fewer", "none", "others"]
)
def test_other_bytes_are_not_kept(app: Flask, world: Services, tenant: Principal, data: bytes) -> None:
    """More, fewer or others than announced: refused before a document could come of them."""
    made = order(signed_in(app, tenant))
    assert put(app, made, data).status_code == 422
    assert list(world.storage.blobs()) == []


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"bytes": LIMIT + 1}, 413),
        ({"bytes": 0}, 422),
        ({"bytes": "5"}, 422),
        ({"sha256": "x" * 64}, 422),
        ({"sha256": f"../{uuid4()}"}, 422),
        ({"file_name": ""}, 422),
        ({"file_name": None}, 422),
        ({"md5": "nonsense"}, 422),
        ({"md5": base64.b64encode(b"short").decode()}, 422),
    ],
)
def test_an_upload_must_be_described(app: Flask, tenant: Principal, change: dict[str, Any], status: int) -> None:
    """Too large, without a proper hash, size or name: no address."""
    client = signed_in(app, tenant)
    assert client.post("/uploads", json=terms(**change)).status_code == status
    assert client.post("/uploads", data="not json").status_code == 422


def test_only_members_order_and_only_their_own_are_submitted(
    app: Flask, tenant: Principal, make_tenant: Callable[..., Principal], bus: FakeBus
) -> None:
    """Nobody without a session, nobody from another site; another member's upload is not there."""
    assert app.test_client().post("/uploads", json=terms()).status_code in (302, 401)
    client = signed_in(app, tenant)
    made = order(client)
    assert put(app, made).status_code == 204
    stranger = signed_in(app, make_tenant())
    assert stranger.post(made["submitted"]).status_code == 404
    client.environ_base["HTTP_X_CSRF_TOKEN"] = "forged"
    assert client.post(made["submitted"]).status_code == 403
    assert client.post("/uploads", json=terms()).status_code == 403
    assert bus.published == []


def test_a_store_with_an_address_of_its_own_is_used(
    database: object, bus: FakeBus, tenant: Principal, world: Services
) -> None:
    """In the cloud the bytes go to the bucket directly; no token of ours opens anything."""
    storage = FakeStorage(signs=True)
    app = create_app(services=Services(world.settings, clock=world.clock, _storage=storage))
    client = signed_in(app, tenant)
    made = order(client, b"small")
    assert made["url"].startswith("https://fake.example/")
    assert put(app, {"url": f"/uploads/{tenant.tenant_id}/{made['id']}?token=", "headers": {}}).status_code == 403
    storage.put(tenant.tenant_id, b"small")
    before = storage.find(tenant.tenant_id, made["uri"])
    assert client.post(made["submitted"]).status_code == 201
    after = storage.find(tenant.tenant_id, made["uri"])
    assert before is not None
    assert after is not None
    assert before.version != after.version  # made new, so that the collector leaves it alone


@pytest.mark.parametrize(("url", "allowed"), [("file:///blobs", False), ("gs://noesis-blobs", True)])
def test_the_page_may_speak_to_the_bucket_only_where_there_is_one(world: Services, url: str, allowed: bool) -> None:
    """The content security policy opens for Google's storage, and for nothing on a laptop."""
    settings = world.settings.model_copy(update={"blob_url": url})
    policy = create_app(services=Services(settings)).test_client().get("/").headers["Content-Security-Policy"]
    assert ("connect-src 'self' https://storage.googleapis.com;" in policy) is allowed
    assert policy.count("https:") == int(allowed)


def test_a_foreign_blob_is_not_ingested(
    tenant: Principal, make_tenant: Callable[..., Principal], fake_services: Services
) -> None:
    """A client publishes the address of another tenant's bytes: the document fails, the bytes stay unread."""
    other = make_tenant()
    secret = fake_services.storage.put(other.tenant_id, b"# Geheim\n\nNur fuer andere.\n")
    name = secret.rpartition("/")[2]
    for uri in (secret, secret.replace("blobs/", f"blobs/{tenant.tenant_id}/../"), f"fake://blobs/{name}"):
        event = DocumentSubmitted(tenant_id=tenant.tenant_id, external_id=uri, file_name="a.md", uri=uri)
        ingest_document(event, "upstream", fake_services)
    with operator_session() as session:
        rows = session.execute(
            text("select state, reason from rag.documents where tenant_id = :t"), {"t": tenant.tenant_id}
        ).all()
        chunks = session.execute(
            text("select count(*) from rag.chunks where tenant_id = :t"), {"t": tenant.tenant_id}
        ).scalar_one()
    assert {tuple(row) for row in rows} == {("failed", "uri-not-allowed")}
    assert (len(rows), chunks) == (3, 0)
