"""What the sweep does for one tenant after another: a refusal that meets one keeps no other waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, OperationalError

from shared.containment import contained
from shared.database import LostWrite, tenant_session
from shared.documents.turns import sweep_turns
from shared.fakes import FakeBus
from shared.tenants.directory import Principal
from tests.integration.test_turns_at_once import committed, waiting


@contextmanager
def refusing(owner: Connection, tenant: Principal) -> Iterator[None]:
    """The line of one tenant cannot be changed."""
    name = f"refuse_{tenant.tenant_id.hex}"
    owner.exec_driver_sql(
        f"create function core.{name}() returns trigger language plpgsql as "
        f"$$ begin if old.tenant_id = '{tenant.tenant_id}' then raise exception 'refused'; end if; return old; end $$"
    )
    owner.exec_driver_sql(
        f"create trigger {name} before delete on core.waiting_messages for each row execute function core.{name}()"
    )
    try:
        yield
    finally:
        owner.exec_driver_sql(f"drop function core.{name}() cascade")


def make_room(tenant: Principal) -> None:
    """What is in progress has ended, and nobody passed the turn on."""
    with tenant_session(tenant.tenant_id) as session:
        session.execute(
            text(
                "update rag.versions v set state = 'searchable' from rag.documents d where d.tenant_id = v.tenant_id "
                "and d.document_id = v.document_id and d.external_id = 'first'"
            )
        )


def test_turns_that_are_refused_for_one_tenant_are_passed_on_for_the_others(
    make_tenant: Callable[..., Principal], owner: Connection, bus: FakeBus, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever comes before and after it gets theirs in the same sweep; the log names the tenant; later it gets its."""
    tenants = [make_tenant() for _ in range(3)]
    for one in tenants:
        assert [committed(one, name) for name in ("first", "second")] == [True, False]
        make_room(one)
    bad = sorted(tenants, key=lambda one: one.tenant_id)[1]
    with refusing(owner, bad):
        sweep_turns(1)
    assert [waiting(one) == ["second"] for one in tenants] == [one is bad for one in tenants]
    (told,) = [record for record in caplog.records if record.message == "turns not passed on"]
    assert told.__dict__["tenant"] == str(bad.tenant_id)
    sweep_turns(1)
    assert waiting(bad) == []


def test_what_is_everybodys_is_not_contained(caplog: pytest.LogCaptureFixture) -> None:
    """Without a database the whole turn fails, and comes again; what is one tenant's is counted."""
    counts: dict[str, int] = {}
    for mine in (LostWrite("no row"), DBAPIError("update", None, Exception("refused"))):
        with contained(uuid4(), "not done", counts):
            raise mine
    assert counts == {"failed": 2}
    away = DBAPIError("select", None, Exception("gone"), connection_invalidated=True)
    for everybodys in (OperationalError("select", None, Exception("away")), away, ValueError("a fault of ours")):
        with pytest.raises(type(everybodys)), contained(uuid4(), "not done", counts):
            raise everybodys
    assert counts == {"failed": 2}
    assert len(caplog.records) == 2
