"""A call is recorded with its outcome, done at most once, and only for the run that holds the lease."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from functions.agent import tools as toolbox_module
from functions.agent.tools import ToolOutcome
from functions.maintenance.jobs.purge import RULES
from shared.conversations.runs import take_lease
from shared.database import operator_session, tenant_session
from shared.errors import Superseded, TransientError
from shared.fakes import FakeModels
from shared.services import Services
from shared.tenants.directory import Principal
from shared.tools import calls
from shared.tools.cases import read_case
from tests.integration.tool_material import Web, allow, call, case, member, reaching, rows, running, toolbox


def test_a_finished_call_is_told_again_and_not_done_again(tenant: Principal, able: Services) -> None:
    """Under the same key the first outcome counts, whatever has changed since."""
    allow(tenant, "update_case", asking="never")
    case(tenant)
    lease = running(tenant)
    first = toolbox(lease, able).perform(call("update_case", case_number="4711", status="waiting"), "k")
    with tenant_session(tenant.tenant_id) as session:
        session.execute(text("update core.cases set status = 'closed' where tenant_id = :t"), {"t": tenant.tenant_id})
    again = toolbox(lease, able).perform(call("update_case", case_number="4711", status="waiting"), "k")
    assert first == again
    with tenant_session(tenant.tenant_id) as session:
        found = read_case(session, tenant, "4711")
    assert (found.status, found.revision) == ("closed", 2)


def test_a_write_and_its_outcome_are_there_together_or_not_at_all(
    tenant: Principal, able: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between effect and record leaves neither, and the repetition makes both once."""
    allow(tenant, "update_case", asking="never")
    case(tenant)
    lease = running(tenant)
    wanted = call("update_case", case_number="4711", status="closed", note="erledigt")
    real = calls.store

    def dies(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(toolbox_module, "store", dies)
    with pytest.raises(KeyboardInterrupt):
        toolbox(lease, able).perform(wanted, "k")
    with tenant_session(tenant.tenant_id) as session:
        assert read_case(session, tenant, "4711").revision == 1
    monkeypatch.setattr(toolbox_module, "store", real)
    assert toolbox(lease, able).perform(wanted, "k").ok
    with tenant_session(tenant.tenant_id) as session:
        found = read_case(session, tenant, "4711")
    assert (found.status, found.note, found.revision, found.changed_by) == ("closed", "erledigt", 2, tenant.email)


def test_who_has_lost_the_run_changes_nothing(tenant: Principal, able: Services, web: Web) -> None:
    """A zombie is refused in the transaction of the effect, and before anything leaves the house."""
    allow(tenant, "update_case", asking="never")
    allow(tenant, "http_request", asking="never", settings={"allow": [{"url": f"{web.url}/hook"}]})
    case(tenant)
    zombie = running(tenant)
    with operator_session() as session:
        session.execute(
            text("update core.runs set lease_until = now() - interval '1 s' where run_id = :r"), {"r": zombie.run_id}
        )
    with tenant_session(tenant.tenant_id) as session:
        take_lease(session, tenant.tenant_id, zombie.run_id)
    box = toolbox(zombie, reaching(able, web))
    for wanted in (
        call("update_case", case_number="4711", status="closed"),
        call("http_request", url=f"{web.url}/hook"),
        call("calculate", expression="1+1"),
    ):
        with pytest.raises(Superseded):
            box.perform(wanted, wanted.name)
    with tenant_session(tenant.tenant_id) as session:
        assert read_case(session, tenant, "4711").revision == 1
    assert web.requests == []
    assert rows(tenant) == []


def test_a_case_for_others_does_not_exist(tenant: Principal, able: Services) -> None:
    """Neither read nor changed, and told apart from none by nothing."""
    allow(tenant, "get_case")
    allow(tenant, "update_case", asking="never")
    case(tenant, "1", groups=["vorstand"])
    box = toolbox(running(member(tenant)), able)
    hidden = box.perform(call("get_case", case_number="1"), "1")
    assert hidden.plain == box.perform(call("get_case", case_number="2"), "2").plain
    assert not box.perform(call("update_case", case_number="1", status="closed"), "3").ok
    with tenant_session(tenant.tenant_id) as session:
        assert (
            session.execute(
                text("select status from core.cases where tenant_id = :t"), {"t": tenant.tenant_id}
            ).scalar()
            == "open"
        )


def test_a_provider_that_is_down_fails_the_delivery_and_not_the_call(tenant: Principal, able: Services) -> None:
    """Nothing is stored, so the redelivery tries again."""
    assert isinstance(able.models, FakeModels)
    able.models.failures = [TransientError("down")]
    lease = running(tenant)
    with pytest.raises(TransientError):
        toolbox(lease, able).perform(call("search", query="Urlaub"), "1")
    assert rows(tenant) == []
    assert toolbox(lease, able).perform(call("search", query="Urlaub"), "1").ok


def test_an_erased_result_is_neither_told_nor_fetched_again(tenant: Principal, able: Services) -> None:
    """What a deletion for good has emptied stays empty, also for a run that goes on."""
    lease = running(tenant)
    wanted = call("calculate", expression="1+1")
    toolbox(lease, able).perform(wanted, "k")
    with operator_session() as session:
        session.execute(
            text("update core.tool_calls set result = null, arguments = '{}' where tenant_id = :t"),
            {"t": tenant.tenant_id},
        )
    outcome = toolbox(lease, able).perform(wanted, "k")
    assert not outcome.ok
    assert "erased" in outcome.plain


def test_results_of_old_runs_are_purged_and_the_record_stays(tenant: Principal, able: Services) -> None:
    """After thirty days what a tool told is gone; that it was used is not."""
    old, young = running(tenant), running(tenant)
    for lease in (old, young):
        toolbox(lease, able).perform(call("calculate", expression="1+1"), "k")
    with operator_session() as session:
        session.execute(
            text("update core.runs set state = 'answered', finished_at = now() - interval '31 days' where run_id = :r"),
            {"r": old.run_id},
        )
        age, statement = RULES["tool_results"]
        assert session.execute(text(statement), {"age": age, "limit": 9}).rowcount == 1  # type: ignore[attr-defined]
        assert session.execute(text(statement), {"age": age, "limit": 9}).rowcount == 0  # type: ignore[attr-defined]
        kept = session.execute(
            text("select run_id, name, result is null as emptied from core.tool_calls where tenant_id = :t"),
            {"t": tenant.tenant_id},
        ).all()
    assert {(row.run_id, row.name, row.emptied) for row in kept} == {
        (old.run_id, "calculate", True),
        (young.run_id, "calculate", False),
    }


def test_calls_of_two_tenants_do_not_meet(make_tenant: Callable[..., Principal], able: Services) -> None:
    """The same key in another tenant's run is another call."""
    one, other = make_tenant(), make_tenant()
    outcomes: list[ToolOutcome] = [
        toolbox(running(who), able).perform(call("calculate", expression=expression), "same")
        for who, expression in ((one, "1+1"), (other, "2+2"))
    ]
    assert [outcome.plain[-1] for outcome in outcomes] == ["2", "4"]
