"""What nobody could handle is kept with its class, reason and attempts, and ends what waited for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import text

from functions.maintenance.archiving import archive_exhausted
from shared.conversations.runs import ask, read_run
from shared.database import operator_session, platform_session, tenant_session
from shared.dead_letters.archive import DeadLetter, archive, letter_id_of
from shared.doors import Delivery
from shared.errors import Superseded
from shared.events import AnswerQuestion, RunJob
from shared.fakes import FakeBus
from shared.jobs.leases import fenced, take
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.dead_letters.letter_material import (
    document,
    exhausted,
    letters,
    only_letter,
    received,
    send_again,
    submission,
)


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


def test_the_id_of_a_letter_follows_from_its_message(database: object) -> None:
    """Archiving is idempotent across processes: origin and message id decide, nothing else."""
    one = DeadLetter("embed", "1", b"a", {}, "poison", "x", "x")
    same = DeadLetter("embed", "1", b"b", {"x": "y"}, "permanent", "y", "y", 4)
    assert (
        letter_id_of(one) == letter_id_of(same) != letter_id_of(DeadLetter("agent", "1", b"a", {}, "poison", "x", "x"))
    )
