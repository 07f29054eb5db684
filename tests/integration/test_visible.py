"""Who may see a document: in every search and in both channels, by address or by group, and by nothing else."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from shared.database import array_literal, tenant_session
from shared.events import Access
from shared.fakes import FakeBus
from shared.services import Services
from shared.tenants.directory import Principal, add_member, memberships
from tests.integration.lifecycle_material import embed_all, found, submission, take

ME, OTHER = "me@example.com", "other@example.com"
LISTS = {
    "open": Access(),
    "by address": Access(members=(OTHER,)),
    "by group": Access(groups=("board",)),
    "by both": Access(members=(OTHER,), groups=("board",)),
}


@pytest.fixture
def filed(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """A document with each kind of list, all with the same word in them."""
    for name, access in LISTS.items():
        take(tenant, submission(tenant, 1, name).model_copy(update={"access": access}), f"merger {name}")
    embed_all(fake_services, bus)


@pytest.mark.parametrize(
    ("address", "groups", "seen"),
    [
        (ME, [], ["open"]),
        (ME, ["staff"], ["open"]),
        (OTHER, [], ["by address", "by both", "open"]),
        (ME, ["board"], ["by both", "by group", "open"]),
        (OTHER, ["staff", "board"], ["by address", "by both", "by group", "open"]),
    ],
)
def test_a_list_lets_in_whom_it_names(
    tenant: Principal, filed: None, address: str, groups: list[str], seen: list[str]
) -> None:
    """An empty half of a list opens nothing: only where both are empty everybody is meant."""
    with tenant_session(tenant.tenant_id) as session:
        rows = session.execute(
            text(
                "select d.external_id from rag.documents d where rag.visible(d, cast(:members as text[]), "
                "cast(:groups as text[]), '{}', '{}', null, null, null) order by 1"
            ),
            {"members": array_literal([address]), "groups": array_literal(groups)},
        ).scalars()
        assert list(rows) == seen


def test_a_search_finds_what_its_member_may_see(tenant: Principal, filed: None, fake_services: Services) -> None:
    """The administrator is in no list; a member by address finds one that is closed to everybody else."""
    assert found(fake_services, tenant, "merger") == ["merger open"]
    with tenant_session(tenant.tenant_id) as session:
        add_member(session, tenant.tenant_id, OTHER, name="Other")
    (other,) = (one for one in memberships(OTHER) if one.tenant_id == tenant.tenant_id)
    assert sorted(found(fake_services, other, "merger")) == ["merger by address", "merger by both", "merger open"]
