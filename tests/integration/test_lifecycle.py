"""Documents are deleted and restored: by whom, until when, and what upstream sends meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4, uuid5

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from functions.ingest.ingestion import withdraw_document
from shared import audit
from shared.database import operator_session, platform_session, tenant_session
from shared.documents.acting import as_curator, as_operator
from shared.documents.completion import finish_version
from shared.documents.deletion import delete_document
from shared.documents.history import read_history
from shared.documents.reading import read_chunk
from shared.errors import PermanentError, Superseded
from shared.events import DocumentFailed, DocumentIndexed, DocumentRemoved, DocumentWithdrawn
from shared.fakes import FakeBus
from shared.retrieval.spaces import ensure_space
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import (
    acts,
    age,
    count,
    delete,
    document_id,
    embed_all,
    events,
    found,
    look,
    make,
    restore,
    submission,
    take,
    until_somebody_waits,
)


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
    """The time of the deletion stays, and whose it was; what answered before it can still be restored."""
    make(fake_services, bus, tenant, 1, "text")
    delete(tenant)
    before = look(tenant).deleted_at
    withdraw_document(DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="doc", source_version=1), "upstream")
    assert (look(tenant).deleted_at, look(tenant).deleted_by) == (before, as_curator(tenant).name)
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
        until_somebody_waits()
    other.join(timeout=20)
    assert not other.is_alive()
    assert (look(tenant).state, look(tenant).current_version_id) == ("deleted", None)
    assert count(tenant, "rag.versions", "state in ('searchable', 'ingested')") == 0
    assert restore(tenant) == "searchable"


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


def test_a_withdrawal_does_not_open_what_a_person_deleted_to_older_messages(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Sent before the deletion and handled after both: it stays away. And the withdrawal is still the source's word."""
    before = datetime.now(UTC) - timedelta(minutes=1)
    make(fake_services, bus, tenant, 1, "text")
    delete(tenant)
    withdraw_document(DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="doc", source_version=1), "upstream")
    deleted = look(tenant)
    assert deleted.deleted_by == as_curator(tenant).name
    with pytest.raises(Superseded):
        take(tenant, submission(tenant, 2, occurred_at=before), "late")
    assert look(tenant).state == "deleted"
    with pytest.raises(PermanentError) as refused:
        restore(tenant, actor=as_curator(replace(tenant, role="curator")))
    assert refused.value.reason == "withdrawn-by-source"
    after = deleted.deleted_at + timedelta(seconds=1)
    take(tenant, submission(tenant, 3, occurred_at=after), "new")
    assert look(tenant).state == "ingested"
