"""What the crash sweep and the flood found once: redeliveries, twins in flight and late withdrawals change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from functions.embed.embedding import embed_chunks
from functions.ingest.ingestion import ingest_document, withdraw_document
from shared.database import forget_engines, tenant_session
from shared.documents.intake import Reception, skip_unchanged
from shared.errors import Superseded
from shared.events import DocumentSubmitted, DocumentWithdrawn, EmbedChunks, decode
from shared.fakes import FakeBus, FakeModels
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.round_trips import statements
from tests.integration.test_ingestion import documents, submission

BODY = b"# Pumpen\n\nDie Dichtung wird nach 8.000 Stunden getauscht.\n"


def commands(bus: FakeBus) -> Iterator[EmbedChunks]:
    """The embedding commands that were published, each once."""
    found = [decode(message.data.encode(), message.attributes) for message in bus.published]
    bus.published.clear()
    return (message for message in found if isinstance(message, EmbedChunks))


def embed_all(bus: FakeBus, services: Services) -> None:
    """Do what was commanded."""
    for command in commands(bus):
        embed_chunks(command, services)


@pytest.mark.parametrize(
    ("body", "version"), [(BODY, 1), (BODY, 2), (b"%PDF-1.4 nonsense", 2)], ids=["again", "unchanged", "unreadable"]
)
def test_a_title_found_in_the_text_stays(
    tenant: Principal, fake_services: Services, bus: FakeBus, body: bytes, version: int
) -> None:
    """Delivered again, submitted unchanged, or followed by what cannot be read: the title is not the file's name."""
    ingest_document(submission(tenant, BODY, "pumpen.md"), "upstream", fake_services)
    if version > 1:
        embed_all(bus, fake_services)
    ingest_document(submission(tenant, body, "pumpen.md", version), "upstream", fake_services)
    assert documents(tenant)["pumpen.md"].title == "Pumpen"


def test_a_title_follows_the_text_of_the_newest_version(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """A new heading is the new title; without one it is the name of the file."""
    ingest_document(submission(tenant, BODY, "pumpen.md"), "upstream", fake_services)
    ingest_document(submission(tenant, b"# Neue Pumpen\n\nText.", "pumpen.md", 2), "upstream", fake_services)
    assert documents(tenant)["pumpen.md"].title == "Neue Pumpen"
    nameless = submission(tenant, b"Nur Text.", "pumpen.md", 3).model_copy(update={"file_name": "liste.txt"})
    ingest_document(nameless, "upstream", fake_services)
    assert documents(tenant)["pumpen.md"].title == "liste.txt"


def test_a_version_sent_before_an_older_withdrawal_was_handled_is_not_lost(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Withdrawn as version 1, submitted again as version 2 a minute ago: handled late, the withdrawal takes nothing."""
    sent = datetime.now(UTC) - timedelta(minutes=1)
    withdrawal = DocumentWithdrawn(
        tenant_id=tenant.tenant_id, external_id="pumpen.md", source_version=1, occurred_at=sent
    )
    submitted = submission(tenant, BODY, "pumpen.md", 2).model_copy(update={"occurred_at": sent})
    withdraw_document(withdrawal, "upstream")
    ingest_document(submitted, "upstream", fake_services)
    embed_all(bus, fake_services)
    assert documents(tenant)["pumpen.md"].state == "searchable"


def test_two_versions_with_the_same_text_in_flight_are_paid_once(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Both are stored before either has vectors; the second batch finds those of the first."""
    ingest_document(submission(tenant, BODY, "pumpen.md", 1), "upstream", fake_services)
    ingest_document(submission(tenant, BODY + b"\n", "pumpen.md", 2), "upstream", fake_services)
    embed_all(bus, fake_services)
    models = fake_services.models
    assert isinstance(models, FakeModels)
    assert len(models.embedded) == 1
    with tenant_session(tenant.tenant_id) as session:
        found = session.execute(text("select source_version, state from rag.versions order by 1")).all()
    assert [tuple(row) for row in found] == [(1, "superseded"), (2, "searchable")]


def test_a_batch_of_a_new_document_asks_the_database_a_few_times(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """What concerns other versions, campaigns and waiting is asked only where there are any: 11 statements, 30 once.

    In a small batch they are what embedding costs besides the model (ADR 0014).
    """
    forget_engines()  # one connection from here on, and the first batch makes what a connection makes once
    ingest_document(submission(tenant, b"# Ventile\n\nText.\n", "ventile.md"), "upstream", fake_services)
    embed_all(bus, fake_services)
    ingest_document(submission(tenant, BODY, "pumpen.md"), "upstream", fake_services)
    (command,) = commands(bus)
    with statements() as seen:
        embed_chunks(command, fake_services)
    asked = [statement for statement in seen if "set_config" not in statement]
    assert documents(tenant)["pumpen.md"].state == "searchable"
    assert len(asked) <= 11, "\n".join(asked)


def test_a_delivery_that_comes_second_is_superseded(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """Two deliveries of one message at once: who finds the version ended acknowledges, instead of failing."""
    event: DocumentSubmitted = submission(tenant, BODY, "pumpen.md")
    ingest_document(event, "upstream", fake_services)
    embed_all(bus, fake_services)
    with tenant_session(tenant.tenant_id) as session:
        row = session.execute(text("select * from rag.versions")).one()
    mine = Reception(tenant.tenant_id, row.document_id, row.version_id, "upstream", "pumpen.md", 1, stored=False)
    with pytest.raises(Superseded), tenant_session(tenant.tenant_id) as session:
        skip_unchanged(session, mine, row.content_hash, event.traceparent)
