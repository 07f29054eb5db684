"""Requests that leave the house go where they may, carry secrets that nobody is told, and are not repeated blindly."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import text

from functions.agent.tooling import working
from shared.database import operator_session, tenant_session
from shared.services import Services
from shared.tenants.directory import Principal
from shared.tools.calls import reserve
from tests.integration.tool_material import Web, allow, call, reaching, rows, running, toolbox


def test_a_trusted_destination_runs_alone_only_when_the_model_chose_nothing_of_it(
    tenant: Principal, able: Services, web: Web
) -> None:
    """`never` ask covers whole addresses without a body; a path, query or body of the model's making is asked about."""
    allow(
        tenant,
        "http_request",
        asking="never",
        settings={"allow": [{"url": f"{web.url}/ping", "methods": ["GET", "POST"]}, {"url": f"{web.url}/orders/*"}]},
    )
    box = toolbox(running(tenant), reaching(able, web))
    kinds = {
        suffix: box.examine(call("http_request", url=web.url + suffix)).kind
        for suffix in ("/ping", "/ping?x=1", "/orders/17", "/orders/../admin", "/orders/%2e%2e/admin", "/other")
    }
    assert kinds == {
        "/ping": "run",
        "/ping?x=1": "refuse",
        "/orders/17": "ask",
        "/orders/../admin": "refuse",
        "/orders/%2e%2e/admin": "refuse",
        "/other": "refuse",
    }
    assert box.examine(call("http_request", url=f"{web.url}/ping", method="POST", body="all I know")).kind == "ask"
    assert box.examine(call("http_request", url=f"{web.url}/ping", method="DELETE")).kind == "refuse"
    assert box.perform(call("http_request", url=f"{web.url}/ping"), "1").ok
    assert [(method, path) for method, path, _, _ in web.requests] == [("GET", "/ping")]


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:1/",
        "http://localhost/",
        "http://[::1]/",
        "http://user:password@example.com/",
        "file:///etc/passwd",
        "http://2130706433/",
        "https://example.com/\\@evil.example/",
    ],
)
def test_no_address_leads_inside(tenant: Principal, able: Services, web: Web, url: str) -> None:
    """Even a tenant that allows an inner address does not get there: that is the operator's word alone."""
    entry = {"url": url} if url.startswith("http") and "@" not in url else {"url": "https://example.com/*"}
    allow(tenant, "http_request", asking="never", settings={"allow": [entry]})
    box = toolbox(running(tenant), reaching(able, web))
    outcome = box.perform(call("http_request", url=url), "1")
    assert not outcome.ok
    assert web.requests == []


def test_credentials_are_sent_and_never_told(tenant: Principal, able: Services, web: Web) -> None:
    """The header carries the tenant's secret; the model sees neither its name nor, if it comes back, its value."""
    secret = "Bearer s3cr3t-of-this-tenant"
    web.answer = f'{{"you sent": "{secret}", "token": "{secret[7:]}"}}'.encode()
    entry = {"url": f"{web.url}/orders", "headers": {"Authorization": "crm"}}
    allow(tenant, "http_request", asking="never", settings={"allow": [entry]})
    services = reaching(able, web, **{f"{tenant.tenant_slug}__crm": secret})
    box = toolbox(running(tenant), services)
    outcome = box.perform(call("http_request", url=f"{web.url}/orders"), "1")
    assert outcome.plain == 'HTTP 200 application/json\n{"you sent": "[secret]", "token": "[secret]"}'
    assert web.requests[0][2]["Authorization"] == secret
    assert "crm" not in str(box.offered())
    with operator_session() as session:
        kept = session.execute(
            text("select cast(array_agg(c) as text) from core.tool_calls c where tenant_id = :t"),
            {"t": tenant.tenant_id},
        ).scalar_one()
    assert "s3cr3t" not in kept


def test_a_secret_of_another_tenant_cannot_be_named(
    make_tenant: Callable[..., Principal], able: Services, web: Web
) -> None:
    """An entry names secrets of its own tenant only."""
    rich, poor = make_tenant(), make_tenant()
    entry = {"url": f"{web.url}/", "headers": {"Authorization": "crm"}}
    allow(poor, "http_request", asking="never", settings={"allow": [entry]})
    services = reaching(able, web, **{f"{rich.tenant_slug}__crm": "Bearer of the rich"})
    assert "credential" in toolbox(running(poor), services).perform(call("http_request", url=f"{web.url}/"), "1").plain
    assert web.requests == []


def test_a_request_of_unknown_outcome_is_not_repeated(tenant: Principal, able: Services, web: Web) -> None:
    """The service took it and broke off; the model is told that nobody knows, also the next time."""
    entry = {"url": f"{web.url}/pay", "methods": ["POST"]}
    allow(tenant, "http_request", asking="never", settings={"allow": [entry]})
    lease = running(tenant)
    services = reaching(able, web)
    web.breaks = True
    wanted = call("http_request", url=f"{web.url}/pay", method="POST")
    first = toolbox(lease, services).perform(wanted, "k")
    web.breaks = False
    again = toolbox(lease, services).perform(wanted, "k")
    assert first == again
    assert "nobody knows" in first.plain
    assert len(web.requests) == 1
    assert rows(tenant) == [("http_request", "finished", False, "outcome-unknown", 1)]


@pytest.mark.parametrize(
    ("method", "repeatable", "sent"),
    [("POST", False, 0), ("POST", True, 1), ("GET", False, 1), ("PUT", False, 1), ("PATCH", False, 0)],
)
def test_after_a_crash_only_what_may_be_repeated_is(
    tenant: Principal, able: Services, web: Web, method: str, repeatable: bool, sent: int
) -> None:
    """A reservation without an outcome: sent again, under the same idempotency key, only when that is harmless."""
    entry = {"url": f"{web.url}/pay", "methods": [method], "repeatable": repeatable}
    allow(tenant, "http_request", asking="never", settings={"allow": [entry]})
    lease = running(tenant)
    wanted = call("http_request", url=f"{web.url}/pay", method=method)
    with tenant_session(tenant.tenant_id) as session:  # as a worker leaves it that died while it was sending
        assert reserve(session, lease, "k", "http_request", {})
    box = toolbox(lease, reaching(able, web))
    outcome = box.perform(wanted, "k")
    assert (outcome.ok, len(web.requests)) == (bool(sent), sent)
    if not sent:
        assert "nobody knows" in outcome.plain
    box.perform(wanted, "another")
    assert len({headers["Idempotency-Key"] for _, _, headers, _ in web.requests}) == sent + 1


def test_redirects_are_answers_and_errors_are_told(tenant: Principal, able: Services, web: Web) -> None:
    """Nothing is followed; a refusal of the service is an outcome that is not ok."""
    allow(tenant, "http_request", asking="never", settings={"allow": [{"url": f"{web.url}/a"}]})
    box = toolbox(running(tenant), reaching(able, web))
    web.status, web.headers = 302, {"Location": f"{web.url}/steal"}
    assert "not followed" in box.perform(call("http_request", url=f"{web.url}/a"), "1").plain
    web.status, web.headers, web.answer = 404, {}, b'{"error": "none"}'
    outcome = box.perform(call("http_request", url=f"{web.url}/a"), "2")
    assert not outcome.ok
    assert outcome.plain.startswith("HTTP 404")
    web.status, web.media_type = 200, "image/png"
    assert "not text" in box.perform(call("http_request", url=f"{web.url}/a"), "3").plain
    assert {path for _, path, _, _ in web.requests} == {"/a"}


def test_a_silent_service_is_left_when_the_time_is_over(
    tenant: Principal, able: Services, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cap holds for requests."""
    monkeypatch.setattr(working.Deadline.__init__, "__defaults__", (0.5,))
    allow(tenant, "http_request", asking="never", settings={"allow": [{"url": f"{web.url}/a"}]})
    web.silent = threading.Event()
    outcome = toolbox(running(tenant), reaching(able, web)).perform(call("http_request", url=f"{web.url}/a"), "1")
    assert not outcome.ok
    # On a machine so busy that the time is over before the request, it is not sent at all.
    assert rows(tenant)[0][3] == ("outcome-unknown" if web.requests else "tool-too-slow")
