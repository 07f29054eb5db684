"""A person's word: asked for once, given once by who may, waited for without holding anything."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from cli.main import noesis
from functions.maintenance.running import run_job
from shared.completions import ToolCall
from shared.conversations.runs import Lease, events_after, take_lease
from shared.conversations.waiting import cancel, suspend
from shared.database import operator_session, tenant_session
from shared.errors import PermanentError, Superseded
from shared.events import RunJob
from shared.fakes import FakeBus
from shared.services import Services
from shared.tenants.directory import Principal
from shared.tools.approvals import decide, decision_of, expire_due, pending_approvals, read_approval, request_approval
from shared.tools.cases import put_case, read_case
from tests.integration.tool_material import allow, call, member, running, toolbox

CLOSE = {"case_number": "4711", "status": "closed", "note": ""}


@pytest.fixture
def asker(tenant: Principal, bus: FakeBus) -> Principal:
    """A plain member of a tenant with a case and the tool to change it; nobody else's approval is due."""
    while expire_due():
        pass
    allow(tenant, "update_case")
    with tenant_session(tenant.tenant_id) as session:
        put_case(session, tenant.tenant_id, "4711", "Reklamation", "test")
    return member(tenant)


def waiting(who: Principal, wanted: ToolCall | None = None, key: str = "k") -> tuple[Lease, UUID]:
    """A run that asked for a person's word and gave everything back."""
    lease = running(who)
    with tenant_session(who.tenant_id) as session:
        approval_id = request_approval(session, lease, wanted or call("update_case", **CLOSE), key)
        suspend(session, lease, lease.next_seq, "approval")
    return lease, approval_id


def run_row(lease: Lease) -> Any:
    with operator_session() as session:
        return session.execute(
            text("select state, lease_until, waiting_for, epoch from core.runs where run_id = :r"), {"r": lease.run_id}
        ).one()


def say(principal: Principal, approval_id: UUID, kind: Any, *args: Any, **kwargs: Any) -> None:
    with tenant_session(principal.tenant_id) as session:
        decide(session, principal, approval_id, kind, *args, **kwargs)


def refused(principal: Principal, approval_id: UUID, kind: Any = "approved", *args: Any) -> str:
    """The reason why this decision is not taken."""
    with pytest.raises(PermanentError) as caught:
        say(principal, approval_id, kind, *args)
    return caught.value.reason


def status(tenant: Principal) -> str:
    with tenant_session(tenant.tenant_id) as session:
        return read_case(session, tenant, "4711").status


def test_an_approved_call_is_made_and_the_run_goes_on(
    tenant: Principal, asker: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Waiting holds no lease; the decision queues the run, commands it once and tells its readers."""
    lease, approval_id = waiting(asker)
    row = run_row(lease)
    assert (row.state, row.lease_until, row.waiting_for) == ("waiting", None, "approval")
    with pytest.raises(Superseded), tenant_session(asker.tenant_id) as session:
        take_lease(session, asker.tenant_id, lease.run_id)  # the message of the question, delivered again
    before = bus.names().count("answer-question")
    with tenant_session(tenant.tenant_id) as session:
        assert [a.approval_id for a in pending_approvals(session, tenant)] == [approval_id]
    say(tenant, approval_id, "approved", note="in Ordnung")
    assert bus.names().count("answer-question") == before + 1
    assert run_row(lease).state == "queued"
    with tenant_session(asker.tenant_id) as session:
        again = take_lease(session, asker.tenant_id, lease.run_id)
        told = events_after(session, asker, lease.run_id, 0)[-1]
        assert pending_approvals(session, tenant) == []
    assert (told.kind, told.data["decision"]) == ("approval-decided", "approved")
    assert again.next_seq == told.seq + 1
    assert status(tenant) == "open"
    box = toolbox(again, fake_services)
    assert box.examine(call("update_case", **CLOSE), "k").kind == "run"
    assert box.perform(call("update_case", **CLOSE), "k").ok
    assert status(tenant) == "closed"


def test_without_a_word_nothing_is_done(tenant: Principal, asker: Principal, fake_services: Services) -> None:
    """Performing a call that must be asked about does nothing and leaves its key free."""
    lease = running(asker)
    outcome = toolbox(lease, fake_services).perform(call("update_case", **CLOSE), "k")
    assert not outcome.ok
    assert "person must agree" in outcome.plain
    assert status(tenant) == "open"
    with tenant_session(asker.tenant_id) as session:
        assert decision_of(session, asker.tenant_id, lease.run_id, "k") is None


def test_what_was_agreed_to_is_what_is_done(tenant: Principal, asker: Principal, fake_services: Services) -> None:
    """A call under the approved key with other arguments, or another tool, is not what the person saw."""
    with tenant_session(tenant.tenant_id) as session:
        put_case(session, tenant.tenant_id, "9", "Andere", "test")
    lease, approval_id = waiting(asker)
    say(tenant, approval_id, "approved")
    with tenant_session(asker.tenant_id) as session:
        lease = take_lease(session, asker.tenant_id, lease.run_id)
    box = toolbox(lease, fake_services)
    assert not box.perform(call("get_case", case_number="9"), "k2").ok
    box.perform(call("update_case", case_number="9", status="closed"), "k")
    with tenant_session(tenant.tenant_id) as session:
        assert read_case(session, tenant, "9").status == "open"
    assert status(tenant) == "closed"
    other, second = waiting(asker)
    say(tenant, second, "approved")
    with tenant_session(asker.tenant_id) as session:
        other = take_lease(session, asker.tenant_id, other.run_id)
    assert toolbox(other, fake_services).examine(call("search", query="Frist"), "k").reason == "other-call"


def test_an_edited_call_is_made_as_edited(tenant: Principal, asker: Principal, fake_services: Services) -> None:
    """The person's arguments count, checked like the model's."""
    lease, approval_id = waiting(asker)
    assert refused(tenant, approval_id, "edited", {"case_number": "4711", "status": "exploded"}) == "bad-arguments"
    assert refused(tenant, approval_id, "edited", {}) == "bad-arguments"
    say(tenant, approval_id, "edited", CLOSE | {"status": "waiting"}, note="erst noch prüfen")
    with tenant_session(asker.tenant_id) as session:
        again = take_lease(session, asker.tenant_id, lease.run_id)
    assert toolbox(again, fake_services).perform(call("update_case", **CLOSE), "k").ok
    assert status(tenant) == "waiting"


def test_a_refused_call_is_told_to_the_model_with_the_note(
    tenant: Principal, asker: Principal, fake_services: Services
) -> None:
    """The run goes on, nothing was done, and a policy that changes meanwhile does not overrule the person."""
    lease, approval_id = waiting(asker)
    say(tenant, approval_id, "refused", note="Kunde hat nicht zugestimmt")
    allow(tenant, "update_case", asking="never")
    with tenant_session(asker.tenant_id) as session:
        again = take_lease(session, asker.tenant_id, lease.run_id)
    outcome = toolbox(again, fake_services).perform(call("update_case", **CLOSE), "k")
    assert not outcome.ok
    assert "Kunde hat nicht zugestimmt" in outcome.plain
    assert status(tenant) == "open"


def test_a_tool_switched_off_meanwhile_stays_off(tenant: Principal, asker: Principal, fake_services: Services) -> None:
    """An approval stands before the asking, never before the registry or the member's rights."""
    lease, approval_id = waiting(asker)
    say(tenant, approval_id, "approved")
    allow(tenant, "update_case", enabled=False)
    with tenant_session(asker.tenant_id) as session:
        again = take_lease(session, asker.tenant_id, lease.run_id)
    assert not toolbox(again, fake_services).perform(call("update_case", **CLOSE), "k").ok
    assert status(tenant) == "open"


def test_only_those_decide_who_may(tenant: Principal, asker: Principal, make_tenant: Callable[..., Principal]) -> None:
    """Not a plain member, not whoever asked under four eyes, not another tenant; and none learns more than that."""
    _, approval_id = waiting(asker)
    bystander, curator, stranger = member(tenant), member(tenant, "curator"), make_tenant()
    assert refused(bystander, approval_id) == "unknown-approval"
    assert refused(stranger, approval_id) == "unknown-approval"
    assert refused(curator, uuid4()) == "unknown-approval"
    assert refused(asker, approval_id) == "own-request"
    with tenant_session(tenant.tenant_id) as session:
        assert [len(pending_approvals(session, who)) for who in (bystander, curator, asker)] == [0, 1, 1]
        assert read_approval(session, bystander, approval_id) is None
    with tenant_session(stranger.tenant_id) as session:
        assert pending_approvals(session, stranger) == []
    _, own = waiting(curator)
    assert refused(curator, own) == "own-request"
    say(curator, approval_id, "approved")


def test_whoever_asked_may_agree_where_the_tenant_says_so(tenant: Principal, asker: Principal) -> None:
    """Without four eyes and with `asker` among the approvers; a mere role is still needed of others."""
    allow(tenant, "update_case", four_eyes=False, approvers=["admin"])
    _, approval_id = waiting(asker)
    assert refused(asker, approval_id) == "not-an-approver"
    allow(tenant, "update_case", four_eyes=False, approvers=["asker"])
    _, approval_id = waiting(asker)
    assert refused(tenant, approval_id) == "unknown-approval"
    say(asker, approval_id, "approved")


def test_a_decision_is_taken_once(tenant: Principal, asker: Principal, bus: FakeBus) -> None:
    """The same again by the same person is nothing new; anything else comes too late."""
    _, approval_id = waiting(asker)
    curator = member(tenant, "curator")
    say(tenant, approval_id, "approved")
    sent = bus.names().count("answer-question")
    say(tenant, approval_id, "approved")
    assert bus.names().count("answer-question") == sent
    assert refused(tenant, approval_id, "refused") == "already-decided"
    assert refused(curator, approval_id, "approved") == "already-decided"
    assert refused(tenant, approval_id, "edited", CLOSE) == "already-decided"


def test_of_two_who_decide_at_once_one_decides(tenant: Principal, asker: Principal, bus: FakeBus) -> None:
    """Real connections, opposite words: one is taken, the other told so, the run commanded once."""
    curator = member(tenant, "curator")
    for _ in range(5):
        lease, approval_id = waiting(asker)
        sent = bus.names().count("answer-question")
        assert sorted(_both(approval_id, tenant, curator)) == ["already-decided", "taken"]
        assert bus.names().count("answer-question") == sent + 1
        assert run_row(lease).state == "queued"


def _both(approval_id: UUID, one: Principal, other: Principal) -> list[str]:
    """What the two are told who approve and refuse at the same moment."""
    barrier = threading.Barrier(2)
    outcomes: list[str] = []

    def word(who: Principal, kind: str) -> None:
        barrier.wait()
        try:
            say(who, approval_id, kind)
            outcomes.append("taken")
        except PermanentError as error:
            outcomes.append(error.reason)

    threads = [threading.Thread(target=word, args=pair) for pair in ((one, "approved"), (other, "refused"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_after_its_time_an_approval_expires_and_the_run_goes_on(
    tenant: Principal, asker: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """The sweep ends it once; the model is told that nobody agreed; a late word is refused."""
    lease, approval_id = waiting(asker)
    assert expire_due() == 0
    _age(approval_id)
    assert refused(tenant, approval_id) == "approval-expired"
    with tenant_session(tenant.tenant_id) as session:
        assert pending_approvals(session, tenant) == []
    sent = bus.names().count("answer-question")
    assert [expire_due(), expire_due()] == [1, 0]
    assert bus.names().count("answer-question") == sent + 1
    assert refused(tenant, approval_id) == "approval-expired"
    with tenant_session(asker.tenant_id) as session:
        again = take_lease(session, asker.tenant_id, lease.run_id)
    outcome = toolbox(again, fake_services).perform(call("update_case", **CLOSE), "k")
    assert "Nobody agreed" in outcome.plain
    assert status(tenant) == "open"
    with operator_session() as session:
        assert (
            session.execute(
                text("select count(*) from core.audit where action = 'approval-expired' and subject = :s"),
                {"s": str(approval_id)},
            ).scalar()
            == 1
        )


def _age(approval_id: UUID) -> None:
    with operator_session() as session:
        session.execute(
            text("update core.approvals set expires_at = now() - interval '1 s' where approval_id = :a"),
            {"a": approval_id},
        )


def test_the_sweep_expires_approvals(asker: Principal, fake_services: Services) -> None:
    """It is part of what runs every minute."""
    lease, approval_id = waiting(asker)
    _age(approval_id)
    counts = run_job(RunJob(job="sweep", slot=datetime.now(UTC)), fake_services)
    assert counts is not None
    assert counts["approvals"] >= 1
    assert run_row(lease).state == "queued"


def test_a_cancelled_question_needs_no_word(tenant: Principal, asker: Principal) -> None:
    """It is gone from the list, a decision is refused, and the sweep closes it without waking anything."""
    lease, approval_id = waiting(asker)
    with tenant_session(asker.tenant_id) as session:
        assert cancel(session, asker, lease.run_id)
    with tenant_session(tenant.tenant_id) as session:
        assert pending_approvals(session, tenant) == []
    assert refused(tenant, approval_id) == "run-ended"
    assert expire_due() == 1
    assert refused(tenant, approval_id) == "run-ended"
    assert run_row(lease).state == "cancelled"


def test_an_erased_tenant_takes_its_approvals_along(tenant: Principal, asker: Principal) -> None:
    """Nothing of it is left to decide."""
    lease, approval_id = waiting(asker)
    with operator_session() as session:
        session.execute(text("delete from core.runs where run_id = :r"), {"r": lease.run_id})
    assert refused(tenant, approval_id) == "unknown-approval"
    assert expire_due() == 0


def test_a_run_that_begins_anew_asks_anew(tenant: Principal, asker: Principal, fake_services: Services) -> None:
    """A document it had read was deleted for good: the old question to people is void, the new one counts."""
    lease, approval_id = waiting(asker)
    with operator_session() as session:  # as shared.conversations.redaction does
        session.execute(
            text("update core.approvals set arguments = '{}', state = 'cancelled' where approval_id = :a"),
            {"a": approval_id},
        )
        session.execute(
            text("update core.runs set state = 'queued', waiting_for = null where run_id = :r"), {"r": lease.run_id}
        )
    assert refused(tenant, approval_id) == "run-ended"
    with tenant_session(asker.tenant_id) as session:
        again = take_lease(session, asker.tenant_id, lease.run_id)
        assert (
            request_approval(session, again, call("update_case", **CLOSE | {"status": "waiting"}), "k") == approval_id
        )
        suspend(session, again, again.next_seq, "approval")
    say(tenant, approval_id, "approved")
    with tenant_session(asker.tenant_id) as session:
        again = take_lease(session, asker.tenant_id, lease.run_id)
    assert toolbox(again, fake_services).perform(call("update_case", **CLOSE), "k").ok
    assert status(tenant) == "waiting"


def test_a_run_waits_for_all_its_approvals(tenant: Principal, asker: Principal) -> None:
    """Two calls of one decision: the run goes on when the last one has its word."""
    lease = running(asker)
    with tenant_session(asker.tenant_id) as session:
        first = request_approval(session, lease, call("update_case", **CLOSE), "1")
        second = request_approval(session, lease, call("update_case", **CLOSE), "2")
        assert request_approval(session, lease, call("update_case", **CLOSE), "2") == second
        suspend(session, lease, lease.next_seq, "approval")
    say(tenant, first, "approved")
    assert run_row(lease).state == "waiting"
    say(tenant, second, "refused")
    assert run_row(lease).state == "queued"


def test_a_zombie_cannot_ask(asker: Principal) -> None:
    """Asking and waiting are one transaction of who holds the run."""
    lease = running(asker)
    with operator_session() as session:
        session.execute(text("update core.runs set epoch = epoch + 1 where run_id = :r"), {"r": lease.run_id})
    with pytest.raises(Superseded), tenant_session(asker.tenant_id) as session:
        request_approval(session, lease, call("update_case", **CLOSE), "k")
        suspend(session, lease, lease.next_seq, "approval")
    with tenant_session(asker.tenant_id) as session:
        assert pending_approvals(session, asker) == []


def test_approvals_and_tools_at_the_terminal(tenant: Principal, asker: Principal) -> None:
    """list, show, edit, approve, refuse; enable, disable, configure: what they say is what holds."""
    runner = CliRunner()

    def terminal(*arguments: str) -> str:
        result = runner.invoke(noesis, [*arguments, "-t", tenant.tenant_slug], env={"COLUMNS": "300"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    _, first = waiting(asker, call("update_case", **CLOSE | {"note": "gut\u202e\u009b2Jlesbar"}))
    _, second = waiting(asker)
    assert "gut\\u202e\\u009b2Jlesbar" in terminal("approvals", "show", str(first))
    assert str(first) in terminal("approvals", "list")
    assert asker.email in terminal("approvals", "show", str(first))
    assert "goes on" in terminal("approvals", "edit", str(first), '{"case_number": "4711", "status": "waiting"}')
    assert "refused" in terminal("approvals", "refuse", str(second), "--note", "nein")
    shown = terminal("approvals", "show", str(second))
    assert "nein" in shown
    assert "refused" in shown
    with pytest.raises(PermanentError, match="decided already"):
        terminal("approvals", "approve", str(second))
    assert "is off" in terminal("tools", "disable", "search")
    assert "is on" in terminal("tools", "enable", "search")
    assert "asks always" in terminal(
        "tools", "configure", "update_case", "--ask", "always", "--role", "curator", "--two-eyes", "--hours", "24"
    )
    listed = terminal("tools", "list")
    assert "curator" in listed
    assert '"hours": 24.0' in terminal("tools", "list", "--json")
    terminal("cases", "put", "17", "Neuer Fall")
    assert "Neuer Fall" in terminal("cases", "list")
