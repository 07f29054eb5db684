"""`noesis indexes`: what an operator sees of the approximate indexes, and what the commands change."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from cli.main import noesis
from shared.database import operator_session
from shared.retrieval import indexes, probing
from shared.services import Services
from shared.settings import get_settings
from shared.tenants.directory import Principal
from tests.conftest import Database
from tests.integration.test_search_indexes import corpus_of, fill, look

CHUNKS = 60


@pytest.fixture(autouse=True)
def use_fakes(fake_services: Services, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The services are the twins of this test; whatever index it leaves is dropped."""
    monkeypatch.setattr("cli.jobs.services", lambda: fake_services)
    monkeypatch.setattr("getpass.getuser", lambda: "olga")
    monkeypatch.setenv("COLUMNS", "200")
    yield
    with indexes.owner_connection(database.owner_url) as owner:
        indexes.remove_orphans(owner, [])


def command(*arguments: str) -> Result:
    """Run `noesis indexes`."""
    return CliRunner().invoke(noesis, ["indexes", *arguments])


def line(tenant: Principal) -> str:
    """What `list` says of a tenant."""
    shown = command("list")
    assert shown.exit_code == 0, shown.output
    return next(" ".join(line.split()) for line in shown.output.splitlines() if tenant.tenant_slug in line)


def test_list_shows_index_size_probe_and_what_care_would_do(tenant: Principal) -> None:
    """Before and after an index and a probe."""
    fill(tenant, CHUNKS)
    assert line(tenant) == f"{tenant.tenant_slug} fake-64 {CHUNKS} none not probed yet search exactly"
    assert command("build", "-t", tenant.tenant_slug).exit_code == 0
    with operator_session() as session:
        probing.probe(session, corpus_of(tenant.tenant_id), queries=5)
    shown = line(tenant)
    assert f"{CHUNKS} hnsw 0." in shown
    assert "1.000, 1.00 (" in shown
    assert shown.endswith("drop")


@pytest.mark.parametrize("method", ["hnsw", "ivfflat"])
def test_build_and_drop_change_how_search_goes(tenant: Principal, method: str) -> None:
    """By the method that was asked for, recorded with who did it, and replaced by a second build."""
    space = fill(tenant, CHUNKS)
    for wanted in ("hnsw", method):
        assert command("build", "-t", tenant.tenant_slug, "--method", wanted).exit_code == 0
    assert look(tenant, space).diagnostics.index is not None
    assert f" {method} " in line(tenant)
    dropped = command("drop", "-t", tenant.tenant_slug, "--space", "fake-64")
    assert "searched exactly" in dropped.output
    assert look(tenant, space).diagnostics.index is None
    with operator_session() as session:
        acts = session.execute(
            text("select actor, action from core.audit where tenant_id = :t and action like 'index-%' order by at"),
            {"t": tenant.tenant_id},
        ).all()
    assert [tuple(act) for act in acts] == [
        ("operator:olga", action) for action in ("index-built", "index-built", "index-dropped")
    ]


def test_care_runs_the_job(tenant: Principal) -> None:
    """A small tenant's index goes, and the job's counts are printed."""
    fill(tenant, CHUNKS)
    command("build", "-t", tenant.tenant_slug)
    cared = command("care")
    assert cared.exit_code == 0, cared.output
    assert '"dropped": 1' in cared.output
    assert line(tenant).endswith("none not probed yet search exactly")


def test_a_tenant_without_vectors_has_no_index_to_build(tenant: Principal) -> None:
    """It is said, instead of an empty index being built; and so is an unknown space."""
    for action in ("build", "drop"):
        assert getattr(command(action, "-t", tenant.tenant_slug).exception, "reason", "") == "no-vectors"
        unknown = command(action, "-t", tenant.tenant_slug, "--space", "none")
        assert getattr(unknown.exception, "reason", "") == "no-vector-space"


def test_without_the_owners_address_nothing_changes(tenant: Principal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting that is missing is named."""
    fill(tenant, CHUNKS)
    without = get_settings().model_copy(update={"migration_database_url": None})
    monkeypatch.setattr("cli.indexes.get_settings", lambda: without)
    for arguments in (("care",), ("build", "-t", tenant.tenant_slug), ("drop", "-t", tenant.tenant_slug)):
        assert "MIGRATION_DATABASE_URL" in str(command(*arguments).exception)
