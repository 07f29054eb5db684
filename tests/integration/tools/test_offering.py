"""A run is offered, and may call, only the tools that its tenant, its member and its model allow."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from shared.completions import ToolCall
from shared.database import operator_session, tenant_session
from shared.errors import PermanentError
from shared.services import Services
from shared.tenants.directory import Principal
from shared.tools.catalogue import TOOLS
from shared.tools.registry import configure, grants
from tests.integration.tool_material import Web, allow, call, case, member, reaching, rows, running, toolbox

READ = {"search", "list_documents", "open_document", "compare_versions", "calculate", "dates"}


def test_reading_tools_are_offered_with_their_schemas_and_effects_only_when_switched_on(
    tenant: Principal, able: Services
) -> None:
    """What reads in the member's own rights is there at once; what writes or leaves is not."""
    box = toolbox(running(tenant), able)
    offered = {tool["function"]["name"]: tool["function"] for tool in box.offered()}
    assert set(offered) == READ
    parameters = offered["open_document"]["parameters"]
    assert parameters["required"] == ["document_id"]
    assert parameters["properties"]["document_id"]["format"] == "uuid"
    assert parameters["additionalProperties"] is False
    allow(tenant, "update_case")
    allow(tenant, "http_request")  # without a destination it would be an offer of nothing
    allow(tenant, "search", enabled=False)
    assert {tool["function"]["name"] for tool in box.offered()} == READ - {"search"} | {"update_case"}


def test_a_model_without_tools_is_offered_none(tenant: Principal, fake_services: Services) -> None:
    """The extractive answerer is not asked for what it cannot do."""
    assert toolbox(running(tenant), fake_services).offered() == []


def test_roles_decide_who_may_use_a_tool(tenant: Principal, able: Services) -> None:
    """A member without the role is not offered the tool, and calling it anyway is refused."""
    allow(tenant, "get_case", roles=["curator"])
    case(tenant)
    plain, curator = toolbox(running(member(tenant)), able), toolbox(running(member(tenant, "curator")), able)
    assert "get_case" not in {tool["function"]["name"] for tool in plain.offered()}
    assert plain.examine(call("get_case", case_number="4711")).reason == "tool-not-permitted"
    assert not plain.perform(call("get_case", case_number="4711"), "k").ok
    assert "Reklamation" in curator.perform(call("get_case", case_number="4711"), "k").text


def test_a_role_that_was_taken_away_counts_at_once(tenant: Principal, able: Services) -> None:
    """Rights are those of the moment of the call, not those of the question."""
    allow(tenant, "get_case", roles=["curator"])
    case(tenant)
    curator = member(tenant, "curator")
    box = toolbox(running(curator), able)
    assert box.examine(call("get_case", case_number="4711")).kind == "run"
    with operator_session() as session:
        session.execute(text("update core.members set role = 'member' where member_id = :m"), {"m": curator.member_id})
    assert not box.perform(call("get_case", case_number="4711"), "k").ok


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (ToolCall("1", "format_disk", {}), "unknown-tool"),
        (ToolCall("1", "na\x00me", {}), "unknown-tool"),
        (ToolCall("1", "update_case", {"case_number": "1", "status": "closed"}), "tool-disabled"),
        (ToolCall("1", "search", {}, "the arguments are not JSON"), "bad-arguments"),
        (ToolCall("1", "search", {"query": "x" * 5000}), "bad-arguments"),
        (ToolCall("1", "search", {"query": "a\x00b"}), "bad-arguments"),
        (ToolCall("1", "search", {"query": "a\ud800b"}), "bad-arguments"),
        (ToolCall("1", "search", {"query": "ok", "as_member": "admin"}), "bad-arguments"),
        (ToolCall("1", "open_document", {"document_id": "../../etc/passwd"}), "bad-arguments"),
        (ToolCall("1", "dates", {"action": "explode", "date": "today"}), "bad-arguments"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name.replace("\x00", "0"),
)
def test_what_cannot_be_called_is_told_to_the_model(
    tenant: Principal, able: Services, wanted: ToolCall, reason: str
) -> None:
    """A typed refusal that the model can read and mend; nothing is raised, nothing done."""
    box = toolbox(running(tenant), able)
    verdict = box.examine(wanted)
    assert (verdict.kind, verdict.reason) == ("refuse", reason)
    outcome = box.perform(wanted, "k")
    assert not outcome.ok
    assert outcome.text.startswith("<tool_result")
    assert [row[2:4] for row in rows(tenant)] == [(False, reason)]


def test_bad_arguments_name_the_field_and_not_the_value(tenant: Principal, able: Services) -> None:
    """The model learns what to mend; content does not travel in errors."""
    verdict = toolbox(running(tenant), able).examine(call("list_documents", limit="all of them", title_contains=7))
    assert "limit" in verdict.text
    assert "title_contains" in verdict.text
    assert "all of them" not in verdict.text


def test_what_writes_or_leaves_is_asked_about_once_the_model_has_read_something(
    tenant: Principal, able: Services, web: Web
) -> None:
    """In a context of the member's question alone it runs; after anything was read a person must agree."""
    allow(tenant, "update_case")
    allow(tenant, "http_request", settings={"allow": [{"url": f"{web.url}/hook"}]})
    case(tenant)
    services = reaching(able, web)
    write, leave = (
        call("update_case", case_number="4711", status="closed"),
        call("http_request", url=f"{web.url}/hook"),
    )
    box = toolbox(running(tenant), services)
    assert [box.examine(one, clean=True).kind for one in (write, leave)] == ["run", "run"]
    assert [box.examine(one).kind for one in (write, leave)] == ["ask", "ask"]
    # Sums and dates say nothing of their own; a search does, whatever the caller believes the context to be.
    box.perform(call("calculate", expression="1+1"), "1", clean=True)
    assert box.examine(write, clean=True).kind == "run"
    box.perform(call("search", query="Urlaub"), "2", clean=True)
    assert [box.examine(one, clean=True).kind for one in (write, leave)] == ["ask", "ask"]
    outcome = box.perform(write, "3", clean=True)
    assert not outcome.ok
    assert web.requests == []
    assert [row[0] for row in rows(tenant)] == ["calculate", "search"]  # the key is still free for an approval


def test_settings_of_tools_are_checked_kept_and_audited(tenant: Principal) -> None:
    """Bad ones change nothing; what is not named stays; the record says who, what and where to."""
    with operator_session() as session:
        configure(session, tenant.tenant_id, "get_case", "anna", enabled=True, roles=["admin"])
        configure(session, tenant.tenant_id, "get_case", "anna", asking="always")
    bad: tuple[dict[str, Any], ...] = ({"roles": ["king"]}, {"approvers": []}, {"settings": {"allow": []}})
    for changes in bad:
        with operator_session() as session, pytest.raises(PermanentError) as caught:
            configure(session, tenant.tenant_id, "get_case", "anna", **changes)
        assert caught.value.reason == "bad-tool-settings"
    for entry in (
        {"url": "https://*.example.com/"},
        {"url": "https://u:p@example.com/"},
        {"url": "https://example.com/a*"},
        {"url": "https://example.com/a/../b"},
        {"url": "ftp://example.com/"},
        {"url": "https://example.com/", "headers": {"Host": "x"}},
        {"url": "https://example.com/", "headers": {"Authorization": "Bearer value"}},
        {"url": "https://example.com/", "methods": ["TRACE"]},
    ):
        with operator_session() as session, pytest.raises(PermanentError) as caught:
            configure(session, tenant.tenant_id, "http_request", "anna", settings={"allow": [entry]})
        assert caught.value.reason == "bad-tool-settings", entry
    with tenant_session(tenant.tenant_id) as session:
        found = grants(session, tenant.tenant_id)
        assert (found["get_case"].enabled, found["get_case"].roles, found["get_case"].asking) == (
            True,
            ("admin",),
            "always",
        )
        assert not found["http_request"].enabled
        assert set(found) == set(TOOLS)
    with operator_session() as session:
        recorded = session.execute(
            text("select actor, action, subject from core.audit where tenant_id = :t"), {"t": tenant.tenant_id}
        ).all()
    assert [tuple(row) for row in recorded].count(("anna", "tool-configured", "get_case")) == 2


def test_a_run_cannot_change_what_its_tenant_allows(tenant: Principal) -> None:
    """The application's role reads the registry and has no right to write it."""
    with pytest.raises(DBAPIError, match="permission denied"), tenant_session(tenant.tenant_id) as session:
        session.execute(
            text(
                "insert into core.tenant_tools (tenant_id, name, enabled, asking, approvers) "
                "values (:t, 'http_request', true, 'never', '{admin}')"
            ),
            {"t": tenant.tenant_id},
        )
