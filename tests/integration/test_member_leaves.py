"""A member who leaves a tenant: what they can still do (nothing), and what stays."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from cli.main import noesis
from functions.agent.answering import answer_question
from shared.database import tenant_session
from shared.errors import PermanentError, Superseded
from shared.services import Services
from shared.tenants.directory import Principal, memberships
from tests.integration.agent_material import GOOD, models_of
from tests.integration.lifecycle_material import acts, count
from tests.integration.test_answering import HOLIDAY, index, put


def remove(tenant: Principal, email: str, *more: str, answer: str = "") -> Result:
    """`noesis tenants remove-member`."""
    words = ["tenants", "remove-member", email, "-t", tenant.tenant_slug, *more]
    return CliRunner().invoke(noesis, words, input=answer)


def joined(tenant: Principal) -> Principal:
    """Another member of the tenant."""
    email = f"ann@{tenant.tenant_slug}.example"
    words = ["tenants", "add-member", email, "--group", "hr", "-t", tenant.tenant_slug]
    assert CliRunner().invoke(noesis, words).exit_code == 0
    return memberships(email)[0]


def test_who_has_left_has_no_way_in_and_leaves_no_words(tenant: Principal, fake_services: Services) -> None:
    """Membership, groups, conversations and answers are gone; documents, costs and the record of it stay."""
    ann = joined(tenant)
    index(tenant, "urlaub", HOLIDAY)
    models_of(fake_services).replies = [GOOD]
    answer_question(put(ann), fake_services)
    booked = count(tenant, "core.ledger")
    assert (count(tenant, "core.conversations"), booked > 0) == (1, True)
    assert remove(tenant, ann.email.upper(), "--yes").exit_code == 0
    assert memberships(ann.email) == []
    for table in ("core.group_members", "core.conversations", "core.runs", "core.citations", "core.run_events"):
        assert count(tenant, table) == 0, table
    assert (count(tenant, "rag.documents"), count(tenant, "core.ledger")) == (1, booked)
    assert [what for _, what in acts(tenant)] == ["member-removed"]


def test_a_question_of_who_has_left_is_answered_for_nobody(tenant: Principal, fake_services: Services) -> None:
    """The command that is still on its way finds nothing to do, and no model is asked."""
    ann = joined(tenant)
    index(tenant, "urlaub", HOLIDAY)
    command = put(ann)
    assert remove(tenant, ann.email, "--yes").exit_code == 0
    with pytest.raises((Superseded, PermanentError)):
        answer_question(command, fake_services)
    assert count(tenant, "core.runs") == 0
    assert count(tenant, "core.ledger") == 0


def test_removing_is_asked_about_and_never_leaves_a_tenant_without_administrator(tenant: Principal) -> None:
    """A no changes nothing; the last administrator stays; a stranger is told."""
    ann = joined(tenant)
    assert remove(tenant, ann.email, answer="n\n").exit_code == 1
    refused = remove(tenant, tenant.email, "--yes")
    assert (refused.exit_code, "only administrator" in str(refused.exception)) == (1, True)
    assert remove(tenant, "nobody@example.org", "--yes").exit_code == 1
    with tenant_session(tenant.tenant_id):
        assert count(tenant, "core.members") == 2
