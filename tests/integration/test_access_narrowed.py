"""Access that was narrowed holds for what was answered before, too: from that moment, and as long as it lasts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import uuid4

import pytest
from sqlalchemy import text

from shared.conversations.ending import finish
from shared.conversations.memory import turns_before
from shared.conversations.runs import (
    Answer,
    Citation,
    Lease,
    Run,
    RunEvent,
    append_events,
    ask,
    events_after,
    read_run,
    recent_runs,
    take_lease,
)
from shared.database import operator_session, tenant_session
from shared.documents.intake import receive
from shared.events import Access, DocumentSubmitted
from shared.fakes import FakeBus
from shared.tenants.directory import Principal, add_member, add_to_group, memberships

SECRET = "The salary of the director is 9000 EUR."

pytestmark = pytest.mark.usefixtures("bus")


@pytest.fixture
def reader(make_tenant: Callable[..., Principal]) -> Principal:
    """A member of the group `hr`."""
    tenant_id, email = make_tenant().tenant_id, f"reader@{uuid4().hex}.example"
    with operator_session() as operator:
        member = add_member(operator, tenant_id, email, name="Reader")
        add_to_group(operator, tenant_id, "hr", member)
    return memberships(email)[0]


def share(reader: Principal, version: int, *, groups: Sequence[str] = (), members: Sequence[str] = ()) -> None:
    """Upstream says anew who may see the document."""
    event = DocumentSubmitted(
        tenant_id=reader.tenant_id,
        external_id="salaries",
        source_version=version,
        content="",
        access=Access(groups=tuple(groups), members=tuple(members)),
    )
    with tenant_session(reader.tenant_id) as session:
        receive(session, event, "upstream")


def question(reader: Principal, conversation: object = None) -> Lease:
    """A question of the reader, taken by a worker; `conversation` is an earlier run's lease."""
    known = conversation.conversation_id if isinstance(conversation, Lease) else None
    with tenant_session(reader.tenant_id) as session:
        run_id = ask(session, reader, "What does the director earn?", conversation_id=known)
    with tenant_session(reader.tenant_id) as session:
        return take_lease(session, reader.tenant_id, run_id)


def answer(reader: Principal, held: Lease) -> Run:
    """The worker ends the run with a quotation of the document."""
    with tenant_session(reader.tenant_id) as session:
        document_id = session.execute(
            text("select document_id from rag.documents where tenant_id = :t"), {"t": reader.tenant_id}
        ).scalar_one()
        append_events(session, held, [RunEvent(1, "token", {"text": SECRET, "attempt": 1})])
    proof = Citation(1, document_id, uuid4(), uuid4(), "Salaries 2026", ("Board",), 7, SECRET, 5, 12)
    with tenant_session(reader.tenant_id) as session:
        finish(session, held, Answer(f"{SECRET} [1]", False, (proof,), "extractive", 1, 1, language="en"), 2)
    return shown(reader, held)


def shown(reader: Principal, held: Lease) -> Run:
    """The run as its member sees it."""
    with tenant_session(reader.tenant_id) as session:
        run = read_run(session, reader, held.run_id)
    assert run is not None
    return run


def everything(reader: Principal, held: Lease) -> str:
    """All that any reading of the run tells its member."""
    with tenant_session(reader.tenant_id) as session:
        return f"{shown(reader, held)} {events_after(session, reader, held.run_id, 0)} {recent_runs(session, reader)}"


def test_an_answer_is_withheld_as_soon_as_its_document_is_closed_to_its_reader(reader: Principal) -> None:
    """Text, title, place, quotation and draft; and shown again when the document is opened again."""
    share(reader, 1, groups=["hr"])
    held = question(reader)
    assert SECRET in (answer(reader, held).answer or "")
    share(reader, 2, groups=["board"])
    told = everything(reader, held)
    assert SECRET not in told
    assert "Salaries 2026" not in told
    run = shown(reader, held)
    assert run.answer is not None
    assert "no longer see" in run.answer
    assert [(c.title, c.quote, c.page, c.heading_path) for c in run.citations] == [
        ("Document without access", "", None, ())
    ]
    share(reader, 3, members=[reader.email])
    assert SECRET in (shown(reader, held).answer or "")
    assert shown(reader, held).citations[0].quote == SECRET


def test_who_leaves_a_group_loses_the_answers_it_gave(reader: Principal) -> None:
    """Nobody has to touch the document for it."""
    share(reader, 1, groups=["hr"])
    held = question(reader)
    answer(reader, held)
    with operator_session() as operator:
        operator.execute(
            text("delete from core.group_members where tenant_id = :t and member_id = :m"),
            {"t": reader.tenant_id, "m": reader.member_id},
        )
    assert SECRET not in everything(reader, held)


def test_a_run_that_waited_while_access_was_narrowed_answers_nothing_of_it(reader: Principal) -> None:
    """It had read the document days ago, when that was allowed."""
    share(reader, 1, groups=["hr"])
    held = question(reader)
    share(reader, 2, groups=["board"])
    answer(reader, held)
    assert SECRET not in everything(reader, held)


def test_the_next_question_does_not_remember_what_its_reader_may_not_see(reader: Principal) -> None:
    """A model would tell it again, without any search."""
    share(reader, 1, groups=["hr"])
    first = question(reader)
    answer(reader, first)
    second = question(reader, first)
    with tenant_session(reader.tenant_id) as session:
        assert SECRET in str(turns_before(session, second))
    share(reader, 2, groups=["board"])
    with tenant_session(reader.tenant_id) as session:
        assert turns_before(session, second) == []


def test_a_document_that_everybody_may_see_withholds_nothing(reader: Principal, bus: FakeBus) -> None:
    """The usual case; also without any group."""
    share(reader, 1)
    held = question(reader)
    assert SECRET in (answer(reader, held).answer or "")
    assert SECRET in everything(reader, held)
