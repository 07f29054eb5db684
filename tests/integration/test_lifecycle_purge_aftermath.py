"""What a purge means for those still busy with the document: upstream, answers, runs and batches under way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from functions.ingest.ingestion import withdraw_document
from shared.conversations.runs import events_after, recent_runs
from shared.database import operator_session, tenant_session
from shared.documents.acting import as_curator
from shared.documents.deletion import delete_document
from shared.documents.hard_deletion import purge_documents
from shared.documents.restoring import restore_document
from shared.embeddings import Embedded
from shared.errors import PermanentError, Superseded
from shared.events import AnswerQuestion, DocumentRemoved, DocumentWithdrawn, decode
from shared.fakes import FakeBus, FakeModels
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import BATCH, count, document_id, embed_all, look, make, submission, take
from tests.integration.purge_material import OTHER, SECRET, ask_about, operator, see


def test_what_was_purged_never_comes_back(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """Not by a repeat, not by what was sent before; a newer submission is a new document."""
    make(fake_services, bus, tenant, 4, SECRET)
    before = submission(tenant, 9)
    purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage)
    for event in (before, submission(tenant, 4), submission(tenant, 1)):
        with pytest.raises(Superseded):
            take(tenant, event, SECRET)
        assert look(tenant) is None
    withdraw_document(DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="doc", source_version=6), "upstream")
    assert look(tenant) is None
    with pytest.raises(Superseded):
        take(tenant, submission(tenant, 6), SECRET)
    make(fake_services, bus, tenant, 7, OTHER)
    assert (look(tenant).state, look(tenant).current) == ("searchable", 7)


def test_upstream_is_told_that_a_living_document_was_purged(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Once; also when the bus was down, for that message is not deleted with the others."""
    make(fake_services, bus, tenant, 1, SECRET)
    bus.down = True
    purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage)
    bus.down = False
    with operator_session() as session:
        rows = session.execute(
            text("select data, attributes from core.outbox where tenant_id = :t"), {"t": tenant.tenant_id}
        ).all()
    messages = [decode(row.data.encode(), row.attributes) for row in rows]
    assert [type(message) for message in messages] == [DocumentRemoved]
    assert purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage).documents == 0


def test_answers_that_quote_a_deleted_document_are_withheld_until_it_is_restored(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Text, title, place, quotation and draft; after a purge they are gone from the database too."""
    make(fake_services, bus, tenant, 1, SECRET)
    run = ask_about(tenant, "doc", SECRET)
    with tenant_session(tenant.tenant_id) as session:
        delete_document(session, as_curator(tenant), document_id(tenant))
    shown = see(tenant, run)
    assert SECRET not in (shown.answer or "")
    assert "deleted" in (shown.answer or "")
    (citation,) = shown.citations
    assert (citation.title, citation.quote, citation.page, citation.heading_path) == ("Deleted document", "", None, ())
    with tenant_session(tenant.tenant_id) as session:
        assert SECRET not in str(events_after(session, tenant, run, 0))
        assert SECRET not in str(recent_runs(session, tenant))
        restore_document(session, as_curator(tenant), document_id(tenant), BATCH)
    assert see(tenant, run).citations[0].quote == SECRET
    assert SECRET in (see(tenant, run).answer or "")
    purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage)
    assert "deleted" in (see(tenant, run).answer or "")
    assert see(tenant, run).citations == ()


def test_a_run_that_read_a_purged_document_begins_anew(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Under a new epoch and without what it had read; one that has called a tool ends instead of calling it again."""
    make(fake_services, bus, tenant, 1, SECRET)
    reading = ask_about(tenant, "doc", SECRET, state="running")
    acting = ask_about(tenant, "doc", SECRET, state="waiting", acted=True)
    elsewhere = ask_about(tenant, "another", OTHER, state="queued")
    bus.published.clear()
    done = purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage)
    assert done.rows["restarted_runs"] == done.rows["ended_runs"] == 1
    assert see(tenant, reading).state == "queued"
    assert (see(tenant, acting).state, see(tenant, acting).reason) == ("failed", "source-deleted")
    assert count(tenant, "core.checkpoints") == 1
    again = [decode(m.data.encode(), m.attributes) for m in bus.published]
    assert [m.run_id for m in again if isinstance(m, AnswerQuestion)] == [reading]
    with operator_session() as session:
        rows = session.execute(
            text("select run_id, epoch from core.runs where tenant_id = :t"), {"t": tenant.tenant_id}
        )
        epochs = {row.run_id: row.epoch for row in rows}
    assert epochs[reading] == 2
    assert epochs[elsewhere] == 1


def test_a_run_that_holds_a_purged_document_only_in_a_part_begins_anew(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Passages lie beside the checkpoint of a run: they are found there, and erased."""
    make(fake_services, bus, tenant, 1, SECRET)
    waiting = ask_about(tenant, "doc", SECRET, state="waiting")
    with operator_session() as session:
        ids = {"t": tenant.tenant_id}
        session.execute(text("update core.checkpoints set checkpoint = '' where tenant_id = :t"), ids)
        session.execute(text("delete from core.checkpoint_writes where tenant_id = :t"), ids)
    done = purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage)
    assert done.rows["restarted_runs"] == 1
    assert see(tenant, waiting).state == "queued"
    assert count(tenant, "core.checkpoint_parts") == count(tenant, "core.checkpoints") == 0


def test_a_batch_that_is_being_embedded_when_its_document_is_purged_ends_quietly(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """What the model answered is paid for and thrown away; no vector is left without its chunk."""

    class Slow(FakeModels):
        def embed_counted(self, *arguments: Any, **options: Any) -> Embedded:
            purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage)
            return super().embed_counted(*arguments, **options)

    take(tenant, submission(tenant, 1), SECRET)
    embed_all(replace(fake_services, _models=Slow()), bus)
    assert look(tenant) is None
    assert count(tenant, "rag.embeddings") == 0
    assert count(tenant, "core.ledger", "state = 'settled'") == 1


def test_a_restore_after_a_purge_finds_no_document(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """The same answer as for a document that never was."""
    make(fake_services, bus, tenant, 1, SECRET)
    purge_documents(operator(tenant), [document_id(tenant)], fake_services.storage)
    with pytest.raises(PermanentError) as gone, tenant_session(tenant.tenant_id) as session:
        restore_document(session, as_curator(tenant), document_id(tenant), BATCH)
    assert gone.value.reason == "unknown-document"
