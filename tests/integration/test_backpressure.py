"""Backpressure and fairness: a provider's wait is kept to, tenants take turns, cancel cancels."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from functions.embed.embedding import ProviderClosed, embed_chunks
from functions.ingest.ingestion import ingest_document
from shared import doors
from shared.database import operator_session, tenant_session
from shared.documents.cancellation import cancel_document
from shared.documents.reading import DocumentRow, list_documents
from shared.documents.turns import next_turns, sweep_turns
from shared.errors import Postponed, Superseded
from shared.events import DocumentSubmitted, EmbedChunks, Message, decode
from shared.fakes import FakeBus, FakeClock, FakeModels, FakeStorage
from shared.money.gates import close_gate, closed_until
from shared.retrieval.spaces import ensure_space
from shared.services import Services
from shared.settings import Settings
from shared.tenants.directory import Principal

SHARE = 2


def submission(tenant: Principal, name: str, version: int = 1) -> DocumentSubmitted:
    """A small plain-text document."""
    content = base64.b64encode(f"Document {name} of version {version}.".encode()).decode()
    return DocumentSubmitted(
        tenant_id=tenant.tenant_id, external_id=name, source_version=version, content=content, file_name=f"{name}.txt"
    )


def taken(bus: FakeBus, tenant: Principal) -> list[Message]:
    """Take what was published off the bus; the tenant's, for a sweep sends on what other tests left waiting too."""
    found = [decode(m.data.encode(), m.attributes) for m in bus.published if m.tenant_id == tenant.tenant_id]
    bus.published.clear()
    return found


def rows(tenant: Principal) -> dict[str, DocumentRow]:
    """The tenant's documents by external id."""
    with tenant_session(tenant.tenant_id) as session:
        return {row.external_id: row for row in list_documents(session, tenant)}


@pytest.fixture
def sharing(settings: Settings, bus: FakeBus) -> Services:
    """Services with a share of two documents a tenant."""
    changed = settings.model_copy(update={"documents_in_progress": SHARE})
    return Services(changed, FakeClock(), _storage=FakeStorage(), _models=FakeModels())


@pytest.fixture
def own_model(tenant: Principal) -> str:
    """A model that no other test closes the gate of."""
    name = f"model-{uuid4().hex}"
    with operator_session() as operator:
        space = ensure_space(operator, name, 64)
        operator.execute(
            text("update rag.tenant_spaces set space_id = :space where tenant_id = :tenant"),
            {"space": space.space_id, "tenant": tenant.tenant_id},
        )
    return name


def embed_command(tenant: Principal, name: str, services: Services, bus: FakeBus) -> EmbedChunks:
    """Ingest a document; the one command that comes of it."""
    ingest_document(submission(tenant, name), "upstream", services)
    (command,) = [m for m in taken(bus, tenant) if isinstance(m, EmbedChunks)]
    return command


def test_a_closed_provider_is_not_asked_again_by_other_batches(
    tenant: Principal, own_model: str, sharing: Services, bus: FakeBus
) -> None:
    """One 429 closes the gate for all instances; both documents say what they wait for and until when."""
    models, clock = sharing.models, sharing.clock
    assert isinstance(models, FakeModels)
    assert isinstance(clock, FakeClock)
    first, second = (embed_command(tenant, name, sharing, bus) for name in ("first", "second"))
    until = clock.now() + timedelta(seconds=17)
    models.failures = [Postponed(until, "the model provider asks for time")]
    with pytest.raises(Postponed) as caught:
        embed_chunks(first, sharing)
    assert caught.value.until == until
    with pytest.raises(ProviderClosed) as caught:
        embed_chunks(second, sharing)
    assert caught.value.until == until
    assert models.embedded == []
    assert {(row.waiting, row.waiting_until) for row in rows(tenant).values()} == {("provider", until)}
    clock.advance(timedelta(seconds=17))
    for command in (first, second):
        embed_chunks(command, sharing)
    assert {(row.state, row.waiting) for row in rows(tenant).values()} == {("searchable", None)}
    with operator_session() as operator:
        booked = operator.execute(
            text("select state, attempts from core.ledger where tenant_id = :t order by attempts"),
            {"t": tenant.tenant_id},
        ).all()
    assert [tuple(row) for row in booked] == [("settled", 1), ("settled", 2)]


def test_a_gate_only_closes_longer(tenant: Principal, own_model: str) -> None:
    """A shorter wait that arrives late does not open it; another model's is its own."""
    now = datetime.now(UTC)
    with tenant_session(tenant.tenant_id) as session:
        close_gate(session, own_model, now + timedelta(minutes=5))
        close_gate(session, own_model, now + timedelta(minutes=1))
        assert closed_until(session, own_model, now) == now + timedelta(minutes=5)
        assert closed_until(session, own_model, now + timedelta(minutes=5)) is None
        assert closed_until(session, "another", now) is None


def test_retry_after_uses_up_no_delivery(tenant: Principal, own_model: str, sharing: Services, bus: FakeBus) -> None:
    """The door acknowledges, and the same command comes again by Cloud Tasks at exactly that time."""
    command = embed_command(tenant, "doc", sharing, bus)
    until = sharing.clock.now() + timedelta(days=3650, seconds=17)
    assert isinstance(sharing.models, FakeModels)
    sharing.models.failures = [Postponed(until, "the model provider asks for time")]
    delivery = doors.Delivery("1", command.data(), command.attributes(), "embed", "/")
    response = doors._translate(lambda: embed_chunks(command, sharing), delivery, command)
    assert response.status_code == 204
    (later,) = bus.later
    assert (later.event_id, later.topic, later.not_before) == (command.event_id, "embed-chunks", until)
    with tenant_session(tenant.tenant_id) as session:
        assert session.execute(text("select count(*) from core.outbox")).scalar_one() == 0


def test_above_its_share_a_tenants_documents_wait_for_their_turn(
    tenant: Principal, make_tenant: Callable[..., Principal], sharing: Services, bus: FakeBus
) -> None:
    """They are received and say so; nothing of them is parsed; another tenant's go on at once."""
    for n in range(5):
        ingest_document(submission(tenant, f"doc-{n}"), "upstream", sharing)
    found = rows(tenant)
    assert [found[f"doc-{n}"].waiting for n in range(5)] == [None, None, "turn", "turn", "turn"]
    assert [found[f"doc-{n}"].state for n in range(5)] == ["ingested"] * 2 + ["received"] * 3
    other = make_tenant()
    ingest_document(submission(other, "doc"), "upstream", sharing)
    assert rows(other)["doc"].state == "ingested"


def test_a_finished_document_makes_room_for_the_next_in_order(
    tenant: Principal, sharing: Services, bus: FakeBus
) -> None:
    """First come, first served; at the end all are searchable and nothing waits; no more than the share at once."""
    for n in range(7):
        ingest_document(submission(tenant, f"doc-{n}"), "upstream", sharing)
    order: list[str] = []
    while messages := taken(bus, tenant):
        for message in messages:
            if isinstance(message, EmbedChunks):
                embed_chunks(message, sharing)
            elif isinstance(message, DocumentSubmitted):
                order.append(message.external_id)
                ingest_document(message, "upstream", sharing)
            busy = [row for row in rows(tenant).values() if row.state in ("received", "ingested") and not row.waiting]
            assert len(busy) <= SHARE
    assert order == [f"doc-{n}" for n in range(2, 7)]
    assert {row.state for row in rows(tenant).values()} == {"searchable"}


def test_a_document_that_fails_or_is_cancelled_makes_room_too(
    tenant: Principal, sharing: Services, bus: FakeBus
) -> None:
    """However a document ends, the next one comes; after a cancel by the sweep at the latest."""
    for n in range(4):
        ingest_document(submission(tenant, f"doc-{n}"), "upstream", sharing)
    bus.published.clear()
    with tenant_session(tenant.tenant_id) as session:
        assert cancel_document(session, tenant.tenant_id, rows(tenant)["doc-0"].document_id) == 1
    bus.published.clear()
    sweep_turns(SHARE)
    (message,) = taken(bus, tenant)
    assert isinstance(message, DocumentSubmitted)
    broken = message.model_copy(update={"content": base64.b64encode(b"%PDF-1.7 broken").decode()})
    ingest_document(broken, "upstream", sharing)
    assert rows(tenant)["doc-2"].state == "failed"
    assert [m.external_id for m in taken(bus, tenant) if isinstance(m, DocumentSubmitted)] == ["doc-3"]


def test_a_laid_aside_message_that_cannot_be_read_holds_nobody_up(
    tenant: Principal, make_tenant: Callable[..., Principal], sharing: Services, bus: FakeBus
) -> None:
    """It leaves as it is, for the door of ingest to judge; the tenants after it get their turn in the same sweep."""
    tenants = [tenant, make_tenant(), make_tenant()]
    for one in tenants:
        for n in range(SHARE + 1):
            ingest_document(submission(one, f"doc-{n}"), "upstream", sharing)
        with operator_session() as operator:
            operator.execute(
                text("update rag.versions set state = 'searchable' where tenant_id = :t and waiting is null"),
                {"t": one.tenant_id},
            )
            operator.execute(
                text("update core.waiting_messages set data = '{broken' where tenant_id = :t and :t <> :well"),
                {"t": one.tenant_id, "well": tenants[-1].tenant_id},
            )
    bus.published.clear()
    sweep_turns(SHARE)
    mine = {one.tenant_id for one in tenants}
    assert {m.tenant_id: m.data == "{broken" for m in bus.published if m.tenant_id in mine} == {
        tenants[0].tenant_id: True,
        tenants[1].tenant_id: True,
        tenants[2].tenant_id: False,
    }


def test_a_repeated_submission_waits_once(tenant: Principal, sharing: Services, bus: FakeBus) -> None:
    """Delivered three times while it waits, it comes back once; delivered again in its turn, it goes on."""
    events = [submission(tenant, f"doc-{n}") for n in range(3)]
    for event in [*events, events[2], events[2]]:
        ingest_document(event, "upstream", sharing)
    with tenant_session(tenant.tenant_id) as session:
        cancel_document(session, tenant.tenant_id, rows(tenant)["doc-0"].document_id)
    bus.published.clear()
    with tenant_session(tenant.tenant_id) as session:
        assert next_turns(session, tenant.tenant_id, SHARE) == 1
        assert next_turns(session, tenant.tenant_id, SHARE) == 0
    (back,) = taken(bus, tenant)
    assert back == events[2]
    for _ in range(2):
        ingest_document(events[2], "upstream", sharing)
    assert rows(tenant)["doc-2"].state == "ingested"


def test_a_superseded_version_holds_no_place(tenant: Principal, sharing: Services, bus: FakeBus) -> None:
    """Ten versions of one document in a row are one document in progress."""
    for version in range(1, 11):
        with tenant_session(tenant.tenant_id) as session:
            from shared.documents.intake import receive

            receive(session, submission(tenant, "same", version), "upstream")
    ingest_document(submission(tenant, "other"), "upstream", sharing)
    assert rows(tenant)["other"].waiting is None


def test_simultaneous_submissions_keep_to_the_share(tenant: Principal, sharing: Services, bus: FakeBus) -> None:
    """Six workers at the same moment give two places away, not six."""
    barrier = threading.Barrier(6)

    def work(event: DocumentSubmitted) -> None:
        barrier.wait()
        ingest_document(event, "upstream", sharing)

    threads = [threading.Thread(target=work, args=(submission(tenant, f"doc-{n}"),)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waiting = [row.waiting for row in rows(tenant).values()]
    assert waiting.count("turn") == 6 - SHARE


def test_a_cancelled_document_costs_nothing_more(tenant: Principal, sharing: Services, bus: FakeBus) -> None:
    """Queued batches do nothing, a waiting submission is forgotten, and the document says what happened."""
    command = embed_command(tenant, "doc", sharing, bus)
    document_id = rows(tenant)["doc"].document_id
    with tenant_session(tenant.tenant_id) as session:
        assert cancel_document(session, tenant.tenant_id, document_id) == 1
        assert cancel_document(session, tenant.tenant_id, document_id) == 0
    embed_chunks(command, sharing)
    assert isinstance(sharing.models, FakeModels)
    assert sharing.models.embedded == []
    row = rows(tenant)["doc"]
    assert (row.state, row.reason) == ("failed", "cancelled")
    assert [json.loads(m.data)["reason"] for m in bus.published] == ["cancelled"]
    with pytest.raises(Superseded):
        ingest_document(submission(tenant, "doc"), "upstream", sharing)
    with operator_session() as operator:
        count = operator.execute(
            text("select count(*) from core.ledger where tenant_id = :t"), {"t": tenant.tenant_id}
        ).scalar_one()
    assert count == 0


def test_cancelling_a_new_version_leaves_the_old_one_answering(
    tenant: Principal, sharing: Services, bus: FakeBus
) -> None:
    """Only what is in progress ends."""
    embed_chunks(embed_command(tenant, "doc", sharing, bus), sharing)
    ingest_document(submission(tenant, "doc", 2), "upstream", sharing)
    with tenant_session(tenant.tenant_id) as session:
        cancel_document(session, tenant.tenant_id, rows(tenant)["doc"].document_id)
    assert rows(tenant)["doc"].state == "searchable"


def test_another_tenant_cancels_nothing(
    tenant: Principal, make_tenant: Callable[..., Principal], sharing: Services, bus: FakeBus
) -> None:
    """With a document's id alone."""
    ingest_document(submission(tenant, "doc"), "upstream", sharing)
    other: Any = make_tenant()
    with tenant_session(other.tenant_id) as session:
        assert cancel_document(session, other.tenant_id, rows(tenant)["doc"].document_id) == 0
    assert rows(tenant)["doc"].state == "ingested"
