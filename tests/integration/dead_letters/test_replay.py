"""A replayed letter sets its document, batch or question going again, once, and on record."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest
from sqlalchemy import text

from functions.agent.answering import answer_question
from functions.embed.embedding import embed_chunks
from functions.maintenance.archiving import archive_exhausted
from shared.conversations.runs import ask, events_after, read_run
from shared.database import operator_session, tenant_session
from shared.dead_letters.replay import Outcome, discard
from shared.documents.ending import withdraw
from shared.documents.intake import receive
from shared.errors import Superseded
from shared.events import AnswerQuestion, DocumentWithdrawn, EmbedChunks, Message, RunJob
from shared.fakes import FakeBus
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.dead_letters.letter_material import (
    command_of,
    document,
    exhausted,
    ingested,
    letters,
    only_letter,
    received,
    send_again,
    submission,
)


def test_a_replayed_submission_is_worked_on_again(tenant: Principal, bus: FakeBus) -> None:
    """The failed version is `received` again, the same message goes to the topic it came from, once."""
    event = submission(tenant)
    received(tenant, event)
    archive_exhausted(exhausted(event, "ingest-upstream"))
    bus.published.clear()
    letter = only_letter()
    assert send_again(letter.letter_id) == Outcome(
        letter.letter_id, True, "Sent to documents-upstream. What had failed with it goes on."
    )
    assert document(tenant) == ("received", None, "received")
    (row,) = bus.published
    assert row.topic == "documents-upstream"
    again = command_of(row)
    assert again.model_copy(update={"event_id": event.event_id}) == event
    with tenant_session(tenant.tenant_id) as session:
        assert not receive(session, again, "upstream").stored
    with operator_session() as session:
        assert session.execute(text("select count(*) from core.outbox")).scalar() == 0


def test_a_replayed_batch_makes_its_document_searchable(
    tenant: Principal, bus: FakeBus, fake_services: Services
) -> None:
    """A version whose chunks are stored goes back to `ingested`, and the batch finishes it."""
    ingested(tenant, submission(tenant))
    command = next(command_of(row) for row in bus.published if row.attributes["name"] == "embed-chunks")
    archive_exhausted(exhausted(command, "embed"))
    assert document(tenant) == ("failed", "attempts-exhausted", "failed")
    bus.published.clear()
    send_again(only_letter().letter_id)
    assert document(tenant) == ("ingested", None, "ingested")
    embed_chunks(command_of(bus.published[0]), fake_services)
    assert document(tenant) == ("searchable", None, "searchable")


def test_a_replayed_question_is_answered_and_readers_see_it(
    tenant: Principal, bus: FakeBus, fake_services: Services
) -> None:
    """The run is queued again; a stream that begins at the first event gets past the failure to the answer, and
    subscribers hear of both endings under ids of their own."""
    with tenant_session(tenant.tenant_id) as session:
        run_id = ask(session, tenant, "Wie oft wird die Pumpe geprüft?")
    archive_exhausted(exhausted(AnswerQuestion(tenant_id=tenant.tenant_id, run_id=run_id), "agent"))
    with tenant_session(tenant.tenant_id) as session:
        assert [e.kind for e in events_after(session, tenant, run_id, 0)] == ["failed"]
    assert send_again(only_letter().letter_id).done
    answer_question(command_of(bus.published[-1]), fake_services)
    with tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, run_id)
        kinds = [e.kind for e in events_after(session, tenant, run_id, 0)]
    assert run is not None
    assert (run.state, run.reason) == ("answered", None)
    assert "failed" not in kinds
    assert kinds[-1] == "answer"
    ready = [row for row in bus.published if row.attributes["name"] == "answer-ready"]
    assert [json.loads(row.data)["state"] for row in ready] == ["failed", "answered"]
    assert len({row.event_id for row in ready}) == 2


def test_only_what_failed_by_exhaustion_is_taken_back(tenant: Principal, bus: FakeBus) -> None:
    """A document that failed for its own sake, was withdrawn or overtaken stays what it is."""
    corrupt, withdrawn, overtaken = (submission(tenant, name) for name in ("corrupt", "withdrawn", "overtaken"))
    for event in (corrupt, withdrawn, overtaken):
        received(tenant, event)
        archive_exhausted(exhausted(event, "ingest-upstream"))
    with tenant_session(tenant.tenant_id) as session:
        session.execute(
            text(
                "update rag.versions v set reason = 'corrupt' from rag.documents d where v.tenant_id = :t "
                "and d.tenant_id = v.tenant_id and d.document_id = v.document_id and d.external_id = 'corrupt'"
            ),
            {"t": tenant.tenant_id},
        )
        gone = DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="withdrawn", source_version=2)
        withdraw(session, gone, "upstream")
    ingested(tenant, submission(tenant, "overtaken", version=2))
    before = [document(tenant, name) for name in ("corrupt", "withdrawn", "overtaken")]
    for letter in letters():
        outcome = send_again(letter.letter_id)
        assert outcome.done
        assert "goes on" not in outcome.detail
    assert [document(tenant, name) for name in ("corrupt", "withdrawn", "overtaken")] == before
    with pytest.raises(Superseded), tenant_session(tenant.tenant_id) as session:
        receive(session, overtaken, "upstream")


def test_a_letter_is_replayed_once_unless_asked_for_again(tenant: Principal, bus: FakeBus) -> None:
    """The second replay says so and sends nothing; `again` sends it under another deterministic id."""
    archive_exhausted(exhausted(submission(tenant), "ingest-upstream"))
    letter_id = only_letter().letter_id
    bus.published.clear()
    assert send_again(letter_id).done
    refused = send_again(letter_id)
    assert (refused.done, "already" in refused.detail) == (False, True)
    assert send_again(letter_id, again=True).done
    assert len({row.event_id for row in bus.published}) == len(bus.published) == 2
    assert only_letter().replays == 2


def test_a_bus_that_is_down_loses_no_replay(tenant: Principal, bus: FakeBus) -> None:
    """The outbox keeps it for the sweep; the letter is marked in the same transaction."""
    archive_exhausted(exhausted(submission(tenant), "ingest-upstream"))
    bus.down = True
    assert send_again(only_letter().letter_id).done
    with operator_session() as session:
        (kept,) = session.execute(text("select event_id, topic from core.outbox where topic = 'documents-upstream'"))
    assert kept == (only_letter().replay_id, "documents-upstream")


@pytest.mark.parametrize("kind", ["unknown-tenant", "job", "discarded"])
def test_what_cannot_be_replayed_says_why(kind: str, tenant: Principal, bus: FakeBus) -> None:
    """An unknown tenant, a command of the scheduler, a discarded letter: a clear sentence, and nothing is sent."""
    if kind == "job":
        message: Message = RunJob(job="purge", slot="2026-11-21T00:00:00Z")  # type: ignore[arg-type]
        archive_exhausted(exhausted(message, "maintenance"))
    elif kind == "unknown-tenant":
        event = EmbedChunks(
            tenant_id=uuid4(), document_id=uuid4(), version_id=uuid4(), space_id=uuid4(), chunk_ids=(uuid4(),)
        )
        archive_exhausted(exhausted(event, "embed"))
    else:
        archive_exhausted(exhausted(submission(tenant), "ingest-upstream"))
        with operator_session() as session:
            assert discard(session, only_letter().letter_id, actor="test").done
    bus.published.clear()
    outcome = send_again(only_letter().letter_id)
    expected = {"job": "by their schedule", "unknown-tenant": "tenant is not known", "discarded": "was discarded"}
    assert (outcome.done, expected[kind] in outcome.detail) == (False, True)
    assert bus.published == []


def test_every_replay_and_discard_is_on_record(tenant: Principal, bus: FakeBus) -> None:
    """Who did it, to which letter of which tenant."""
    archive_exhausted(exhausted(submission(tenant), "ingest-upstream"))
    archive_exhausted(exhausted(submission(tenant, "other"), "ingest-upstream"))
    first, second = (letter.letter_id for letter in letters())
    send_again(first)
    with operator_session() as session:
        discard(session, second, actor="test")
        found = session.execute(
            text("select action, subject, actor from core.audit where tenant_id = :t order by at"),
            {"t": tenant.tenant_id},
        ).all()
    assert found == [("dead-letter-replayed", str(first), "test"), ("dead-letter-discarded", str(second), "test")]
