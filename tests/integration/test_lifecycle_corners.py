"""Two things at once: what is deleted, withdrawn, purged, unbound or cancelled while something else is under way."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from cli.tenants import tenants
from functions.ingest.ingestion import ingest_document, withdraw_document
from functions.maintenance.archiving import archive_exhausted
from shared.database import operator_session, platform_session, tenant_session
from shared.dead_letters.archive import DeadLetter, archive, letter_id_of
from shared.dead_letters.replay import EXHAUSTED, replay
from shared.documents.acting import Actor, as_curator, as_operator
from shared.documents.cancellation import cancel_ingestion
from shared.documents.deletion import delete_document
from shared.documents.ending import fail_version
from shared.documents.hard_deletion import purge_documents
from shared.documents.intake import document_id_of
from shared.documents.purging import purge_old_content
from shared.documents.reading import WEB, submit_blob
from shared.documents.restoring import restore_document
from shared.doors import Delivery
from shared.errors import PermanentError, Superseded
from shared.events import DocumentFailed, DocumentSubmitted, DocumentWithdrawn, EmbedChunks, decode
from shared.fakes import FakeBus, FakeClock, FakeModels, FakeStorage
from shared.services import Services
from shared.settings import Settings
from shared.tenants.directory import Principal, unbind_source
from tests.integration.lifecycle_material import (
    BATCH,
    age,
    count,
    document_id,
    embed_all,
    found,
    look,
    make,
    submission,
    take,
)

EXHAUSTION = PermanentError(EXHAUSTED, "It failed on every delivery.", "Replay it.")


def sent(tenant: Principal, number: int, words: str, external_id: str = "doc") -> DocumentSubmitted:
    """A submission with content."""
    content = base64.b64encode(words.encode()).decode()
    return submission(tenant, number, external_id).model_copy(update={"content": content, "file_name": "doc.txt"})


def messages(bus: FakeBus, tenant: Principal, kind: type) -> list[object]:
    """What is on the bus of a kind; each is returned once."""
    found = [(o, decode(o.data.encode(), o.attributes)) for o in bus.published if o.tenant_id == tenant.tenant_id]
    wanted = [(o, m) for o, m in found if isinstance(m, kind)]
    taken = {id(o) for o, _ in wanted}
    bus.published[:] = [o for o in bus.published if id(o) not in taken]
    return [m for _, m in wanted]


def delete(tenant: Principal, external_id: str = "doc") -> None:
    """Delete a document as its tenant's administrator."""
    with tenant_session(tenant.tenant_id) as session:
        delete_document(session, as_curator(tenant), document_id(tenant, external_id))


def restore(tenant: Principal, actor: Actor) -> str:
    """Restore the document."""
    with tenant_session(tenant.tenant_id) as session:
        return restore_document(session, actor, document_id(tenant), BATCH)


def upload(tenant: Principal, uri: str, version: int, name: str = "report.txt") -> None:
    """Submit a stored file as web does."""
    with tenant_session(tenant.tenant_id) as session:
        submit_blob(session, tenant, uri, name, version=version)


def uploaded(tenant: Principal, name: str = "report.txt") -> tuple[str, str | None] | None:
    """State and reason of an upload."""
    with operator_session() as session:
        row = session.execute(
            text("select state, reason from rag.documents where tenant_id = :t and document_id = :d"),
            {"t": tenant.tenant_id, "d": document_id_of(tenant.tenant_id, WEB, name)},
        ).first()
    return (row.state, row.reason) if row else None


@pytest.fixture
def crowded(settings: Settings) -> Services:
    """Services that let one document of a tenant be in progress."""
    changed = settings.model_copy(update={"documents_in_progress": 1})
    return Services(changed, FakeClock(), _storage=FakeStorage(), _models=FakeModels())


def now() -> int:
    """The version of an upload that is made now."""
    return int(datetime.now(UTC).timestamp() * 1_000_000)


def test_a_sender_may_use_an_event_id_twice(tenant: Principal, crowded: Services, bus: FakeBus) -> None:
    """Two documents under one id wait in line at the same time: both have their turn."""
    ingest_document(sent(tenant, 1, "The first text.", "busy"), "upstream", crowded)
    same = uuid4()
    for name in ("one", "two"):
        event = sent(tenant, 1, f"The text of {name}.", name).model_copy(update={"event_id": same})
        ingest_document(event, "upstream", crowded)
        again = sent(tenant, 2, f"The new text of {name}.", name).model_copy(update={"event_id": same})
        ingest_document(again, "upstream", crowded)
    for _ in range(10):
        embed_all(crowded, bus)
        for message in messages(bus, tenant, DocumentSubmitted):
            assert isinstance(message, DocumentSubmitted)
            try:
                ingest_document(message, "upstream", crowded)
            except Superseded:
                continue
    assert [(look(tenant, n).state, look(tenant, n).current) for n in ("one", "two")] == [("searchable", 2)] * 2


def test_an_old_dead_letter_does_not_replace_a_text_by_nothing(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """What had been stored of the failed version was purged after 30 days; the letter is replayed afterwards."""
    make(fake_services, bus, tenant, 1, "the old text")
    failed = take(tenant, submission(tenant, 2), "the new text")
    (command,) = messages(bus, tenant, EmbedChunks)
    assert isinstance(command, EmbedChunks)
    letter = DeadLetter("embed", uuid4().hex, command.data(), command.attributes(), "transient", EXHAUSTED, "x")
    with platform_session() as session:
        archive(session, [letter])
    with tenant_session(tenant.tenant_id) as session:
        fail_version(session, tenant.tenant_id, failed.version_id, EXHAUSTION)
    age(tenant, "rag.versions", "updated_at", "31 days")
    with operator_session() as operator:
        purge_old_content(operator, versions=1_000, chunks=100_000)
    assert count(tenant, "rag.chunks") == 1
    with operator_session() as operator:
        assert replay(operator, letter_id_of(letter), actor="operator:test").done
    embed_all(fake_services, bus)
    assert found(fake_services, tenant, "text") == ["the old text"]
    assert (look(tenant).current, look(tenant).reason) == (1, EXHAUSTED)


def test_a_deleted_mail_that_is_withdrawn_too_is_restored_with_its_attachments(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """They were deleted together, whoever confirmed it afterwards."""
    make(fake_services, bus, tenant, 1, "the mail")
    make(fake_services, bus, tenant, 1, "the annex", external_id="doc#1", parent="doc")
    delete(tenant)
    withdraw_document(DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="doc", source_version=1), "upstream")
    assert restore(tenant, as_operator(tenant.tenant_id, "olga")) == "searchable"
    assert look(tenant, "doc#1").state == "searchable"


def test_a_restoration_takes_up_what_its_own_deletion_interrupted(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Not what an earlier one did: somebody deleted that text, and its source sent another one since."""
    take(tenant, submission(tenant, 1), "what was deleted first")
    delete(tenant)
    newer = take(tenant, submission(tenant, 2, occurred_at=datetime.now(UTC) + timedelta(seconds=1)), "the next text")
    with tenant_session(tenant.tenant_id) as session:
        fail_version(session, tenant.tenant_id, newer.version_id, EXHAUSTION)
    bus.published.clear()
    delete(tenant)
    assert restore(tenant, as_curator(tenant)) == "failed"
    embed_all(fake_services, bus)
    assert found(fake_services, tenant, "deleted") == []
    assert "what was deleted first" not in fake_services.models.embedded  # type: ignore[attr-defined]


def test_a_purge_leaves_the_bytes_that_an_open_dead_letter_needs(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Two documents with the same bytes: one is deleted for good, the other's message waits to be replayed."""
    storage = fake_services.storage
    uri = storage.put(tenant.tenant_id, b"The same text in both.")
    waiting = submission(tenant, 1, "waiting").model_copy(update={"content": None, "uri": uri, "file_name": "a.txt"})
    letter = DeadLetter("ingest-upstream", uuid4().hex, waiting.data(), waiting.attributes(), "permanent", "x", "x")
    with platform_session() as session:
        archive(session, [letter])
    take(tenant, submission(tenant, 1), "The same text in both.", blob=uri)
    age(tenant, "rag.versions", "updated_at", "-1 minute")  # used after the bytes were stored
    purged = purge_documents(as_operator(tenant.tenant_id, "olga"), [document_id(tenant)], storage)
    assert (purged.documents, purged.blobs.deleted, purged.blobs.shared) == (1, 0, 1)
    with operator_session() as operator:
        assert replay(operator, letter_id_of(letter), actor="operator:test").done
    ingest_document(waiting, "upstream", fake_services)
    assert look(tenant, "waiting").state == "ingested"


def test_an_upload_that_is_told_again_after_a_purge_leaves_no_ghost(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """The client repeats that it is done; meanwhile the document was deleted for good."""
    uri, version = fake_services.storage.put(tenant.tenant_id, b"A report."), now()
    upload(tenant, uri, version)
    (event,) = messages(bus, tenant, DocumentSubmitted)
    assert isinstance(event, DocumentSubmitted)
    ingest_document(event, WEB, fake_services)
    which = document_id_of(tenant.tenant_id, WEB, "report.txt")
    purge_documents(as_operator(tenant.tenant_id, "olga"), [which], fake_services.storage)
    with pytest.raises(PermanentError) as refused:
        upload(tenant, uri, version)
    assert refused.value.reason == "upload-not-allowed"
    assert uploaded(tenant) is None
    upload(tenant, fake_services.storage.put(tenant.tenant_id, b"A report."), now())
    assert uploaded(tenant) == ("received", None)


def test_an_upload_is_cancelled_before_it_is_looked_at(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Its message is still on its way: nothing of it is read later, the state says why, a new upload is welcome."""
    upload(tenant, fake_services.storage.put(tenant.tenant_id, b"A report."), now())
    which = document_id_of(tenant.tenant_id, WEB, "report.txt")
    with tenant_session(tenant.tenant_id) as session:
        assert cancel_ingestion(session, as_curator(tenant), which, 10) == 1
    assert uploaded(tenant) == ("failed", "cancelled")
    (event,) = messages(bus, tenant, DocumentSubmitted)
    assert isinstance(event, DocumentSubmitted)
    with pytest.raises(Superseded):
        ingest_document(event, WEB, fake_services)
    assert uploaded(tenant) == ("failed", "cancelled")
    (told,) = messages(bus, tenant, DocumentFailed)
    assert isinstance(told, DocumentFailed)
    assert (told.external_id, told.reason) == ("report.txt", "cancelled")
    upload(tenant, fake_services.storage.put(tenant.tenant_id, b"Another report."), now())
    (event,) = messages(bus, tenant, DocumentSubmitted)
    assert isinstance(event, DocumentSubmitted)
    ingest_document(event, WEB, fake_services)
    assert uploaded(tenant) == ("ingested", None)


def test_nothing_is_uploaded_where_the_page_may_not_speak(tenant: Principal, fake_services: Services) -> None:
    """It is said at once, instead of a document that nobody will ever read."""
    with operator_session() as operator:
        unbind_source(operator, tenant.tenant_id, WEB)
    with pytest.raises(PermanentError) as refused:
        upload(tenant, fake_services.storage.put(tenant.tenant_id, b"A report."), now())
    assert refused.value.reason == "source-not-bound"
    assert uploaded(tenant) is None


def test_what_a_source_had_under_way_ends_when_it_is_unbound(
    tenant: Principal, crowded: Services, bus: FakeBus
) -> None:
    """What waits for its turn or was not read yet says so; what is stored goes on; upstream hears of each."""
    ingest_document(sent(tenant, 1, "The first text.", "stored"), "upstream", crowded)
    ingest_document(sent(tenant, 1, "The second text.", "waiting"), "upstream", crowded)
    arguments = ["unbind", "upstream", "--tenant", tenant.tenant_slug]
    result = CliRunner().invoke(tenants, arguments)
    assert result.exit_code == 0, result.output
    assert "1 document" in result.output
    embed_all(crowded, bus)
    assert look(tenant, "stored").state == "searchable"
    assert (look(tenant, "waiting").state, look(tenant, "waiting").reason) == ("failed", "source-not-bound")
    assert count(tenant, "core.waiting_messages") == 0
    told = messages(bus, tenant, DocumentFailed)
    assert [(m.external_id, bool(m.next_action)) for m in told] == [("waiting", True)]  # type: ignore[attr-defined]


def test_an_exhausted_message_of_an_older_version_leaves_the_newer_one_alone(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """It comes out of the dead letters days later: the document goes on saying what its newest version is."""
    take(tenant, submission(tenant, 1), "first text")
    (command,) = messages(bus, tenant, EmbedChunks)
    assert isinstance(command, EmbedChunks)
    make(fake_services, bus, tenant, 2, "second text")
    forwarded = {"CloudPubSubDeadLetterSourceSubscription": "embed"}
    attributes = command.attributes() | forwarded
    archive_exhausted(Delivery(uuid4().hex, command.data(), attributes, "dead-letter-archive", "/dead-letters"))
    assert (look(tenant).state, look(tenant).reason, look(tenant).current) == ("searchable", None, 2)
