"""Who gets in, and what stands before every view."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from shared.database import operator_session, tenant_session
from shared.fakes import FakeBus, FakeClock, FakeStorage
from shared.services import Clock, Services
from shared.settings import Settings, load_settings
from shared.tenants.directory import Principal, add_member
from tests.integration.web_browser import token_of
from web import authentication, create_app

KEY = "a-key-for-this-test-only-0123456789abcdef"


@pytest.fixture(autouse=True)
def _fresh_memberships() -> None:
    authentication.forget_memberships()


def make_app(clock: Clock | None = None, **overrides: Any) -> Flask:
    """The application on the test's database."""
    settings = load_settings(**({"secret_key": KEY, "local_sign_in": True} | overrides))
    services = Services(settings, clock=clock or FakeClock(), _storage=FakeStorage())
    return create_app(services=services)


def enter(client: FlaskClient, email: str, **more: str) -> int:
    """Send the sign-in form; returns the status."""
    token = token_of(client.get("/").text)
    return client.post("/sign-in", data={"email": email, "csrf_token": token} | more).status_code


def signed_in(app: Flask, member: Principal) -> FlaskClient:
    """A client with the member's session, whose posts carry the token."""
    client = app.test_client()
    assert enter(client, member.email) == 302
    client.environ_base["HTTP_X_CSRF_TOKEN"] = token_of(client.get("/").text)
    return client


def test_the_start_page_answers_everyone(tenant: Principal) -> None:
    """200 for visitors with the sign-in form, 200 for members with the page."""
    app = make_app()
    visitor = app.test_client().get("/")
    assert (visitor.status_code, 'id="email"' in visitor.text) == (200, True)
    page = signed_in(app, tenant).get("/")
    assert (page.status_code, tenant.tenant_name in page.text, 'id="ask"' in page.text) == (200, True, True)


def test_pages_lead_to_the_sign_in_and_programs_get_a_problem(tenant: Principal) -> None:
    """Without a session: 302 for people, RFC 9457 and 401 for scripts and event streams."""
    client = make_app().test_client()
    page = client.get("/runs", headers={"Accept": "text/html,*/*"})
    assert (page.status_code, page.location) == (302, "/sign-in")
    for path in ("/runs", "/documents", f"/runs/{tenant.tenant_id}/events", f"/chunks/{tenant.tenant_id}"):
        answer = client.get(path, headers={"Accept": "text/event-stream"})
        assert (answer.status_code, answer.mimetype) == (401, "application/problem+json")
        assert answer.get_json()["reason"] == "signed-out"


def test_every_view_needs_a_member_unless_it_is_named_as_open(database: object) -> None:
    """Walks the routes: a view that a later issue adds is closed by default."""
    app = make_app()
    closed = 0
    for rule in app.url_map.iter_rules():
        if rule.endpoint in {"static", "questions.home", "health.liveliness", "health.readiness", "sign_in.form"}:
            continue
        path = re.sub(r"<[^>]+>", "00000000-0000-4000-8000-000000000000", rule.rule)
        for method in rule.methods & {"GET", "POST"} if rule.methods else ():
            # A post without a session fails at the token as well: either way nothing happens.
            assert app.test_client().open(path, method=method).status_code in (401, 403), rule
            closed += 1
    assert closed >= 8


@pytest.mark.parametrize(
    ("settings", "environ", "headers"),
    [
        ({"local_sign_in": False}, {}, {}),
        ({"noesis_stage": "staging"}, {}, {}),
        ({}, {"REMOTE_ADDR": "10.1.2.3"}, {}),
        ({}, {"REMOTE_ADDR": ""}, {}),
        ({"allowed_hosts": "127.0.0.1,localhost,evil.example"}, {}, {"Host": "evil.example"}),
        ({"allowed_hosts": "127.0.0.1,localhost,.example"}, {}, {"Host": "localhost.evil.example"}),
        ({}, {}, {"X-Forwarded-For": "127.0.0.1"}),
        ({}, {}, {"Forwarded": "for=127.0.0.1"}),
    ],
)
def test_local_sign_in_is_refused_from_elsewhere(
    tenant: Principal, settings: dict[str, Any], environ: dict[str, str], headers: dict[str, str]
) -> None:
    """Off, outside development, not from loopback, under a foreign name (DNS rebinding), through a proxy."""
    app = make_app(**settings)
    client = app.test_client()
    scheme = "https" if settings.get("noesis_stage") else "http"
    options: dict[str, Any] = {"environ_overrides": environ, "headers": headers, "base_url": f"{scheme}://localhost"}
    page = client.get("/", **options)
    assert 'id="email"' not in page.text
    form = {"email": tenant.email, "csrf_token": token_of(page.text)}
    answer = client.post("/sign-in", data=form, **options)
    assert answer.status_code == 403
    assert answer.get_json()["reason"] == "sign-in-not-allowed"


def test_a_stolen_cookie_is_worth_nothing_elsewhere(tenant: Principal) -> None:
    """A session of the local sign-in counts only where that sign-in would be allowed."""
    client = signed_in(make_app(), tenant)
    assert client.get("/documents").status_code == 200
    assert client.get("/documents", environ_overrides={"REMOTE_ADDR": "192.0.2.7"}).status_code == 401


def test_a_session_ends_after_twelve_hours(tenant: Principal) -> None:
    """Counted from the sign-in, however busy the member is."""
    clock = FakeClock()
    client = signed_in(make_app(clock), tenant)
    clock.advance(timedelta(hours=11, minutes=59))
    assert client.get("/documents").status_code == 200
    clock.advance(timedelta(minutes=2))
    assert client.get("/documents").status_code == 401


def test_a_removed_member_is_out(tenant: Principal) -> None:
    """The membership is read again a minute after it was read last."""
    clock = FakeClock()
    client = signed_in(make_app(clock), tenant)
    with operator_session() as session:
        session.execute(text("delete from core.members where member_id = :m"), {"m": tenant.member_id})
    assert client.get("/documents").status_code == 200  # still remembered
    clock.advance(timedelta(seconds=60))
    assert client.get("/documents").status_code == 401


def test_a_member_of_several_tenants_chooses_one(make_tenant: Callable[..., Principal]) -> None:
    """One address, two tenants: the form asks; a tenant that is not theirs cannot be chosen."""
    one, two, other = make_tenant(), make_tenant(), make_tenant()
    with tenant_session(two.tenant_id) as session:
        add_member(session, two.tenant_id, one.email, name="Guest")
    client = make_app().test_client()
    assert enter(client, one.email) == 200
    assert enter(client, one.email, tenant=str(other.tenant_id)) == 200
    assert client.get("/documents").status_code == 401
    assert enter(client, one.email.upper(), tenant=str(two.tenant_id)) == 302
    assert two.tenant_name in client.get("/").text


def test_signing_out_ends_the_session(tenant: Principal) -> None:
    """Afterwards the start page is the sign-in again."""
    client = signed_in(make_app(), tenant)
    assert client.post("/sign-out").status_code == 302
    assert 'id="email"' in client.get("/").text
    assert client.get("/documents").status_code == 401


def test_an_unknown_address_stays_outside(tenant: Principal) -> None:
    """Hostile addresses too: NUL and lone surrogates do not reach the database's driver."""
    client = make_app().test_client()
    for email in ("nobody@example.org", "", "a\x00@b", "\udcff@b"):
        assert enter(client, email.encode("utf-8", "surrogatepass")) == 403  # type: ignore[arg-type]


def test_a_post_without_the_token_is_refused(tenant: Principal, bus: FakeBus) -> None:
    """Missing, wrong, or somebody else's token; nothing is stored."""
    app = make_app()
    client, stranger = signed_in(app, tenant), app.test_client()
    foreign = token_of(stranger.get("/").text)
    for token in ("", "wrong", foreign, "\xff"):
        client.environ_base["HTTP_X_CSRF_TOKEN"] = token
        answer = client.post("/questions", json={"question": "Why?"})
        assert (answer.status_code, answer.get_json()["reason"]) == (403, "stale-page")
    assert client.get("/runs").get_json()["runs"] == []
    assert bus.published == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9"},
    ],
)
def test_a_post_from_another_site_is_refused(tenant: Principal, bus: FakeBus, headers: dict[str, str]) -> None:
    """Even with the right token."""
    client = signed_in(make_app(), tenant)
    assert client.post("/questions", json={"question": "Why?"}, headers=headers).status_code == 403
    own = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/questions", json={"question": "Why?"}, headers=own).status_code == 201


def test_only_allowed_hosts_are_answered(database: object) -> None:
    """400 for other names, without repeating them; probes know no name."""
    client = make_app().test_client()
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost@evil", ""):
        assert client.get("/", headers={"Host": host}).status_code == 400
        assert client.get("/health/liveliness", headers={"Host": "10.0.0.1"}).status_code == 200
    for host in ("127.0.0.1:8000", "localhost:8000", "[::1]:8000"):
        assert client.get("/", headers={"Host": host}).status_code == 200


def test_every_answer_carries_the_headers(tenant: Principal) -> None:
    """Pages, JSON, problems and files: no framing, no sniffing, no script but our own."""
    client = signed_in(make_app(), tenant)
    for path in ("/", "/runs", "/nothing", "/static/page.js", "/health/liveliness"):
        with client.get(path) as answer:
            headers = answer.headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
    assert client.get("/").headers["Cache-Control"] == "no-store"


def test_the_cookie_is_out_of_reach(tenant: Principal) -> None:
    """HttpOnly and SameSite everywhere, Secure and bound to the host outside development."""
    cookie = make_app().test_client().get("/").headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    cloud = make_app(noesis_stage="prod").test_client().get("/", base_url="https://localhost").headers
    assert cloud["Set-Cookie"].startswith("__Host-")
    assert "Secure" in cloud["Set-Cookie"]
    assert "Strict-Transport-Security" in cloud


def test_an_unexpected_failure_tells_no_detail(tenant: Principal, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 as a page or a problem; what went wrong is in the log only."""
    client = signed_in(make_app(), tenant)

    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("web.questions.recent_runs", broken)
    for accept in ("application/json", "text/html"):
        answer = client.get("/runs", headers={"Accept": accept})
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert "RuntimeError" not in answer.text


def test_a_request_may_not_be_as_large_as_a_document(tenant: Principal, bus: FakeBus) -> None:
    """Questions and forms end at 64 KiB, before they are read."""
    client = signed_in(make_app(), tenant)
    answer = client.post("/questions", json={"question": "x" * 70_000})
    assert (answer.status_code, answer.get_json()["reason"]) == (413, "request-too-large")
    assert client.post("/sign-in", data={"email": "x" * 70_000}).status_code == 413


def test_without_a_secret_key_the_application_does_not_start(settings: Settings) -> None:
    """The sentence says what to set."""
    with pytest.raises(Exception, match="SECRET_KEY is not set"):
        create_app(load_settings(secret_key=None))


def test_both_languages_are_spoken(tenant: Principal) -> None:
    """By the browser's preference, by the switch, and English for everyone else."""
    app = make_app()
    for accepted, language in (("de-AT,de;q=0.9,en;q=0.5", "de"), ("en-GB", "en"), ("fr", "en"), ("", "en")):
        page = app.test_client().get("/", headers={"Accept-Language": accepted})
        assert f'<html lang="{language}">' in page.text
    client = signed_in(app, tenant)
    assert client.post("/language", data={"language": "de"}).status_code == 302
    assert "Was möchten Sie wissen?" in client.get("/").text
    client.post("/language", data={"language": "tlh"})
    assert "Was möchten Sie wissen?" in client.get("/").text
