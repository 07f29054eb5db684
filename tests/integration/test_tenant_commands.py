"""`noesis tenants …`: who belongs to a tenant, and which sources may speak for it."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from cli.main import noesis
from shared.database import tenant_session
from shared.errors import PermanentError
from shared.tenants.directory import Principal, require_source
from tests.integration.lifecycle_material import acts, count


def command(tenant: Principal, *arguments: str) -> Result:
    """Run `noesis tenants` for the tenant."""
    return CliRunner().invoke(noesis, ["tenants", *arguments, "--tenant", tenant.tenant_slug])


def test_a_source_is_bound_and_unbound(tenant: Principal) -> None:
    """From the next message on; both are on record, and what was not bound says so."""
    assert command(tenant, "bind", "dms").exit_code == 0
    with tenant_session(tenant.tenant_id) as session:
        require_source(session, tenant.tenant_id, "dms")
    assert command(tenant, "unbind", "dms").exit_code == 0
    with tenant_session(tenant.tenant_id) as session, pytest.raises(PermanentError, match="may not speak"):
        require_source(session, tenant.tenant_id, "dms")
    again = command(tenant, "unbind", "dms")
    assert (again.exit_code, "was not bound" in again.output) == (1, True)
    assert [what for _, what in acts(tenant)] == ["source-bound", "source-unbound"]


def test_a_member_leaves_a_group(tenant: Principal) -> None:
    """By address, in any case of letters; somebody who is not in it says so."""
    assert command(tenant, "add-member", "Ann@example.org", "--group", "hr", "--group", "board").exit_code == 0
    assert command(tenant, "leave-group", "ANN@example.org", "hr").exit_code == 0
    assert count(tenant, "core.group_members") == 1
    again = command(tenant, "leave-group", "ann@example.org", "hr")
    assert (again.exit_code, "is not in the group" in again.output) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("add-member", "ann.example.org"), "no e-mail address"),
        (("add-member", "ann@example.org bob@example.org"), "no e-mail address"),
        (("bind", "My Source!"), "a source is"),
        (("bind", "../web"), "a source is"),
    ],
)
def test_a_slip_of_the_finger_is_told(tenant: Principal, arguments: tuple[str, ...], told: str) -> None:
    """A member nobody can sign in as, or a source nobody can publish as, would only look like one."""
    result = command(tenant, *arguments)
    assert (result.exit_code, told in result.output) == (2, True)
    assert count(tenant, "core.members") == 1
