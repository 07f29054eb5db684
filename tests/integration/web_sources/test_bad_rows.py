"""A web source that cannot be read keeps nobody else's waiting."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import text

from shared.database import tenant_session
from shared.errors import PermanentError
from shared.fakes import FakeBus
from shared.fetching.addresses import check_url
from shared.services import Services
from shared.tenants.directory import Principal
from shared.web_sources.sources import add_source
from tests.integration.web_sources.visits import add, deliver, documents, run
from tests.integration.web_sources.web_site import Site


def test_a_collection_that_no_message_takes_is_refused(reader: Principal, world: Services, site: Site) -> None:
    """When the source is added: its pages could never be ordered."""
    target = check_url(site.page("/a", "apples"), world.web.allowed)
    with tenant_session(reader.tenant_id) as session, pytest.raises(PermanentError, match="name of the collection"):
        add_source(session, reader.tenant_id, target, "page", collection="My Pages", refresh_every=timedelta(days=1))


def test_a_row_that_makes_no_message_keeps_no_other_page_waiting(
    reader: Principal, world: Services, bus: FakeBus, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """A name that was stored before it was checked stopped the reading of the web for all tenants, minute by minute."""
    good, bad = site.page("/good", "apples"), site.page("/bad", "pears")
    add(reader, world, good)
    add(reader, world, bad)
    with tenant_session(reader.tenant_id) as session:
        session.execute(
            text("update core.web_sources set collection = 'My Pages' where tenant_id = :tenant and url = :url"),
            {"tenant": reader.tenant_id, "url": bad},
        )
    run(world)
    deliver(world, bus, reader)
    assert list(documents(reader)) == [good]
    assert "its row is not valid: collection" in caplog.text
