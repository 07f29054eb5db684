"""Uploading over HTTP, states, passages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from typing import get_args
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.test import TestResponse

from shared.database import tenant_session
from shared.documents.ending import fail_version
from shared.documents.intake import receive
from shared.documents.storing import Batch, Content, NewChunk, store
from shared.documents.waiting import Cause, go_on, wait_for
from shared.errors import PermanentError
from shared.events import Access, DocumentSubmitted
from shared.fakes import FakeBus, FakeStorage
from shared.services import Services
from shared.settings import load_settings
from shared.tenants.directory import Principal
from tests.integration.web_browser import signed_in
from web import authentication, create_app
from web.words import page_words

LIMIT = 100_000


@pytest.fixture
def storage() -> FakeStorage:
    """Blobs in memory."""
    return FakeStorage()


@pytest.fixture
def app(database: object, bus: FakeBus, storage: FakeStorage) -> Flask:
    """The application on the test's database; documents up to LIMIT bytes."""
    authentication.forget_memberships()
    key = "a-key-for-this-test-only-0123456789abcdef"
    settings = load_settings(secret_key=key, local_sign_in=True, document_max_bytes=LIMIT)
    return create_app(services=Services(settings, _storage=storage))


def upload(client: FlaskClient, data: bytes, name: str = "a.txt", kind: str = "text/plain") -> TestResponse:
    """Send one file as the page does."""
    return client.post("/documents", data={"file": (BytesIO(data), name, kind)})


def ingest(member: Principal, title: str, passage: str, access: Access | None = None) -> UUID:
    """Store a document of one chunk as ingest would; returns the chunk's id."""
    event = DocumentSubmitted(
        tenant_id=member.tenant_id, external_id=title, file_name=title, uri="file:///x", access=access or Access()
    )
    digest = hashlib.sha256(passage.encode()).hexdigest()
    chunk = NewChunk(passage, digest, 0, len(passage), 9, "en", ("III", "14"), {"page": 7})
    with tenant_session(member.tenant_id) as session:
        reception = receive(session, event, "web")
        content = Content(digest, "file:///x", len(passage), "text/plain", "en", title, [chunk])
        store(session, reception, content, event.traceparent, Batch(128, 100_000))
        found = session.execute(
            text("select chunk_id from rag.chunks where tenant_id = :t and version_id = :v"),
            {"t": member.tenant_id, "v": reception.version_id},
        )
        chunk_id: UUID = found.scalar_one()
    return chunk_id


def test_an_upload_is_received_and_announced(app: Flask, tenant: Principal, bus: FakeBus, storage: FakeStorage) -> None:
    """201 with the document; the bytes are the tenant's blob, the event names them."""
    client = signed_in(app, tenant)
    answer = upload(client, b"Be kind.", "Handbuch für Alle.md", "text/markdown")
    assert answer.status_code == 201
    document = answer.get_json()
    assert (document["title"], document["state"]) == ("Handbuch für Alle.md", "received")
    assert client.get(f"/documents/{document['id']}").get_json() == document
    assert client.get("/documents").get_json() == {"documents": [document]}
    (message,) = bus.published
    event = json.loads(message.data)
    assert (message.topic, event["name"], event["media_type"]) == (
        "documents-web",
        "document-submitted",
        "text/markdown",
    )
    assert storage.get(tenant.tenant_id, event["uri"], LIMIT) == b"Be kind."


def test_the_same_name_is_a_new_version_of_the_same_document(app: Flask, tenant: Principal, bus: FakeBus) -> None:
    """The version grows with the clock, so that the later upload wins."""
    client = signed_in(app, tenant)
    first, second = (upload(client, data).get_json()["id"] for data in (b"one", b"two"))
    assert first == second
    versions = [json.loads(message.data)["source_version"] for message in bus.published]
    assert versions[0] < versions[1]


def test_an_upload_is_received_while_the_bus_is_down(app: Flask, tenant: Principal, bus: FakeBus) -> None:
    """The outbox keeps the event; the member sees the document."""
    bus.down = True
    client = signed_in(app, tenant)
    assert upload(client, b"Be kind.").status_code == 201
    assert [d["state"] for d in client.get("/documents").get_json()["documents"]] == ["received"]


@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT + 10_000_000])
def test_an_oversized_upload_gets_413_with_what_to_do(
    app: Flask, tenant: Principal, bus: FakeBus, storage: FakeStorage, size: int
) -> None:
    """One byte too many is enough; in the language of the member; nothing is stored."""
    client = signed_in(app, tenant)
    assert upload(client, b"x" * LIMIT, "fits.txt").status_code == 201
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="big.txt"\r\n\r\n'
    answer = client.post(
        "/documents",
        data=head + b"x" * size + b"\r\n--b--\r\n",
        content_type="multipart/form-data; boundary=b",
        headers={"Accept-Language": "de"},
    )
    assert (answer.status_code, answer.mimetype) == (413, "application/problem+json")
    problem = answer.get_json()
    assert (problem["reason"], problem["detail"]) == ("too-large", "Die Datei ist größer als 97,7 kB.")
    assert "Teilen Sie sie" in problem["next_action"]
    assert len(storage.blobs_by_key) == len(bus.published) == 1


def test_an_upload_of_nothing_is_refused(app: Flask, tenant: Principal, bus: FakeBus) -> None:
    """No file, a file without a name, an empty file, no multipart at all."""
    client = signed_in(app, tenant)
    assert client.post("/documents", data={"other": "x"}).get_json()["reason"] == "no-file"
    assert upload(client, b"x", "../..").get_json()["reason"] == "no-file"
    assert upload(client, b"").get_json()["reason"] == "empty-document"
    assert client.post("/documents", data=b"x", content_type="text/plain").status_code == 400
    assert bus.published == []


def test_hostile_file_names_are_cleaned(app: Flask, tenant: Principal, bus: FakeBus) -> None:
    """Paths, control characters, direction marks and length; the row and the event have the same clean name."""
    client = signed_in(app, tenant)
    answer = upload(client, b"x", "/etc/../\u202egnp\x07 " + "x" * 300 + ".pdf", "text/" + "y" * 400)
    title = answer.get_json()["title"]
    assert title.startswith("gnp x")
    assert title.endswith("x.pdf")
    assert len(title) == 255
    assert json.loads(bus.published[0].data)["file_name"] == title


def test_a_failed_document_says_why_in_the_readers_language(app: Flask, tenant: Principal, bus: FakeBus) -> None:
    """Reason, sentence and next action; the code stays the same."""
    client = signed_in(app, tenant)
    event = DocumentSubmitted(tenant_id=tenant.tenant_id, external_id="s", file_name="scan.pdf", uri="file:///x")
    with tenant_session(tenant.tenant_id) as session:
        reception = receive(session, event, "web")
        fail_version(session, tenant.tenant_id, reception.version_id, PermanentError("no-text", "No text.", "Run OCR."))
    (english,) = client.get("/documents").get_json()["documents"]
    (german,) = client.get("/documents", headers={"Accept-Language": "de"}).get_json()["documents"]
    assert (english["state"], english["message"], english["next_action"]) == ("failed", "No text.", "Run OCR.")
    assert german["reason"] == "no-text"
    assert "Texterkennung" in german["next_action"]


def test_a_passage_is_shown_as_it_was_stored(app: Flask, tenant: Principal, bus: FakeBus) -> None:
    """Text to the character, so that the offsets of the quotation fit."""
    passage = "A 🌴 <b>tree</b>\nand more."
    chunk_id = ingest(tenant, "Trees", passage)
    shown = signed_in(app, tenant).get(f"/chunks/{chunk_id}").get_json()
    assert (shown["title"], shown["text"], shown["heading_path"]) == ("Trees", passage, ["III", "14"])


def test_documents_and_passages_of_others_do_not_exist(
    app: Flask, make_tenant: Callable[..., Principal], bus: FakeBus
) -> None:
    """404 for another tenant, and for a member who is not on the document's access list."""
    owner, other = make_tenant(), make_tenant()
    own, closed = signed_in(app, owner), ingest(owner, "Closed", "secret", Access(members=("boss@a.example",)))
    document = upload(own, b"x").get_json()["id"]
    chunk = ingest(owner, "Open", "for everyone here")
    assert own.get(f"/documents/{document}").status_code == 200
    assert own.get(f"/chunks/{chunk}").status_code == 200
    assert own.get(f"/chunks/{closed}").status_code == 404
    stranger = signed_in(app, other)
    assert stranger.get(f"/documents/{document}").status_code == 404
    assert stranger.get(f"/chunks/{chunk}").status_code == 404
    assert stranger.get("/documents").get_json() == {"documents": []}


def test_what_a_document_waits_for_is_told_with_its_end(app: Flask, tenant: Principal) -> None:
    """Cause and time go to the page, which has words for every cause; once it goes on, nothing is said."""
    client = signed_in(app, tenant)
    document = upload(client, b"text", "waits.txt").json
    assert document is not None
    event = DocumentSubmitted(tenant_id=tenant.tenant_id, external_id="waits.txt", source_version=1, content="dGV4dA==")
    with tenant_session(tenant.tenant_id) as session:
        reception = receive(session, event, "upload")
        until = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
        wait_for(session, tenant.tenant_id, reception.version_id, "budget", until)
    rows = client.get("/documents").json
    assert rows is not None
    shown = next(row for row in rows["documents"] if row["file"] == "waits.txt")
    assert (shown["waiting"], shown["waiting_until"]) == ("budget", until.isoformat())
    with app.test_request_context():
        assert {f"waiting.{cause}" for cause in get_args(Cause)} <= page_words().keys()
    with tenant_session(tenant.tenant_id) as session:
        go_on(session, tenant.tenant_id, reception.version_id)
    assert client.get(f"/documents/{shown['id']}").json["waiting"] is None  # type: ignore[index]
