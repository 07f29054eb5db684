"""Runs, leases, cases, stored calls and a small web service for tests of tools."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

from pydantic import SecretStr
from sqlalchemy import text

from functions.agent.journal import Journal
from functions.agent.tools import Toolbox
from functions.agent.work import begin
from shared.completions import ToolCall
from shared.conversations.runs import Lease, ask, take_lease
from shared.database import operator_session, tenant_session
from shared.services import Services
from shared.tenants.directory import Principal, add_member, memberships
from shared.tools.cases import put_case
from shared.tools.registry import configure
from tests.loopback import served


def running(principal: Principal, question: str = "Wie steht es um den Fall?") -> Lease:
    """A run of this member, taken."""
    with tenant_session(principal.tenant_id) as session:
        run_id = ask(session, principal, question)
    with tenant_session(principal.tenant_id) as session:
        return take_lease(session, principal.tenant_id, run_id)


def member(tenant: Principal, role: str = "member") -> Principal:
    """Another member of the tenant."""
    email = f"{role}-{uuid4().hex[:8]}@{tenant.tenant_slug}.example"
    with tenant_session(tenant.tenant_id) as session:
        add_member(session, tenant.tenant_id, email, name=role, role=role)
    return memberships(email)[0]


def toolbox(lease: Lease, services: Services) -> Toolbox:
    """The tools of a run as the agent has them."""
    return begin(lease, services, Journal(lease)).toolbox


def call(name: str, **arguments: Any) -> ToolCall:
    """A call as a model makes it."""
    return ToolCall(uuid4().hex[:8], name, arguments)


def allow(tenant: Principal, name: str, **changes: Any) -> None:
    """Switch a tool on for a tenant, the way `noesis tools` does."""
    with operator_session() as session:
        configure(session, tenant.tenant_id, name, "test", **({"enabled": True} | changes))


@dataclass
class Web:
    """What a service was asked, and what it answers; `sleeping` makes it silent until the event is set."""

    url: str = ""
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    answer: bytes = b'{"fine": true}'
    status: int = 200
    media_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    silent: threading.Event | None = None
    breaks: bool = False

    @property
    def allowed(self) -> str:
        """TOOL_HOSTS_ALLOW for it."""
        return self.url.removeprefix("http://")


@contextmanager
def web_service() -> Iterator[Web]:
    """A service on loopback that writes down everything it is asked."""
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            web.requests.append((self.command, self.path, dict(self.headers.items()), body))
            if web.silent is not None:
                web.silent.wait(20)
            if web.breaks or web.silent is not None:
                self.close_connection = True
                return
            self.send_response(web.status)
            self.send_header("Content-Type", web.media_type)
            self.send_header("Content-Length", str(len(web.answer)))
            for name, value in web.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(web.answer)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _any

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as web.url:
        try:
            yield web
        finally:
            if web.silent is not None:
                web.silent.set()


def reaching(services: Services, web: Web, **secrets: str) -> Services:
    """Services whose HTTP tool may reach the service, with secrets."""
    update = {
        "tool_hosts_allow": web.allowed,
        "tool_secrets": {name.replace("__", "/"): SecretStr(value) for name, value in secrets.items()},
    }
    return replace(services, settings=services.settings.model_copy(update=update))


def rows(tenant: Principal) -> list[Any]:
    """The tenant's stored calls."""
    with operator_session() as session:
        found = session.execute(
            text(
                "select name, state, ok, reason, attempts from core.tool_calls where tenant_id = :t order by created_at"
            ),
            {"t": tenant.tenant_id},
        )
        return [tuple(row) for row in found]


def case(tenant: Principal, number: str = "4711", **options: Any) -> None:
    """A case of the tenant, about a complaint."""
    with tenant_session(tenant.tenant_id) as session:
        put_case(session, tenant.tenant_id, number, "Reklamation", "test", **options)
