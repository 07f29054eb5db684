"""Versions and their completion: any order, any repetition, one truth."""

from __future__ import annotations

import itertools
import threading
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from functions.embed.embedding import embed_chunks
from shared.database import operator_session, tenant_session
from shared.documents.ending import fail_version, withdraw
from shared.documents.intake import Reception, receive, skip_unchanged
from shared.documents.reading import list_documents
from shared.documents.storing import Batch, Content, NewChunk, split, store
from shared.documents.vectors import text_hash
from shared.errors import PermanentError, Postponed, Superseded
from shared.events import DocumentSubmitted, DocumentWithdrawn, EmbedChunks, decode
from shared.fakes import FakeBus, FakeModels
from shared.services import Services
from shared.tenants.directory import Principal


def submission(tenant: Principal, version: int, external_id: str = "doc") -> DocumentSubmitted:
    """An event for a version."""
    return DocumentSubmitted(tenant_id=tenant.tenant_id, external_id=external_id, source_version=version, content="")


def take(tenant: Principal, version: int, *texts: str, external_id: str = "doc", batch: int = 2) -> Reception:
    """Receive and store a version of these chunks."""
    event = submission(tenant, version, external_id)
    with tenant_session(tenant.tenant_id) as session:
        reception = receive(session, event, "upstream")
    if not reception.stored:
        chunks = [NewChunk(t, text_hash((), t), 0, len(t), len(t.split()), "en", (), {}) for t in texts]
        content = Content(f"hash-{texts}", "", 1, "text/plain", "en", "", chunks)
        with tenant_session(tenant.tenant_id) as session:
            store(session, reception, content, event.traceparent, Batch(batch, 1000))
    return reception


def commands(bus: FakeBus) -> list[EmbedChunks]:
    """The embedding commands that were published, in order."""
    found = (decode(m.data.encode(), m.attributes) for m in bus.published)
    return [m for m in found if isinstance(m, EmbedChunks)]


def look(tenant: Principal, external_id: str = "doc") -> Any:
    """State of the document and source version of what answers."""
    with operator_session() as session:
        return session.execute(
            text(
                "select d.state, d.reason, v.source_version as current, d.document_id from rag.documents d "
                "left join rag.versions v on v.version_id = d.current_version_id "
                "where d.tenant_id = :t and d.external_id = :e"
            ),
            {"t": tenant.tenant_id, "e": external_id},
        ).first()


def test_a_version_is_searchable_when_its_last_vector_is_there(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Not a batch earlier; then upstream is told once."""
    take(tenant, 1, "a", "b", "c")
    first, second = commands(bus)
    embed_chunks(first, fake_services)
    assert look(tenant).state == "ingested"
    embed_chunks(second, fake_services)
    assert (look(tenant).state, look(tenant).current) == ("searchable", 1)
    embed_chunks(second, fake_services)
    assert bus.names().count("document-indexed") == 1


def test_a_repeated_batch_pays_nothing(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """The second delivery finds its vectors and asks the model for none."""
    take(tenant, 1, "a", "b")
    for _ in range(3):
        embed_chunks(commands(bus)[0], fake_services)
    assert isinstance(fake_services.models, FakeModels)
    assert fake_services.models.embedded == ["a", "b"]


def test_only_changed_chunks_are_embedded_again(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """A new version keeps the vectors of the texts it shares with the old one."""
    take(tenant, 1, "a", "b", "c")
    for command in commands(bus):
        embed_chunks(command, fake_services)
    assert isinstance(fake_services.models, FakeModels)
    fake_services.models.embedded.clear()
    bus.published.clear()
    take(tenant, 2, "a", "changed", "c")
    assert look(tenant).current == 1
    for command in commands(bus):
        embed_chunks(command, fake_services)
    assert fake_services.models.embedded == ["changed"]
    assert look(tenant).current == 2


def test_a_version_with_nothing_new_is_searchable_at_once(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """All texts known: no batch goes out, ingest itself finishes the version."""
    take(tenant, 1, "a", "b")
    embed_chunks(commands(bus)[0], fake_services)
    take(tenant, 2, "b", "a")
    assert look(tenant).current == 2
    assert len(commands(bus)) == 1


def test_the_same_content_is_skipped(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """A new version number with the same bytes writes no chunk and is reported as indexed."""
    first = take(tenant, 1, "a")
    embed_chunks(commands(bus)[0], fake_services)
    with tenant_session(tenant.tenant_id) as session:
        again = receive(session, submission(tenant, 2), "upstream")
        assert skip_unchanged(session, again, "hash-('a',)", submission(tenant, 2).traceparent)
    assert look(tenant).current == 1
    assert bus.names().count("document-indexed") == 2
    with pytest.raises(Superseded):
        take(tenant, 2, "a")
    assert first.document_id == again.document_id


@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])), ids=str)
def test_any_order_of_versions_ends_with_the_newest(
    tenant: Principal, fake_services: Services, bus: FakeBus, order: tuple[int, ...]
) -> None:
    """Out of order and twice each: the newest answers, the others never come back."""
    for version in (*order, *order):
        try:
            take(tenant, version, f"text {version}", batch=1)
        except Superseded:
            continue
    for command in reversed(commands(bus)):
        embed_chunks(command, fake_services)
    assert (look(tenant).state, look(tenant).current) == ("searchable", 3)


@pytest.mark.parametrize("late", [False, True], ids=["withdrawn after", "withdrawn before it arrived"])
def test_what_was_withdrawn_stays_away(tenant: Principal, fake_services: Services, bus: FakeBus, late: bool) -> None:
    """A submission at or below the withdrawn version changes nothing; a later one is a new life."""
    gone = DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="doc", source_version=5)
    if not late:
        take(tenant, 4, "a")
    with tenant_session(tenant.tenant_id) as session:
        withdraw(session, gone, "upstream")
    for command in commands(bus):
        embed_chunks(command, fake_services)
    assert (look(tenant).state, look(tenant).current) == ("deleted", None)
    for version in (4, 5):
        with pytest.raises(Superseded):
            take(tenant, version, "a")
    with tenant_session(tenant.tenant_id) as session, pytest.raises(Superseded):
        withdraw(session, gone, "upstream")
    assert bus.names().count("document-removed") == 1
    bus.published.clear()
    take(tenant, 6, "back")
    for command in commands(bus):
        embed_chunks(command, fake_services)
    assert (look(tenant).state, look(tenant).current) == ("searchable", 6)


def test_the_two_last_batches_may_finish_together(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """Many batches at the same moment: the swap happens, exactly once."""
    for round_ in range(3):
        bus.published.clear()
        name = f"doc-{round_}"
        take(tenant, 1, *(f"{name} text {n}" for n in range(6)), external_id=name, batch=1)
        barrier = threading.Barrier(3)

        def work(pair: list[EmbedChunks], barrier: threading.Barrier = barrier) -> None:
            for command in pair:
                barrier.wait()
                embed_chunks(command, fake_services)

        waiting = commands(bus)
        threads = [threading.Thread(target=work, args=(waiting[n::3],)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert look(tenant, name).state == "searchable"
        assert bus.names().count("document-indexed") == 1


def test_a_refused_text_fails_the_version_and_the_old_one_answers(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """The reason is on the document, upstream is told, and what was searchable stays so."""
    take(tenant, 1, "a")
    embed_chunks(commands(bus)[0], fake_services)
    take(tenant, 2, "b")
    assert isinstance(fake_services.models, FakeModels)
    fake_services.models.failures = [PermanentError("model-refused", "No.", "Check the model.")]
    embed_chunks(commands(bus)[-1], fake_services)
    found = look(tenant)
    assert (found.state, found.current, found.reason) == ("searchable", 1, "model-refused")
    assert bus.names().count("document-failed") == 1


def test_a_provider_that_asks_for_time_loses_nothing(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """Postponed goes up to the door untouched; the next try embeds."""
    take(tenant, 1, "a")
    assert isinstance(fake_services.models, FakeModels)
    from datetime import UTC, datetime

    fake_services.models.failures = [Postponed(datetime.now(UTC), "the model provider asks for time")]
    with pytest.raises(Postponed):
        embed_chunks(commands(bus)[0], fake_services)
    assert look(tenant).state == "ingested"
    embed_chunks(commands(bus)[0], fake_services)
    assert look(tenant).state == "searchable"


def test_a_failure_is_recorded_once(tenant: Principal, bus: FakeBus) -> None:
    """The first reason stays; upstream hears it once."""
    with tenant_session(tenant.tenant_id) as session:
        reception = receive(session, submission(tenant, 1), "upstream")
    for reason in ("corrupt", "too-large"):
        with tenant_session(tenant.tenant_id) as session:
            fail_version(session, tenant.tenant_id, reception.version_id, PermanentError(reason, "x", "y"))
    assert (look(tenant).state, look(tenant).reason) == ("failed", "corrupt")
    assert bus.names() == ["document-failed"]


def test_an_outbox_that_cannot_be_flushed_keeps_the_message(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """The bus is down: the work is committed, the command waits in the outbox for the sweep."""
    bus.down = True
    take(tenant, 1, "a")
    with tenant_session(tenant.tenant_id) as session:
        waiting = session.execute(text("select data from core.outbox")).all()
        assert len(waiting) == 1
        session.execute(text("update core.outbox set created_at = now() - interval '1 minute'"))
    bus.down = False
    from shared.messaging import flush_stale

    flush_stale()  # of all tenants: what other tests left goes out as well
    (command,) = [one for one in commands(bus) if one.tenant_id == tenant.tenant_id]
    embed_chunks(command, fake_services)
    assert look(tenant).state == "searchable"
    with tenant_session(tenant.tenant_id) as session:
        assert session.execute(text("select count(*) from core.outbox")).scalar() == 0


def test_a_rolled_back_transaction_publishes_nothing(tenant: Principal, bus: FakeBus) -> None:
    """No announcement of what did not happen."""
    with pytest.raises(ZeroDivisionError), tenant_session(tenant.tenant_id) as session:
        withdraw(session, DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="doc"), "upstream")
        raise ZeroDivisionError
    assert bus.published == []
    assert look(tenant) is None


def test_progress_is_visible(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """A list of documents shows chunks done of total while batches come in."""
    take(tenant, 1, "a", "b", "c")
    embed_chunks(commands(bus)[0], fake_services)
    with tenant_session(tenant.tenant_id) as session:
        row = list_documents(session, tenant)[0]
    assert (row.state, row.chunks_done, row.chunks, row.pending) == ("ingested", 2, 3, 1)


def test_batches_respect_both_limits() -> None:
    """By count and by tokens; a chunk over the limit goes alone; order is kept."""
    ids = [UUID(int=n) for n in range(5)]
    sizes = [10, 10, 50, 10, 10]
    groups = split(list(zip(ids, sizes, strict=True)), Batch(2, 30))
    assert groups == [ids[0:2], [ids[2]], ids[3:5]]


def test_as_many_commits_as_connections_do_not_wait_for_each_other(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """The flush of the outbox takes no second connection while the first is held: the pool cannot deadlock."""
    from shared.database import application_engine

    size = application_engine().pool.size()  # type: ignore[attr-defined]
    everybody = threading.Barrier(size)
    failures: list[Exception] = []

    def commit(number: int) -> None:
        try:
            with tenant_session(tenant.tenant_id) as session:
                withdraw(session, DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id=f"d{number}"), "upstream")
                everybody.wait(timeout=60)
        except (threading.BrokenBarrierError, SQLAlchemyError) as error:
            failures.append(error)

    threads = [threading.Thread(target=commit, args=(n,)) for n in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=90)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)
    assert bus.names() == ["document-removed"] * size
