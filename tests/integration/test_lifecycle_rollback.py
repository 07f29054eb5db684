"""A document goes back to an earlier version: its history, what is rejected for good, and what it cannot go back to."""

from __future__ import annotations

import threading
from uuid import uuid4, uuid5

import pytest
from sqlalchemy import text

from shared.database import operator_session, tenant_session
from shared.documents.acting import as_curator
from shared.documents.history import read_history, roll_back
from shared.errors import PermanentError, Superseded
from shared.events import DocumentFailed
from shared.fakes import FakeBus
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import (
    acts,
    back_to,
    delete,
    document_id,
    embed_all,
    events,
    found,
    look,
    make,
    submission,
    take,
    until_somebody_waits,
)


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
        until_somebody_waits()
    other.join(timeout=20)
    assert not other.is_alive()
    embed_all(fake_services, bus)
    assert look(tenant).current == 3
    assert look(tenant).current_version_id == new.version_id
