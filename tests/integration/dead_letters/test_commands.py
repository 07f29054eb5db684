"""Operators find, show, replay and discard letters by `noesis dead-letters`."""

from __future__ import annotations

import json
from collections.abc import Callable
from uuid import uuid4

from click.testing import CliRunner

from cli.dead_letters import dead_letters
from functions.maintenance.archiving import archive_exhausted
from shared.database import platform_session
from shared.dead_letters.archive import DeadLetter, archive
from shared.fakes import FakeBus
from shared.tenants.directory import Principal
from tests.integration.dead_letters.letter_material import exhausted, letters, submission


def noesis(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(dead_letters, list(arguments))
    return result.exit_code, result.output


def test_operators_find_letters_by_class_tenant_reason_and_time(
    tenant: Principal, make_tenant: Callable[..., Principal], bus: FakeBus
) -> None:
    """Every filter narrows the list; ids, reasons and tenants are readable, content is not there."""
    other = make_tenant()
    archive_exhausted(exhausted(submission(tenant), "ingest-upstream"))
    archive_exhausted(exhausted(submission(other), "ingest-web"))
    with platform_session() as session:
        archive(session, [DeadLetter("embed", "1", b"{", {}, "poison", "malformed-message", "x")])
    ids = {letter.origin: str(letter.letter_id) for letter in letters()}

    def found(*arguments: str) -> set[str]:
        status, output = noesis("list", "--json", *arguments)
        assert status == 0, output
        return {row["origin"] for row in json.loads(output)}

    assert found() == {"ingest-upstream", "ingest-web", "embed"}
    assert found("--class", "poison") == {"embed"}
    assert found("--tenant", other.tenant_slug) == {"ingest-web"}
    assert found("--reason", "malformed-message") == {"embed"}
    assert found("--since", "2099-01-01") == set()
    assert found("--since", "1h", "--class", "transient") == {"ingest-upstream", "ingest-web"}
    status, output = noesis("list")
    assert status == 0
    assert all(letter_id in output for letter_id in ids.values())
    assert tenant.tenant_slug in output
    assert noesis("show", str(uuid4()))[0] == 1
    status, output = noesis("show", ids["ingest-upstream"])
    assert status == 0
    shown = json.loads(output)
    assert (shown["reason"], shown["attempts"], shown["class"]) == ("attempts-exhausted", 5, "transient")
    assert "UHVtcGU=" not in output


def test_operators_replay_by_class_and_tenant_after_a_dry_run(
    tenant: Principal, make_tenant: Callable[..., Principal], bus: FakeBus
) -> None:
    """The dry run sends nothing; a filter replays what it names; what cannot be sent is named, with exit status 1."""
    other = make_tenant()
    for principal in (tenant, tenant, other):
        archive_exhausted(exhausted(submission(principal, uuid4().hex), "ingest-upstream"))
    with platform_session() as session:
        archive(session, [DeadLetter("embed", "1", b"{", {}, "poison", "malformed-message", "x")])
    bus.published.clear()
    assert noesis("replay")[0] == 2
    status, output = noesis("replay", "--all", "--dry-run")
    assert (status, "3 would be replayed, 1 not." in output, bus.published) == (1, True, [])
    status, output = noesis("replay", "--tenant", tenant.tenant_slug, "--limit", "1")
    assert (status, "1 replayed." in output) == (0, True)
    assert {row.tenant_id for row in bus.published} == {tenant.tenant_id}
    status, output = noesis("replay", "--class", "transient")
    assert (status, "2 replayed." in output) == (0, True)
    assert len({row.event_id for row in bus.published}) == 3
    assert noesis("discard", "--class", "poison", "--yes")[0] == 0
    assert noesis("list")[1] == "No open dead letters.\n"
