"""From a submitted message to chunks, with the real parser in its child process."""

from __future__ import annotations

import base64
from email.message import EmailMessage
from typing import Any

import pytest
from sqlalchemy import text

from functions.ingest.ingestion import ingest_document, withdraw_document
from shared.database import tenant_session
from shared.errors import PermanentError, Superseded
from shared.events import DocumentSubmitted, DocumentWithdrawn, decode
from shared.fakes import FakeBus
from shared.services import Services
from shared.tenants.directory import Principal


def submission(tenant: Principal, data: bytes, external_id: str = "doc", version: int = 1) -> DocumentSubmitted:
    """An event with inline content."""
    return DocumentSubmitted(
        tenant_id=tenant.tenant_id,
        external_id=external_id,
        source_version=version,
        file_name=external_id,
        content=base64.b64encode(data).decode(),
    )


def documents(tenant: Principal) -> dict[str, Any]:
    """The tenant's documents by external id."""
    with tenant_session(tenant.tenant_id) as session:
        return {row.external_id: row for row in session.execute(text("select * from rag.documents"))}


def children(bus: FakeBus) -> list[Any]:
    """What ingest itself sent to its own topic; each is returned once."""
    found = [decode(m.data.encode(), m.attributes) for m in bus.published if m.topic == "documents-upstream"]
    bus.published.clear()
    return found


def mail(*attachments: tuple[str, str]) -> bytes:
    """A mail with text attachments."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@example.org", "b@example.org", "Angebot"
    message.set_content("Im Anhang steht unser Angebot für die Wartung der Pumpen.")
    for name, body in attachments:
        message.add_attachment(body.encode(), maintype="text", subtype="plain", filename=name)
    return message.as_bytes()


def test_chunks_are_stored_with_their_places(tenant: Principal, fake_services: Services) -> None:
    """Text, offsets and headings of real Markdown; the blob is kept; nothing is embedded yet."""
    body = b"# Pumpen\n\n## Wartung\n\nDie Dichtung wird nach 8.000 Stunden getauscht.\n"
    ingest_document(submission(tenant, body, "pumpen.md"), "upstream", fake_services)
    found = documents(tenant)["pumpen.md"]
    assert (found.state, found.title) == ("ingested", "Pumpen")
    with tenant_session(tenant.tenant_id) as session:
        chunk = session.execute(text("select * from rag.chunks")).one()
        version = session.execute(text("select * from rag.versions")).one()
    assert "8.000 Stunden" in chunk.text
    assert (version.chunks, version.bytes, version.media_type) == (1, len(body), "text/markdown")
    assert fake_services.storage.get(tenant.tenant_id, version.blob_uri, 1000) == body


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty-document"), (b"%PDF-1.4 nonsense", "corrupt"), (b"GIF89a" + bytes(99), "unsupported-type")],
)
def test_a_document_that_cannot_be_read_fails_with_a_reason(
    tenant: Principal, fake_services: Services, bus: FakeBus, data: bytes, reason: str
) -> None:
    """The message is done, the document says why and what to do, upstream is told."""
    ingest_document(submission(tenant, data), "upstream", fake_services)
    found = documents(tenant)["doc"]
    assert (found.state, found.reason) == ("failed", reason)
    assert found.next_action
    assert bus.names() == ["document-failed"]


def test_a_source_speaks_only_for_its_tenants(tenant: Principal, fake_services: Services) -> None:
    """An unbound source is refused and leaves nothing."""
    with pytest.raises(PermanentError) as refused:
        ingest_document(submission(tenant, b"x y z"), "stranger", fake_services)
    assert refused.value.reason == "source-not-bound"
    assert documents(tenant) == {}


def test_a_redelivery_changes_nothing(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """The same message twice: the same chunks, the same command."""
    event = submission(tenant, b"Ein Satz mit Inhalt.")
    ingest_document(event, "upstream", fake_services)
    ingest_document(event, "upstream", fake_services)
    with tenant_session(tenant.tenant_id) as session:
        assert session.execute(text("select count(*) from rag.chunks")).scalar() == 1
    assert bus.names().count("embed-chunks") == 1


def test_attachments_become_documents_of_their_own(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """A mail's attachment is submitted for the same source, with the mail's access, and is read like any document."""
    ingest_document(
        submission(tenant, mail(("preise.txt", "Die Wartung kostet 480 Euro.")), "mail"), "upstream", fake_services
    )
    (child,) = children(bus)
    ingest_document(child, "upstream", fake_services)
    found = documents(tenant)
    assert set(found) == {"mail", "mail#1/preise.txt"}
    assert found["mail#1/preise.txt"].metadata["attachment_of"] == "mail"
    with tenant_session(tenant.tenant_id) as session:
        texts = " ".join(row[0] for row in session.execute(text("select text from rag.chunks")))
    assert "480 Euro" in texts


def test_attachments_follow_their_mail(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """What a new version no longer carries is withdrawn; with the mail everything goes."""
    first = mail(("a.txt", "Anhang A mit Text."), ("b.txt", "Anhang B mit Text."))
    ingest_document(submission(tenant, first, "mail"), "upstream", fake_services)
    for child in children(bus):
        ingest_document(child, "upstream", fake_services)
    second = mail(("a.txt", "Anhang A mit neuem Text."))
    ingest_document(submission(tenant, second, "mail", version=2), "upstream", fake_services)
    for child in children(bus):
        if isinstance(child, DocumentWithdrawn):
            withdraw_document(child, "upstream")
        else:
            ingest_document(child, "upstream", fake_services)
    assert {k: v.state for k, v in documents(tenant).items()} == {
        "mail": "ingested", "mail#1/a.txt": "ingested", "mail#2/b.txt": "deleted"}  # fmt: skip
    withdraw_document(DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="mail", source_version=3), "upstream")
    for child in children(bus):
        withdraw_document(child, "upstream")
    assert {v.state for v in documents(tenant).values()} == {"deleted"}


def test_metadata_of_upstream_makes_no_attachment(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """A system that sends attachments itself and calls them so keeps them: only what ingest found follows its mail."""
    for name, parent in (("apart", "mail"), ("itself", "itself"), ("mail", "")):
        event = submission(tenant, f"Der Text von {name} steht hier.".encode(), name)
        noted = {"attachment_of": parent, "attachment_depth": "1", "folder": "a"} if parent else {}
        ingest_document(event.model_copy(update={"metadata": noted}), "upstream", fake_services)
    assert not [message for message in children(bus) if isinstance(message, DocumentWithdrawn)]
    found = documents(tenant)
    assert {name: row.state for name, row in found.items()} == dict.fromkeys(("apart", "itself", "mail"), "ingested")
    assert found["apart"].metadata == {"folder": "a"}


def test_a_mail_with_all_metadata_it_may_have_has_its_attachments_read(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """What the attachment needs for itself takes the place of its mail's last names."""
    event = submission(tenant, mail(("preise.txt", "Die Wartung kostet 480 Euro.")), "mail")
    full = {f"name {number}": "x" for number in range(64)}
    ingest_document(event.model_copy(update={"metadata": full}), "upstream", fake_services)
    (child,) = children(bus)
    assert isinstance(child, DocumentSubmitted)
    assert len(child.metadata) == 64
    assert child.metadata["attachment_of"] == "mail"


def test_mails_in_mails_end(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """Nesting is followed three levels deep and then left alone."""
    body = mail(("innermost.txt", "Ganz innen."))
    for _ in range(6):
        outer = EmailMessage()
        outer["From"], outer["Subject"] = "a@example.org", "Weitergeleitet"
        outer.set_content("Siehe Anhang.")
        outer.add_attachment(body, maintype="application", subtype="octet-stream", filename="mail.eml")
        body = outer.as_bytes()
    waiting: list[Any] = [submission(tenant, body, "mail")]
    while waiting:
        try:
            ingest_document(waiting.pop(), "upstream", fake_services)
        except Superseded:
            continue
        waiting += children(bus)
    assert len(documents(tenant)) == 4
