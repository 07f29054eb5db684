"""What every test of web sources begins with: a site, services that may visit it, a tenant that pages may speak for."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import ThreadingHTTPServer

import pytest
from sqlalchemy import text

from shared.database import operator_session
from shared.fakes import FakeBus, FakeModels, FakeStorage
from shared.fetching.addresses import allowance
from shared.fetching.client import Fetcher
from shared.services import Services
from shared.settings import Settings
from shared.tenants.directory import Principal, bind_source
from shared.web_sources.pages import SOURCE
from tests.integration.web_sources.web_site import Site, handler
from tests.loopback import served


@pytest.fixture
def site() -> Iterator[Site]:
    """A site of its own for every test."""
    made = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(made))
    made.port = server.server_port
    with served(server):
        try:
            yield made
        finally:
            made.slow.set()


@pytest.fixture
def world(settings: Settings, bus: FakeBus, site: Site) -> Services:
    """Services with the guard's allow-list open for the site, and no delay between two requests."""
    with operator_session() as operator:
        # What a site said holds for all tenants, and an earlier test's site may have had the same port.
        operator.execute(text("delete from core.web_hosts where origin = :site"), {"site": site.url})
    return Services(
        settings.model_copy(update={"web_sources_delay": 0.0}),
        _storage=FakeStorage(),
        _models=FakeModels(),
        _web=Fetcher(allowance(f"127.0.0.1/32:{site.port}")),
    )


@pytest.fixture
def reader(tenant: Principal) -> Principal:
    """A tenant that web pages may speak for."""
    with operator_session() as operator:
        bind_source(operator, tenant.tenant_id, SOURCE)
    return tenant
