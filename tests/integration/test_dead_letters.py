"""What nobody could handle is kept with its reason, and comes back to life when somebody (or the platform) says so."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from cli.dead_letters import dead_letters
from functions.agent.answering import answer_question
from functions.embed.embedding import embed_chunks
from functions.maintenance.archiving import FAILURE, MAX_AUTOMATIC, archive_exhausted
from functions.maintenance.running import run_job
from shared.conversations.runs import ask, events_after, read_run
from shared.database import operator_session, platform_session, tenant_session
from shared.dead_letters.archive import DeadLetter, archive, letter_id_of
from shared.dead_letters.replay import Outcome, discard, replay
from shared.documents.ending import fail_submission, withdraw
from shared.documents.intake import Reception, receive
from shared.documents.storing import Batch, Content, NewChunk, store
from shared.documents.tombstones import entomb
from shared.documents.vectors import text_hash
from shared.doors import Delivery
from shared.errors import PermanentError, Superseded
from shared.events import (
    AnswerQuestion,
    DocumentFailed,
    DocumentSubmitted,
    DocumentWithdrawn,
    EmbedChunks,
    Message,
    RunJob,
    decode,
)
from shared.fakes import FakeBus, FakeClock, FakeModels
from shared.jobs.leases import fenced, take
from shared.messaging import Outgoing
from shared.retrieval.indexes import owner_connection
from shared.services import Services
from shared.tenants.directory import Principal

TEXT = "Die Pumpe wird alle 2.000 Stunden geprüft."


@pytest.fixture(autouse=True)
def _no_letters(database: object) -> None:
    """Letters belong to no tenant: every test begins without any."""
    with operator_session() as session:
        session.execute(text("delete from core.dead_letters"))
        session.execute(text("delete from core.job_runs"))
        session.execute(text("delete from core.outbox"))


def submission(tenant: Principal, external_id: str = "pumpe", version: int = 1) -> DocumentSubmitted:
    return DocumentSubmitted(
        tenant_id=tenant.tenant_id, external_id=external_id, source_version=version, content="UHVtcGU="
    )


def exhausted(message: Message, subscription: str, message_id: str = "") -> Delivery:
    """The message as the dead-letter topic delivers it after five deliveries."""
    attributes = message.attributes() | {
        "CloudPubSubDeadLetterSourceSubscription": subscription,
        "CloudPubSubDeadLetterSourceDeliveryCount": "5",
    }
    return Delivery(message_id or uuid4().hex, message.data(), attributes, "dead-letter-archive", "/dead-letters")


def letters(**where: object) -> list[Any]:
    condition = " and ".join(f"{name} = :{name}" for name in where) or "true"
    with operator_session() as session:
        return list(
            session.execute(text(f"select * from core.dead_letters where {condition} order by archived_at"), where)
        )


def only_letter() -> Any:
    (letter,) = letters()
    return letter


def send_again(letter_id: UUID, **options: bool) -> Outcome:
    with operator_session() as session:
        return replay(session, letter_id, actor="test", **options)


def document(tenant: Principal, external_id: str = "pumpe") -> Any:
    with tenant_session(tenant.tenant_id) as session:
        return session.execute(
            text(
                "select d.state, d.reason, v.state as version from rag.documents d left join rag.versions v "
                "on v.tenant_id = d.tenant_id and v.document_id = d.document_id "
                "where d.tenant_id = :t and d.external_id = :e order by v.source_version desc limit 1"
            ),
            {"t": tenant.tenant_id, "e": external_id},
        ).one()


def received(tenant: Principal, event: DocumentSubmitted) -> Reception:
    with tenant_session(tenant.tenant_id) as session:
        return receive(session, event, "upstream")


def ingested(tenant: Principal, event: DocumentSubmitted) -> Reception:
    reception = received(tenant, event)
    chunk = NewChunk(TEXT, text_hash((), TEXT), 0, len(TEXT), 9, "de", (), {})
    content = Content(uuid4().hex, "", 1, "text/plain", "de", "", [chunk])
    with tenant_session(tenant.tenant_id) as session:
        store(session, reception, content, event.traceparent, Batch(9, 999))
    return reception


def told(row: Outgoing) -> tuple[str, int, str]:
    """Which document and version an outcome is about, and why it failed."""
    failed = decode(row.data.encode(), row.attributes)
    assert isinstance(failed, DocumentFailed)
    assert failed.next_action
    return failed.external_id, failed.source_version, failed.reason


@contextmanager
def refusing_versions(tenant: Principal) -> Iterator[None]:
    """The database refuses every new version of a tenant, for a cause of its own."""
    condition = f"when (new.tenant_id = '{tenant.tenant_id}')"
    with owner_connection(os.environ["MIGRATION_DATABASE_URL"]) as owner:
        owner.exec_driver_sql(
            "create function rag.refuse() returns trigger language plpgsql as "
            "$$ begin raise exception 'never received'; end $$"
        )
        owner.exec_driver_sql(
            f"create trigger refuse before insert on rag.versions for each row {condition} "
            "execute function rag.refuse()"
        )
        try:
            yield
        finally:
            owner.exec_driver_sql("drop trigger refuse on rag.versions")
            owner.exec_driver_sql("drop function rag.refuse()")


def command_of(row: Outgoing) -> Any:
    return decode(row.data.encode(), row.attributes)


# ---- archive ---------------------------------------------------------------------------------------------------------


def test_an_exhausted_message_is_kept_with_class_reason_attempts_and_trace(tenant: Principal, bus: FakeBus) -> None:
    """What operators need to judge it; a late repeat changes nothing."""
    event = submission(tenant)
    received(tenant, event)
    delivery = exhausted(event, "ingest-upstream")
    archive_exhausted(delivery)
    archive_exhausted(delivery)
    letter = only_letter()
    assert (letter.origin, letter[5], letter.reason, letter.attempts) == (
        "ingest-upstream",
        "transient",
        "attempts-exhausted",
        5,
    )
    assert (letter.tenant_id, letter.name, letter.traceparent) == (
        tenant.tenant_id,
        "document-submitted",
        event.traceparent,
    )
    assert document(tenant) == ("failed", "attempts-exhausted", "failed")


def test_bytes_that_are_no_message_are_kept_as_poison(bus: FakeBus, database: object) -> None:
    """Undecodable bytes, NUL and lone surrogates in attributes: nothing stops the archive."""
    archive_exhausted(
        Delivery(
            "1", b"\xff\x00\xfe", {"tenant_id": "x\x00", "name": "n\ud800"}, "dead-letter-archive", "/dead-letters"
        )
    )
    letter = only_letter()
    assert (letter[5], bytes(letter.data), letter.tenant_id) == ("poison", b"\xff\x00\xfe", None)
    outcome = send_again(letter.letter_id)
    assert not outcome.done
    assert "cannot be read" in outcome.detail
    assert "published anew" in outcome.detail


def test_pushes_without_a_message_id_are_letters_of_their_own(database: object) -> None:
    """What is no push body at all has no id; two of them are two letters."""
    found = [DeadLetter("/", "", data, {}, "poison", "malformed-message", "x") for data in (b"a", b"b", b"a")]
    with platform_session() as session:
        archive(session, found)
    assert len(letters()) == 2


def test_content_does_not_get_into_what_operators_read(tenant: Principal, bus: FakeBus) -> None:
    """Reason and message name fields and codes; what looks like a person in them is masked."""
    refusal = "Refused for eva.canary@example.com, DE89370400440532013000."
    with platform_session() as session:
        archive(session, [DeadLetter("embed", "1", b"{}", {}, "permanent", "x", refusal)])
    assert only_letter().message == "Refused for [email], [iban]."


def test_a_forged_tenant_cannot_fail_somebody_elses_document(
    tenant: Principal, make_tenant: Callable[..., Principal], bus: FakeBus
) -> None:
    """A message of a source that may not speak for the tenant is kept, and its document stays what it was."""
    victim = make_tenant()
    event = submission(victim)
    received(victim, event)
    with operator_session() as session:
        session.execute(text("delete from core.sources where tenant_id = :t"), {"t": victim.tenant_id})
    archive_exhausted(exhausted(event, "ingest-upstream"))
    assert document(victim) == ("received", None, "received")
    assert "may not speak" in send_again(only_letter().letter_id).detail


def test_a_command_on_a_topic_of_documents_neither_fails_nor_moves_anything(tenant: Principal, bus: FakeBus) -> None:
    """Upstream cannot reach the agent by way of the dead letters: a letter goes back where it came from or nowhere."""
    with tenant_session(tenant.tenant_id) as session:
        run_id = ask(session, tenant, "Was kostet die Pumpe?")
    bus.published.clear()
    archive_exhausted(exhausted(AnswerQuestion(tenant_id=tenant.tenant_id, run_id=run_id), "ingest-upstream"))
    with tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, run_id)
    assert run is not None
    assert run.state == "queued"
    assert only_letter()[5] == "poison"
    assert "nowhere to go" in send_again(only_letter().letter_id).detail
    assert bus.published == []


def test_a_late_repeat_does_not_fail_what_a_replay_set_going(tenant: Principal, bus: FakeBus) -> None:
    """The archive's own message may be delivered twice; the second time the document is on its way again."""
    event = submission(tenant)
    received(tenant, event)
    delivery = exhausted(event, "ingest-upstream")
    archive_exhausted(delivery)
    send_again(only_letter().letter_id)
    archive_exhausted(delivery)
    assert document(tenant) == ("received", None, "received")


def test_a_job_whose_deliveries_are_used_up_ends_as_failed(fake_services: Services, bus: FakeBus) -> None:
    """Its slot does not stay open, and a worker that is still at it is fenced off."""
    command = RunJob(job="purge", slot=fake_services.clock.now())
    with operator_session() as session:
        lease = take(session, command.job, command.slot)
    archive_exhausted(exhausted(command, "maintenance"))
    with operator_session() as session:
        found = session.execute(text("select state, error from core.job_runs where job = 'purge'")).one()
    assert found == ("failed", "attempts-exhausted")
    with pytest.raises(Superseded), fenced(lease):
        pass


# ---- replay ----------------------------------------------------------------------------------------------------------


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


def test_a_submission_that_was_never_received_fails_visibly_and_can_go_on(tenant: Principal, bus: FakeBus) -> None:
    """It never got as far as a row; people see it failed, upstream hears it once, and the replay brings it on."""
    event = submission(tenant)
    delivery = exhausted(event, "ingest-upstream")
    archive_exhausted(delivery)
    archive_exhausted(delivery)
    assert document(tenant) == ("failed", "attempts-exhausted", "failed")
    assert [told(row) for row in bus.published] == [("pumpe", 1, "attempts-exhausted")]
    send_again(only_letter().letter_id)
    assert document(tenant) == ("received", None, "received")
    assert not received(tenant, event).stored


def test_a_crash_before_the_letter_tells_upstream_once(tenant: Principal, bus: FakeBus) -> None:
    """The document has failed, the letter is not there yet: the repeat writes the letter and tells nobody again."""
    event = submission(tenant)
    with tenant_session(tenant.tenant_id) as session:
        fail_submission(session, event, "upstream", FAILURE)
    archive_exhausted(exhausted(event, "ingest-upstream"))
    assert [told(row) for row in bus.published] == [("pumpe", 1, "attempts-exhausted")]
    assert only_letter().reason == "attempts-exhausted"


def test_what_cannot_even_be_received_is_told_to_its_source_once(tenant: Principal, bus: FakeBus) -> None:
    """The database refuses every row of it, the archive's as well: the event goes out with the letter, or not at all.

    A searchable document of the same name goes on answering.
    """
    ingested(tenant, submission(tenant))
    bus.published.clear()
    event = submission(tenant, version=2)
    with refusing_versions(tenant):
        with pytest.raises(DBAPIError, match="never received"):
            received(tenant, event)
        delivery = exhausted(event, "ingest-upstream")
        archive_exhausted(delivery)
        archive_exhausted(delivery)
    assert [told(row) for row in bus.published] == [("pumpe", 2, "attempts-exhausted")]
    assert (only_letter()[5], only_letter().attempts) == ("transient", 5)
    assert document(tenant) == ("ingested", None, "ingested")
    assert send_again(only_letter().letter_id).done
    assert not received(tenant, event).stored


@pytest.mark.parametrize("gone", ["withdrawn", "purged", "overtaken"])
def test_a_dead_letter_brings_nothing_back(gone: str, tenant: Principal, bus: FakeBus) -> None:
    """What was withdrawn, deleted for good or overtaken while its message was tried is not received to be failed."""
    event = submission(tenant)
    with tenant_session(tenant.tenant_id) as session:
        if gone == "withdrawn":
            withdraw(session, DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="pumpe"), "upstream")
        elif gone == "overtaken":
            receive(session, submission(tenant, version=2), "upstream")
    if gone == "purged":
        with operator_session() as operator:
            entomb(operator, tenant.tenant_id, "upstream", "pumpe", 1, datetime.now(UTC))
    bus.published.clear()
    archive_exhausted(exhausted(event, "ingest-upstream"))
    assert bus.published == []
    with tenant_session(tenant.tenant_id) as session:
        versions = "select source_version from rag.versions where tenant_id = :t"
        assert session.execute(text(versions), {"t": tenant.tenant_id}).scalars().all() == [2] * (gone == "overtaken")
    assert only_letter().name == "document-submitted"


@pytest.mark.parametrize("known", [True, False])
def test_nobody_learns_by_a_dead_letter_which_tenants_exist(
    known: bool, tenant: Principal, make_tenant: Callable[..., Principal], bus: FakeBus
) -> None:
    """A tenant that is not bound to the source and one that does not exist: the same letter, and no event."""
    tenant_id = make_tenant().tenant_id if known else uuid4()
    with operator_session() as session:
        session.execute(text("delete from core.sources where tenant_id = :t"), {"t": tenant_id})
    event = DocumentSubmitted(tenant_id=tenant_id, external_id="pumpe", source_version=1, content="UHVtcGU=")
    unreadable = event.data().replace(b"UHVtcGU=", b"not base64")
    archive_exhausted(exhausted(event, "ingest-upstream"))
    archive_exhausted(replace(exhausted(event, "ingest-upstream"), data=unreadable))
    assert bus.published == []
    assert [letter.tenant_id for letter in letters()] == [tenant_id] * 2


def test_an_unreadable_submission_that_came_by_the_dead_letters_is_told_as_well(
    tenant: Principal, bus: FakeBus
) -> None:
    """Ingest was away for five deliveries: what it would have said about the message, the archive says."""
    event = submission(tenant)
    delivery = replace(exhausted(event, "ingest-upstream"), data=event.data().replace(b"UHVtcGU=", b"not base64"))
    archive_exhausted(delivery)
    archive_exhausted(delivery)
    assert [told(row) for row in bus.published] == [("pumpe", 1, "malformed-message")]
    assert only_letter()[5] == "poison"


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


# ---- the check -------------------------------------------------------------------------------------------------------


def check(services: Services, *, after: str = "6 minutes") -> dict[str, Any]:
    """Let time pass for the open letters and run the five-minute job."""
    earlier = text(
        "update core.dead_letters set archived_at = archived_at - cast(:by as interval) where replayed_at is null"
    )
    with operator_session() as session:
        session.execute(earlier, {"by": after})
    clock = services.clock
    counts = run_job(RunJob(job="dead-letter-check", slot=clock.now()), services)
    assert isinstance(clock, FakeClock)
    clock.advance(timedelta(minutes=5))
    assert counts is not None
    return dict(counts)


@pytest.fixture
def checking(fake_services: Services) -> Services:
    fake_services.clock = FakeClock()
    return fake_services


def test_transient_letters_come_back_by_themselves_when_the_cause_is_healthy(
    tenant: Principal, bus: FakeBus, checking: Services
) -> None:
    """Not while the models do not answer, not before five minutes, then all of them."""
    event = submission(tenant)
    received(tenant, event)
    archive_exhausted(exhausted(event, "ingest-upstream"))
    bus.published.clear()
    assert isinstance(checking.models, FakeModels)
    assert check(checking, after="1 minute")["due"] == 0
    checking.models.failures.append(PermanentError("model-refused", "no"))
    assert check(checking) == {"open": 1, "due": 1, "replayed": 0, "unhealthy": 1}
    assert bus.published == []
    assert check(checking)["replayed"] == 1
    assert bus.names() == ["document-submitted"]
    assert document(tenant) == ("received", None, "received")


def test_nothing_is_replayed_while_the_bus_does_not_take_messages(
    tenant: Principal, bus: FakeBus, checking: Services
) -> None:
    """Old rows in the outbox say that the bus is down, whatever the models say."""
    archive_exhausted(exhausted(submission(tenant), "ingest-upstream"))
    bus.down = True
    received(tenant, submission(tenant, "x"))
    with tenant_session(tenant.tenant_id) as session:
        ask(session, tenant, "Wartet?")
    with operator_session() as session:
        session.execute(text("update core.outbox set created_at = now() - interval '10 minutes'"))
    assert check(checking)["unhealthy"] == 1


def test_a_message_comes_back_three_times_and_is_poison_then(
    tenant: Principal, bus: FakeBus, checking: Services
) -> None:
    """Each failure is a letter of its own that continues the count; the waits grow, and the fourth is for people."""
    message: Message = submission(tenant)
    received(tenant, submission(tenant))
    for number, wait in enumerate(("6 minutes", "31 minutes", "4 hours")):
        archive_exhausted(exhausted(message, "ingest-upstream"))
        bus.published.clear()
        if number:
            assert check(checking)["replayed"] == 0  # the wait grows
        assert check(checking, after=wait)["replayed"] == 1
        message = command_of(bus.published[0])
    archive_exhausted(exhausted(message, "ingest-upstream"))
    assert [letter[5] for letter in letters()] == ["transient"] * MAX_AUTOMATIC + ["poison"]
    assert check(checking, after="30 days")["replayed"] == 0
    assert document(tenant).state == "failed"
    # People may still try.
    (poison,) = letters(**{"class": "poison"})
    assert send_again(poison.letter_id).done


def test_permanent_and_poison_letters_wait_for_people(tenant: Principal, bus: FakeBus, checking: Services) -> None:
    """Trying again by itself cannot help them; the check only counts them."""
    event = submission(tenant)
    with platform_session() as session:
        archive(
            session,
            [
                DeadLetter("ingest-upstream", kind, event.data(), event.attributes(), kind, "x", "x")
                for kind in ("permanent", "poison", "budget")
            ],
        )
    assert check(checking, after="1 day") == {"open": 3, "due": 0, "replayed": 0, "unhealthy": 0}


# ---- the command line ------------------------------------------------------------------------------------------------


def noesis(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(dead_letters, list(arguments))
    return result.exit_code, result.output


def test_operators_find_letters_by_class_tenant_reason_and_time(
    tenant: Principal, make_tenant: Callable[..., Principal], bus: FakeBus
) -> None:
    """Every filter narrows the list; ids, reasons and tenants are readable, content is not there."""
    other = make_tenant()
    archive_exhausted(exhausted(submission(tenant), "ingest-upstream"))
    archive_exhausted(exhausted(submission(other), "ingest-web"))
    with platform_session() as session:
        archive(session, [DeadLetter("embed", "1", b"{", {}, "poison", "malformed-message", "x")])
    ids = {letter.origin: str(letter.letter_id) for letter in letters()}

    def found(*arguments: str) -> set[str]:
        status, output = noesis("list", "--json", *arguments)
        assert status == 0, output
        return {row["origin"] for row in json.loads(output)}

    assert found() == {"ingest-upstream", "ingest-web", "embed"}
    assert found("--class", "poison") == {"embed"}
    assert found("--tenant", other.tenant_slug) == {"ingest-web"}
    assert found("--reason", "malformed-message") == {"embed"}
    assert found("--since", "2099-01-01") == set()
    assert found("--since", "1h", "--class", "transient") == {"ingest-upstream", "ingest-web"}
    status, output = noesis("list")
    assert status == 0
    assert all(letter_id in output for letter_id in ids.values())
    assert tenant.tenant_slug in output
    assert noesis("show", str(uuid4()))[0] == 1
    status, output = noesis("show", ids["ingest-upstream"])
    assert status == 0
    shown = json.loads(output)
    assert (shown["reason"], shown["attempts"], shown["class"]) == ("attempts-exhausted", 5, "transient")
    assert "UHVtcGU=" not in output


def test_operators_replay_by_class_and_tenant_after_a_dry_run(
    tenant: Principal, make_tenant: Callable[..., Principal], bus: FakeBus
) -> None:
    """The dry run sends nothing; a filter replays what it names; what cannot be sent is named, with exit status 1."""
    other = make_tenant()
    for principal in (tenant, tenant, other):
        archive_exhausted(exhausted(submission(principal, uuid4().hex), "ingest-upstream"))
    with platform_session() as session:
        archive(session, [DeadLetter("embed", "1", b"{", {}, "poison", "malformed-message", "x")])
    bus.published.clear()
    assert noesis("replay")[0] == 2
    status, output = noesis("replay", "--all", "--dry-run")
    assert (status, "3 would be replayed, 1 not." in output, bus.published) == (1, True, [])
    status, output = noesis("replay", "--tenant", tenant.tenant_slug, "--limit", "1")
    assert (status, "1 replayed." in output) == (0, True)
    assert {row.tenant_id for row in bus.published} == {tenant.tenant_id}
    status, output = noesis("replay", "--class", "transient")
    assert (status, "2 replayed." in output) == (0, True)
    assert len({row.event_id for row in bus.published}) == 3
    assert noesis("discard", "--class", "poison", "--yes")[0] == 0
    assert noesis("list")[1] == "No open dead letters.\n"


def test_the_id_of_a_letter_follows_from_its_message(database: object) -> None:
    """Archiving is idempotent across processes: origin and message id decide, nothing else."""
    one = DeadLetter("embed", "1", b"a", {}, "poison", "x", "x")
    same = DeadLetter("embed", "1", b"b", {"x": "y"}, "permanent", "y", "y", 4)
    assert (
        letter_id_of(one) == letter_id_of(same) != letter_id_of(DeadLetter("agent", "1", b"a", {}, "poison", "x", "x"))
    )
