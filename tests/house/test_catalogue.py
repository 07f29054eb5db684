"""The database is what the code believes: every tenant table guarded, MetaData equal to the migrated catalogue."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

from shared.database import metadata

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Database

TABLES = (
    "shared.messaging",
    "shared.tenants.tables",
    "shared.documents.tables",
    "shared.documents.blob_tables",
    "shared.retrieval.tables",
    "shared.retrieval.campaign_tables",
    "shared.conversations.tables",
    "shared.jobs.tables",
    "shared.web_sources.tables",
    "shared.money.tables",
    "shared.tools.tables",
    "shared.privacy.tables",
    "shared.dead_letters.tables",
    "shared.audit",
)

PLATFORM = {
    "core.audit",
    "core.dead_letters",
    "core.erasures",
    "core.job_runs",
    "core.prices",
    "core.provider_gates",
    "core.stage_spending",
    "core.web_hosts",
    "core.web_turns",
    "rag.vector_spaces",
}
"""Tables that belong to the platform; everything else belongs to a tenant."""


@pytest.fixture(scope="module")
def owner(database: Database) -> Iterator[Connection]:
    """A connection as the owner of the schema."""
    engine = create_engine(database.owner_url, poolclass=NullPool)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def _tables(owner: Connection) -> set[str]:
    rows = owner.execute(
        text("select schemaname || '.' || tablename from pg_tables where schemaname in ('core', 'rag')")
    )
    return {row[0] for row in rows}


def test_the_metadata_is_the_migrated_catalogue(owner: Connection) -> None:
    """No table, column, default, index or key differs between code and migrations."""
    for module in TABLES:
        importlib.import_module(module)

    def ours(name: str | None, kind: str, _parents: object) -> bool:
        return name in ("core", "rag") if kind == "schema" else name != "alembic_version"

    context = MigrationContext.configure(
        owner, opts={"include_schemas": True, "compare_server_default": True, "include_name": ours}
    )
    assert compare_metadata(context, metadata) == []


def test_every_table_is_declared_in_the_code(owner: Connection) -> None:
    """Nothing lives in the database that the code does not know."""
    for module in TABLES:
        importlib.import_module(module)
    assert _tables(owner) == set(metadata.tables)


def test_every_table_has_forced_row_level_security(owner: Connection) -> None:
    """Also platform tables: who has no policy sees nothing."""
    rows = owner.execute(
        text(
            "select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace "
            "where n.nspname in ('core', 'rag') and c.relkind in ('r', 'p') "
            "and not (c.relrowsecurity and c.relforcerowsecurity)"
        )
    )
    assert [row[0] for row in rows] == []


def test_every_tenant_table_keeps_tenants_apart(owner: Connection) -> None:
    """tenant_id NOT NULL, first in every unique key, a policy per role, and the tenant's policy reads the setting."""
    problems = []
    for table in sorted(_tables(owner) - PLATFORM):
        nullable = owner.execute(
            text("select attnotnull from pg_attribute where attrelid = cast(:t as regclass) and attname = 'tenant_id'"),
            {"t": table},
        ).scalar()
        if nullable is not True:
            problems.append(f"{table}: tenant_id may be null or is missing")
        keys = owner.execute(
            text(
                "select cast(cast(i.indexrelid as regclass) as text) as name, (select attname from pg_attribute "
                "where attrelid = i.indrelid and attnum = i.indkey[0]) as first "
                "from pg_index i where i.indrelid = cast(:t as regclass) and i.indisunique"
            ),
            {"t": table},
        )
        # The slug is how operators name a tenant; it is unique across the platform on purpose.
        problems += [
            f"{table}: {key.name} does not begin with tenant_id"
            for key in keys
            if key.first != "tenant_id" and key.name != "core.tenants_slug_key"
        ]
        policies = owner.execute(
            text("select roles, qual, with_check from pg_policies where schemaname || '.' || tablename = :t"),
            {"t": table},
        ).all()
        by_role = {role: policy for policy in policies for role in policy.roles}
        if set(by_role) != {"noesis_app", "noesis_owner", "noesis_operator"}:
            problems.append(f"{table}: policies for {sorted(by_role)}")
            continue
        application = by_role["noesis_app"]
        if not all("app.tenant_id" in (rule or "") for rule in (application.qual, application.with_check)):
            problems.append(f"{table}: the application's policy does not read app.tenant_id")
        if any((by_role["noesis_owner"].qual, by_role["noesis_operator"].qual)[i] != "true" for i in (0, 1)):
            problems.append(f"{table}: owner or operator do not see all rows")
    assert problems == []


def test_every_reference_between_tenant_tables_carries_the_tenant(owner: Connection) -> None:
    """A foreign key from one tenant table to another includes tenant_id on both sides."""
    rows = owner.execute(
        text(
            "select c.conname, cast(c.conrelid as regclass) as child, cast(c.confrelid as regclass) as parent, "
            "array(select attname from pg_attribute where attrelid = c.conrelid and attnum = any(c.conkey)) as columns "
            "from pg_constraint c join pg_namespace n on n.oid = c.connamespace "
            "where c.contype = 'f' and n.nspname in ('core', 'rag')"
        )
    ).all()
    assert rows
    loose = [
        row.conname
        for row in rows
        if str(row.parent) not in PLATFORM and "tenant_id" not in [str(column) for column in row.columns]
    ]
    assert loose == []


def test_definer_functions_are_pinned_and_not_public(owner: Connection) -> None:
    """A SECURITY DEFINER function has a fixed search_path and cannot be called by everyone."""
    rows = owner.execute(
        text(
            "select p.proname, p.proconfig, has_function_privilege('public', p.oid, 'execute') as public "
            "from pg_proc p join pg_namespace n on n.oid = p.pronamespace "
            "where n.nspname in ('core', 'rag') and p.prosecdef"
        )
    ).all()
    assert rows
    assert [r.proname for r in rows if r.public or not any("search_path=" in c for c in r.proconfig or [])] == []
