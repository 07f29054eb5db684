"""The last place is given to one of two that ask at once; what was erased never gets into the line."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import operator_session, tenant_session
from shared.documents.intake import receive
from shared.documents.tombstones import entomb
from shared.documents.turns import join_line, next_turns, take_turn
from shared.fakes import FakeBus
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import submission, until_somebody_waits

TOPIC = "documents-upstream"


def ask_for_a_place(session: Session, tenant: Principal, external_id: str) -> bool:
    """Receive a document, as ingest does, where one may be in progress at once."""
    event = submission(tenant, 1, external_id)
    return take_turn(session, receive(session, event, "upstream"), event, TOPIC, 1)


def committed(tenant: Principal, external_id: str) -> bool:
    """The same in a transaction of its own."""
    with tenant_session(tenant.tenant_id) as session:
        return ask_for_a_place(session, tenant, external_id)


def waiting(tenant: Principal) -> list[str]:
    """Who is in the line."""
    with tenant_session(tenant.tenant_id) as session:
        return list(
            session.execute(
                text(
                    "select d.external_id from core.waiting_messages w join rag.documents d "
                    "on d.tenant_id = w.tenant_id and d.document_id = w.document_id order by w.created_at"
                )
            ).scalars()
        )


def test_the_last_place_is_not_given_twice(tenant: Principal, bus: FakeBus) -> None:
    """The second waits for the first one's transaction, sees that the place is taken, and is laid aside."""
    with ThreadPoolExecutor(1) as other:
        with tenant_session(tenant.tenant_id) as session:
            assert ask_for_a_place(session, tenant, "first")
            second = other.submit(committed, tenant, "second")
            until_somebody_waits()
        assert second.result(timeout=20) is False
    assert waiting(tenant) == ["second"]


def test_a_freed_place_goes_to_one_of_those_who_wait(tenant: Principal, bus: FakeBus) -> None:
    """Two documents end at the same moment: each end looks after the other's turn was given, so nobody goes twice."""
    assert committed(tenant, "first")
    assert [committed(tenant, name) for name in ("second", "third")] == [False, False]
    with tenant_session(tenant.tenant_id) as session:
        session.execute(
            text(
                "update rag.versions v set state = 'searchable' from rag.documents d where d.tenant_id = v.tenant_id "
                "and d.document_id = v.document_id and d.external_id = 'first'"
            )
        )

    def freed() -> int:
        with tenant_session(tenant.tenant_id) as session:
            return next_turns(session, tenant.tenant_id, 1)

    with ThreadPoolExecutor(1) as other:
        with tenant_session(tenant.tenant_id) as session:
            assert next_turns(session, tenant.tenant_id, 1) == 1
            second = other.submit(freed)
            until_somebody_waits()
        assert second.result(timeout=20) == 0
    assert waiting(tenant) == ["third"]


def test_what_was_deleted_for_good_does_not_come_back_by_standing_in_line(tenant: Principal, bus: FakeBus) -> None:
    """The short way into the line writes a row and a title: not of a document that left nothing but its tombstone."""
    assert committed(tenant, "first")
    assert not committed(tenant, "second")
    with operator_session() as operator:
        entomb(operator, tenant.tenant_id, "upstream", "erased", 3, datetime.now(UTC))
    with tenant_session(tenant.tenant_id) as session:
        assert not join_line(session, submission(tenant, 2, "erased"), "upstream")
        assert join_line(session, submission(tenant, 2, "third"), "upstream")
        known = session.execute(text("select external_id from rag.documents order by 1")).scalars().all()
    assert list(known) == ["first", "second", "third"]
