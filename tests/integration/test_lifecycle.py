"""History, rollback, deletion, restoration: at once, in any order, by who may, never back through an old message."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4, uuid5

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from functions.ingest.ingestion import withdraw_document
from shared import audit
from shared.database import operator_session, platform_session, tenant_session
from shared.documents.acting import Actor, as_curator, as_operator
from shared.documents.completion import finish_version
from shared.documents.deletion import delete_document
from shared.documents.history import read_history, roll_back
from shared.documents.reading import read_chunk
from shared.documents.restoring import restore_document
from shared.errors import PermanentError, Superseded
from shared.events import DocumentFailed, DocumentIndexed, DocumentRemoved, DocumentWithdrawn, Message, decode
from shared.fakes import FakeBus
from shared.retrieval.spaces import ensure_space
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import (
    BATCH,
    acts,
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


def events(bus: FakeBus, kind: type[Message]) -> list[Message]:
    """What was published of a kind."""
    messages = [decode(m.data.encode(), m.attributes) for m in bus.published]
    return [message for message in messages if isinstance(message, kind)]


def delete(tenant: Principal, external_id: str = "doc", actor: Actor | None = None) -> int:
    """Delete a document as its tenant's administrator."""
    with tenant_session(tenant.tenant_id) as session:
        return delete_document(session, actor or as_curator(tenant), document_id(tenant, external_id))


def restore(tenant: Principal, external_id: str = "doc", actor: Actor | None = None) -> str:
    """Restore a document as its tenant's administrator."""
    with tenant_session(tenant.tenant_id) as session:
        return restore_document(session, actor or as_curator(tenant), document_id(tenant, external_id), BATCH)


def back_to(tenant: Principal, version: UUID) -> None:
    """Roll a document back as its tenant's administrator."""
    with tenant_session(tenant.tenant_id) as session:
        roll_back(session, as_curator(tenant), document_id(tenant), version)


def test_a_deleted_document_is_hidden_at_once(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """No search, no passage; upstream is told once, also when it is deleted twice; the record says who did it."""
    reception = make(fake_services, bus, tenant, 1, "the notice period is two weeks")
    assert found(fake_services, tenant, "notice period") == ["the notice period is two weeks"]
    assert delete(tenant) == 1
    assert found(fake_services, tenant, "notice period") == []
    with tenant_session(tenant.tenant_id) as session:
        assert read_chunk(session, tenant, uuid5(reception.version_id, "chunk:0")) is None
    assert delete(tenant) == 0
    assert len(events(bus, DocumentRemoved)) == 1
    assert (look(tenant).state, look(tenant).deleted_by) == ("deleted", f"member:{tenant.member_id}")
    assert acts(tenant) == [(f"member:{tenant.member_id}", "document-deleted")]


def test_a_restored_document_answers_again_at_once(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """In one transaction and without a call to the model; upstream is told with an event of its own each time."""
    make(fake_services, bus, tenant, 1, "the notice period is two weeks")
    for _ in range(2):
        delete(tenant)
        assert restore(tenant) == "searchable"
    assert found(fake_services, tenant, "notice period") == ["the notice period is two weeks"]
    indexed = events(bus, DocumentIndexed)
    assert len({event.event_id for event in indexed}) == len(indexed) == 3
    assert len({event.event_id for event in events(bus, DocumentRemoved)}) == 2
    assert fake_services.models.embedded == ["the notice period is two weeks", "notice period"]  # type: ignore[attr-defined]


def test_a_restoration_needs_a_deletion_not_older_than_30_days(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Neither a living document nor one that waits for its purge can be restored."""
    make(fake_services, bus, tenant, 1, "text")
    with pytest.raises(PermanentError) as living:
        restore(tenant)
    delete(tenant)
    age(tenant, "rag.documents", "deleted_at", "31 days")
    with pytest.raises(PermanentError) as late:
        restore(tenant)
    assert (living.value.reason, late.value.reason) == ("not-deleted", "restore-too-late")


@pytest.mark.parametrize("sent", ["before", "after"])
def test_only_what_is_sent_after_a_deletion_brings_a_document_back(
    tenant: Principal, fake_services: Services, bus: FakeBus, sent: str
) -> None:
    """A newer version from before the deletion changes nothing; one sent afterwards is a new submission."""
    make(fake_services, bus, tenant, 1, "old text")
    late = submission(tenant, 2, occurred_at=datetime.now(UTC) - timedelta(seconds=1 if sent == "before" else -3600))
    delete(tenant)
    if sent == "before":
        with pytest.raises(Superseded):
            take(tenant, late, "late text")
        assert look(tenant).state == "deleted"
        return
    take(tenant, late, "new text")
    embed_all(fake_services, bus)
    assert (look(tenant).state, look(tenant).deleted_by) == ("searchable", None)
    assert found(fake_services, tenant, "text") == ["new text"]


def test_a_repeat_of_the_deleted_version_stays_away(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """Also when its sender claims that it was sent later."""
    make(fake_services, bus, tenant, 3, "text")
    delete(tenant)
    for version in (1, 3):
        with pytest.raises(Superseded):
            take(tenant, submission(tenant, version, occurred_at=datetime.now(UTC) + timedelta(hours=1)), "text")
    assert look(tenant).state == "deleted"


def test_what_was_being_embedded_goes_on_after_a_restoration(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """The old version answers at once, the newer one when its vectors are there; none is lost."""
    make(fake_services, bus, tenant, 1, "old text")
    take(tenant, submission(tenant, 2), "new text")
    delete(tenant)
    embed_all(fake_services, bus)  # the messages from before find nothing to do
    assert "new text" not in fake_services.models.embedded  # type: ignore[attr-defined]
    assert restore(tenant) == "searchable"
    assert look(tenant).current == 1
    embed_all(fake_services, bus)
    assert look(tenant).current == 2


def test_what_was_not_read_yet_fails_after_a_restoration(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Its bytes travelled with a message that is gone: the state says so, and what to do."""
    with tenant_session(tenant.tenant_id) as session:
        from shared.documents.intake import receive

        receive(session, submission(tenant, 1), "upstream")
    delete(tenant)
    assert restore(tenant) == "failed"
    assert look(tenant).reason == "interrupted"
    assert [event.reason for event in events(bus, DocumentFailed)] == ["interrupted"]  # type: ignore[attr-defined]


def test_a_restored_document_waits_for_vectors_of_a_new_space(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """It is ingested until it is complete in every live space, like any other version, although it was withdrawn."""
    make(fake_services, bus, tenant, 1, "text")
    withdraw_document(DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="doc", source_version=1), "upstream")
    with operator_session() as operator:
        space = ensure_space(operator, "other", 32)
        operator.execute(
            text("insert into rag.tenant_spaces (tenant_id, space_id, state) values (:t, :s, 'filling')"),
            {"t": tenant.tenant_id, "s": space.space_id},
        )
    assert restore(tenant) == "ingested"
    embed_all(fake_services, bus)
    assert (look(tenant).state, look(tenant).current) == ("searchable", 1)
    assert count(tenant, "rag.embeddings") == 2


def test_attachments_go_and_come_back_with_their_document(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """At any depth; one that was deleted by itself before stays deleted."""
    make(fake_services, bus, tenant, 1, "the mail", external_id="mail")
    make(fake_services, bus, tenant, 1, "inner", external_id="mail#1", parent="mail")
    make(fake_services, bus, tenant, 1, "innermost", external_id="mail#1#1", parent="mail#1")
    make(fake_services, bus, tenant, 1, "unwanted", external_id="mail#2", parent="mail")
    delete(tenant, "mail#2")
    assert delete(tenant, "mail") == 3
    assert {look(tenant, one).state for one in ("mail", "mail#1", "mail#1#1", "mail#2")} == {"deleted"}
    restore(tenant, "mail")
    assert [look(tenant, one).state for one in ("mail", "mail#1", "mail#1#1", "mail#2")] == [
        "searchable",
        "searchable",
        "searchable",
        "deleted",
    ]


def test_an_attachment_on_its_way_does_not_outlive_its_document(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Its message was sent before the mail was deleted and arrives after it."""
    make(fake_services, bus, tenant, 1, "the mail", external_id="mail")
    child = submission(tenant, 1, "mail#1", parent="mail")
    delete(tenant, "mail")
    with pytest.raises(Superseded):
        take(tenant, child, "inner")
    assert look(tenant, "mail#1") is None


def test_what_upstream_withdrew_is_restored_by_who_may_overrule_it(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Not by a curator; after an administrator did, the same withdrawal again changes nothing, a newer one does."""
    make(fake_services, bus, tenant, 1, "text")
    gone = DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="doc", source_version=1)
    withdraw_document(gone, "upstream")
    assert look(tenant).deleted_by == "source:upstream"
    with pytest.raises(PermanentError) as refused:
        restore(tenant, actor=as_curator(replace(tenant, role="curator")))
    assert refused.value.reason == "withdrawn-by-source"
    assert restore(tenant) == "searchable"
    with pytest.raises(Superseded):
        withdraw_document(gone, "upstream")
    assert look(tenant).state == "searchable"
    withdraw_document(gone.model_copy(update={"source_version": 2}), "upstream")
    assert look(tenant).state == "deleted"


def test_a_withdrawal_of_what_a_person_deleted_does_not_delay_its_purge(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """The time of the deletion stays; what answered before it can still be restored."""
    make(fake_services, bus, tenant, 1, "text")
    delete(tenant)
    before = look(tenant).deleted_at
    withdraw_document(DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="doc", source_version=1), "upstream")
    assert (look(tenant).deleted_at, look(tenant).deleted_by) == (before, "source:upstream")
    assert restore(tenant) == "searchable"


def test_members_may_not_delete_and_nobody_learns_what_exists(
    tenant: Principal, make_tenant: Callable[..., Principal], fake_services: Services, bus: FakeBus
) -> None:
    """A member is refused; an unknown id, another tenant's and one out of sight are the same answer."""
    with pytest.raises(PermanentError) as refused:
        as_curator(replace(tenant, role="member"))
    assert refused.value.reason == "not-allowed"
    make(fake_services, bus, tenant, 1, "text")
    stranger = make_tenant()
    with operator_session() as operator:
        operator.execute(
            text("update rag.documents set access_members = '{somebody@else.example}' where tenant_id = :t"),
            {"t": tenant.tenant_id},
        )
    told = set()
    for who, which in (
        (tenant, uuid4()),
        (stranger, document_id(tenant)),
        (tenant, document_id(tenant)),
    ):
        for act in (delete_document, read_history):
            with pytest.raises(PermanentError) as unknown, tenant_session(who.tenant_id) as session:
                act(session, as_curator(who), which)
            told.add((unknown.value.reason, unknown.value.message))
    assert len(told) == 1
    assert look(tenant).state == "searchable"
    assert delete(tenant, actor=as_operator(tenant.tenant_id, "olga")) == 1


def test_history_tells_every_version(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """State, source version, whether it answers and whether its content is kept, newest first."""
    for number in (1, 2):
        make(fake_services, bus, tenant, number, f"text {number}")
    make(fake_services, bus, tenant, 3, "text 2")
    with tenant_session(tenant.tenant_id) as session:
        rows = read_history(session, as_curator(tenant), document_id(tenant))
    assert [(row.source_version, row.state, row.current, row.kept) for row in rows] == [
        (3, "unchanged", False, False),
        (2, "searchable", True, True),
        (1, "superseded", False, True),
    ]


def test_a_rollback_answers_with_the_earlier_version(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """At once and without the model; late events change nothing, a really newer version wins again."""
    first = make(fake_services, bus, tenant, 1, "good text")
    make(fake_services, bus, tenant, 4, "bad text")
    back_to(tenant, first.version_id)
    assert found(fake_services, tenant, "text") == ["good text"]
    for version in (1, 2, 4):
        with pytest.raises(Superseded):
            take(tenant, submission(tenant, version), "bad text")
    assert look(tenant).current == 1
    make(fake_services, bus, tenant, 5, "better text")
    assert look(tenant).current == 5
    assert (f"member:{tenant.member_id}", "document-rolled-back") in acts(tenant)


def test_a_version_that_was_slower_than_a_rollback_stays_behind(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """It is older than what was rolled back, so it must not answer when its last vector arrives."""
    first = make(fake_services, bus, tenant, 1, "good text")
    take(tenant, submission(tenant, 2), "slow text")
    slow, bus.published[:] = list(bus.published), []
    make(fake_services, bus, tenant, 3, "bad text")
    back_to(tenant, first.version_id)
    bus.published.extend(slow)
    embed_all(fake_services, bus)
    assert look(tenant).current == 1


def test_exactly_the_rejected_bytes_fail_and_the_earlier_ones_are_unchanged(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Upstream that sends the rejected content as a newer version learns why it is not taken, before it costs money."""
    first = make(fake_services, bus, tenant, 1, "good text")
    second = make(fake_services, bus, tenant, 2, "bad text")
    back_to(tenant, first.version_id)
    with pytest.raises(PermanentError) as rejected:
        take(tenant, submission(tenant, 3), "bad text")
    assert rejected.value.reason == "rolled-back"
    assert rejected.value.next_action
    assert look(tenant).current == 1
    back_to(tenant, second.version_id)  # undone: now these bytes are wanted again
    assert look(tenant).current == 2
    make(fake_services, bus, tenant, 4, "good text")
    assert look(tenant).current == 4


def test_rejected_bytes_that_were_already_on_their_way_fail_at_the_swap(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """They were received before the rollback and are complete after it."""
    first = make(fake_services, bus, tenant, 1, "good text")
    take(tenant, submission(tenant, 2), "bad text")
    waiting, bus.published[:] = list(bus.published), []
    take(tenant, submission(tenant, 3), "bad text")
    on_their_way, bus.published[:] = list(bus.published), []
    bus.published.extend(waiting)
    embed_all(fake_services, bus)
    assert look(tenant).current == 2
    back_to(tenant, first.version_id)
    bus.published.extend(on_their_way)
    embed_all(fake_services, bus)
    assert (look(tenant).current, look(tenant).reason) == (1, "rolled-back")
    assert [event.reason for event in events(bus, DocumentFailed)] == ["rolled-back"]  # type: ignore[attr-defined]


def test_what_cannot_answer_is_no_place_to_go_back_to(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """Current, failed, unchanged, incomplete, purged, not embedded and unknown versions each say why."""
    first = make(fake_services, bus, tenant, 1, "one")
    second = make(fake_services, bus, tenant, 2, "two")
    unchanged = make(fake_services, bus, tenant, 3, "two")
    progress = take(tenant, submission(tenant, 4), "three")
    failed = take(tenant, submission(tenant, 5), "four")
    from shared.documents.ending import fail_version

    with tenant_session(tenant.tenant_id) as session:
        fail_version(session, tenant.tenant_id, failed.version_id, PermanentError("x", "x", "x"))
    wanted = {
        second.version_id: "version-current",
        unchanged.version_id: "version-unchanged",
        progress.version_id: "version-incomplete",
        failed.version_id: "version-failed",
        uuid4(): "unknown-version",
    }
    told = {}
    for version in wanted:
        with pytest.raises(PermanentError) as refused:
            back_to(tenant, version)
        told[version] = refused.value.reason
    assert told == wanted
    with operator_session() as operator:
        operator.execute(
            text("delete from rag.embeddings where tenant_id = :t and chunk_id = :c"),
            {"t": tenant.tenant_id, "c": uuid5(first.version_id, "chunk:0")},
        )
    with pytest.raises(PermanentError) as bare:
        back_to(tenant, first.version_id)
    with operator_session() as operator:
        operator.execute(
            text("update rag.versions set purged_at = now() where tenant_id = :t and version_id = :v"),
            {"t": tenant.tenant_id, "v": first.version_id},
        )
    with pytest.raises(PermanentError) as purged:
        back_to(tenant, first.version_id)
    delete(tenant)
    with pytest.raises(PermanentError) as deleted:
        back_to(tenant, first.version_id)
    assert [e.value.reason for e in (bare, purged, deleted)] == [
        "version-not-embedded",
        "version-purged",
        "document-deleted",
    ]


@pytest.mark.parametrize("first", ["deletion", "completion"])
def test_a_deletion_and_a_completion_at_once_leave_a_deleted_document(
    tenant: Principal, fake_services: Services, bus: FakeBus, first: str
) -> None:
    """Two connections: whoever has the document's lock first, nothing is visible at the end and nothing half done."""
    reception = take(tenant, submission(tenant, 1), "text")
    with operator_session() as operator:  # complete, but nobody has finished it yet
        space = operator.execute(
            text("select space_id from rag.tenant_spaces where tenant_id = :t"), {"t": tenant.tenant_id}
        ).scalar_one()
        operator.execute(
            text(
                "insert into rag.embeddings (tenant_id, space_id, chunk_id, embedding) select tenant_id, :s, chunk_id, "
                "cast(:v as vector) from rag.chunks where tenant_id = :t"
            ),
            {"t": tenant.tenant_id, "s": space, "v": str([1.0] + [0.0] * 63)},
        )

    def remove() -> None:
        delete(tenant)

    def finish() -> None:
        with tenant_session(tenant.tenant_id) as session:
            finish_version(session, tenant.tenant_id, reception.version_id)

    behind = finish if first == "deletion" else remove
    with tenant_session(tenant.tenant_id) as session:
        if first == "deletion":
            delete_document(session, as_curator(tenant), document_id(tenant))
        else:
            assert finish_version(session, tenant.tenant_id, reception.version_id)
        other = threading.Thread(target=behind)
        other.start()
        _until_somebody_waits()
    other.join(timeout=20)
    assert not other.is_alive()
    assert (look(tenant).state, look(tenant).current_version_id) == ("deleted", None)
    assert count(tenant, "rag.versions", "state in ('searchable', 'ingested')") == 0
    assert restore(tenant) == "searchable"


@pytest.mark.parametrize("first", ["rollback", "completion"])
def test_a_rollback_and_a_newer_version_at_once_end_with_the_newer_one(
    tenant: Principal, fake_services: Services, bus: FakeBus, first: str
) -> None:
    """The newer one was not what people rolled back from, unless it answered already when they did."""
    old = make(fake_services, bus, tenant, 1, "one", "x")
    make(fake_services, bus, tenant, 2, "two", "y")
    new = take(tenant, submission(tenant, 3), "x", "y", "three")
    with tenant_session(tenant.tenant_id) as session:
        if first == "rollback":
            roll_back(session, as_curator(tenant), document_id(tenant), old.version_id)
            other = threading.Thread(target=lambda: embed_all(fake_services, bus))
        else:
            session.execute(
                text("select 1 from rag.documents where tenant_id = :t for update"), {"t": tenant.tenant_id}
            )
            other = threading.Thread(target=lambda: back_to(tenant, old.version_id))
        other.start()
        _until_somebody_waits()
    other.join(timeout=20)
    assert not other.is_alive()
    embed_all(fake_services, bus)
    assert look(tenant).current == 3
    assert look(tenant).current_version_id == new.version_id


def _until_somebody_waits() -> None:
    """Return when another connection waits for a lock of ours."""
    deadline = datetime.now(UTC) + timedelta(seconds=20)
    while datetime.now(UTC) < deadline:
        with platform_session() as session:
            waiting = session.execute(
                text("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and usename = current_user")
            ).scalar_one()
        if waiting:
            return
    raise AssertionError("nobody waits")


def test_the_application_adds_to_the_audit_record_of_its_own_tenant_only(
    tenant: Principal, make_tenant: Callable[..., Principal]
) -> None:
    """The tenant comes from the session; reading is refused, and so is a session without a tenant."""
    with tenant_session(tenant.tenant_id) as session:
        audit.record_own(session, actor="member:x", action="tried", subject="thing", number=1)
    assert acts(tenant) == [("member:x", "tried")]
    with pytest.raises(ProgrammingError, match="no tenant is set"), platform_session() as session:
        audit.record_own(session, actor="member:x", action="tried", subject="thing")
    with pytest.raises(ProgrammingError, match="permission denied"), tenant_session(tenant.tenant_id) as session:
        session.execute(text("select * from core.audit"))
