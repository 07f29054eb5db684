"""Several versions of a document in progress at once: the newest word of the source counts, and every one ends."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from functions.ingest.ingestion import ingest_document
from shared.database import operator_session, tenant_session
from shared.documents.completion import finish_version
from shared.documents.ending import fail_version
from shared.documents.intake import receive
from shared.errors import PermanentError, Superseded
from shared.events import DocumentSubmitted, decode
from shared.fakes import FakeBus, FakeClock, FakeModels, FakeStorage
from shared.services import Services
from shared.settings import Settings
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import embed_all, found, look, make, submission, take

BROKEN = PermanentError("corrupt", "It is broken.", "Mend it.")


@pytest.fixture
def crowded(settings: Settings) -> Services:
    """Services that let one document of a tenant be in progress."""
    changed = settings.model_copy(update={"documents_in_progress": 1})
    return Services(changed, FakeClock(), _storage=FakeStorage(), _models=FakeModels())


def sent(tenant: Principal, number: int, words: str, external_id: str = "doc") -> DocumentSubmitted:
    """A submission with content."""
    content = base64.b64encode(words.encode()).decode()
    return submission(tenant, number, external_id).model_copy(update={"content": content, "file_name": "doc.txt"})


def states(tenant: Principal, external_id: str = "doc") -> dict[int, str]:
    """The state of each version of a document."""
    with operator_session() as session:
        rows = session.execute(
            text(
                "select v.source_version, v.state from rag.versions v join rag.documents d "
                "on d.tenant_id = v.tenant_id and d.document_id = v.document_id "
                "where d.tenant_id = :t and d.external_id = :e"
            ),
            {"t": tenant.tenant_id, "e": external_id},
        )
        return {row.source_version: row.state for row in rows}


def released(bus: FakeBus, tenant: Principal) -> list[DocumentSubmitted]:
    """Submissions whose turn has come; each is returned once."""
    mine = [m for m in bus.published if m.tenant_id == tenant.tenant_id and m.topic == "documents-upstream"]
    bus.published[:] = [m for m in bus.published if m not in mine]
    return [m for m in (decode(o.data.encode(), o.attributes) for o in mine) if isinstance(m, DocumentSubmitted)]


def test_a_source_that_takes_a_change_back_has_the_last_word(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """The change is still being embedded when the old text comes again: the change does not answer afterwards."""
    make(fake_services, bus, tenant, 1, "the price is 100 euro")
    take(tenant, submission(tenant, 2), "the price is 10 euro")
    take(tenant, submission(tenant, 3), "the price is 100 euro")
    embed_all(fake_services, bus)
    assert found(fake_services, tenant, "price") == ["the price is 100 euro"]
    assert "the price is 10 euro" not in fake_services.models.embedded  # type: ignore[attr-defined]
    assert states(tenant) == {1: "searchable", 2: "superseded", 3: "unchanged"}


def test_a_change_that_was_taken_back_is_not_stored_any_more(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """It was still being read."""
    make(fake_services, bus, tenant, 1, "the price is 100 euro")
    with tenant_session(tenant.tenant_id) as session:
        receive(session, submission(tenant, 2), "upstream")
    take(tenant, submission(tenant, 3), "the price is 100 euro")
    with pytest.raises(Superseded):
        take(tenant, submission(tenant, 2), "the price is 10 euro")
    assert states(tenant) == {1: "searchable", 2: "superseded", 3: "unchanged"}


def test_nothing_is_paid_for_what_a_newer_version_has_replaced(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Its batches waited longer than the newer one's: they find a version that has ended."""
    take(tenant, submission(tenant, 1), "first text")
    first = list(bus.published)
    bus.published.clear()
    make(fake_services, bus, tenant, 2, "second text")
    assert states(tenant) == {1: "superseded", 2: "searchable"}
    bus.published[:] = first
    embed_all(fake_services, bus)
    assert fake_services.models.embedded == ["second text"]  # type: ignore[attr-defined]


def test_an_overtaken_version_that_comes_back_ends(tenant: Principal, fake_services: Services) -> None:
    """Its worker died; when it is delivered again a newer version is known, and nobody waits for it for ever."""
    with tenant_session(tenant.tenant_id) as session:
        receive(session, submission(tenant, 1), "upstream")
        receive(session, submission(tenant, 2), "upstream")
    with pytest.raises(Superseded):
        ingest_document(sent(tenant, 1, "first text"), "upstream", fake_services)
    assert states(tenant) == {1: "superseded", 2: "received"}


def test_an_overtaken_version_gives_its_turn_to_the_next(tenant: Principal, crowded: Services, bus: FakeBus) -> None:
    """Two versions wait in line behind another document, and one more document behind them: all end by themselves."""
    for event in (sent(tenant, 1, "other", "busy"), sent(tenant, 1, "one"), sent(tenant, 2, "two")):
        ingest_document(event, "upstream", crowded)
    ingest_document(sent(tenant, 1, "last", "behind"), "upstream", crowded)
    for _ in range(10):
        embed_all(crowded, bus)
        for event in released(bus, tenant):
            try:
                ingest_document(event, "upstream", crowded)
            except Superseded:
                continue
    assert states(tenant) == {1: "superseded", 2: "searchable"}
    assert states(tenant, "behind") == {1: "searchable"}


@pytest.mark.parametrize("newer", ["searchable", "received", "failed"])
def test_the_failure_of_an_overtaken_version_is_not_the_documents(
    tenant: Principal, fake_services: Services, bus: FakeBus, newer: str
) -> None:
    """The document tells of the newest version; the older one's reason stands in the history."""
    old = take(tenant, submission(tenant, 1), "first text")
    with tenant_session(tenant.tenant_id) as session:
        new = receive(session, submission(tenant, 2), "upstream")
        if newer == "failed":
            fail_version(session, tenant.tenant_id, new.version_id, PermanentError("encrypted", "It is.", "Open it."))
    with tenant_session(tenant.tenant_id) as session:
        fail_version(session, tenant.tenant_id, old.version_id, BROKEN)
    if newer == "searchable":
        make(fake_services, bus, tenant, 2, "second text")
    row: Any = look(tenant)
    expected = {"searchable": ("searchable", None), "received": ("ingested", None), "failed": ("failed", "encrypted")}
    assert (row.state, row.reason) == expected[newer]


def test_a_failed_newer_version_is_told_also_when_the_older_one_is_ready_later(
    tenant: Principal, fake_services: Services, bus: FakeBus, make_tenant: Callable[..., Principal]
) -> None:
    """The old text answers, and the document says that the newer one could not be read and what to do."""
    take(tenant, submission(tenant, 1), "first text")
    with tenant_session(tenant.tenant_id) as session:
        new = receive(session, submission(tenant, 2), "upstream")
    with tenant_session(tenant.tenant_id) as session:
        fail_version(session, tenant.tenant_id, new.version_id, BROKEN)
    embed_all(fake_services, bus)
    row: Any = look(tenant)
    assert (row.state, row.reason, row.current) == ("searchable", "corrupt", 1)
    with tenant_session(tenant.tenant_id) as session:
        assert not finish_version(session, tenant.tenant_id, new.version_id)
