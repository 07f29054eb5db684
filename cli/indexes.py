"""`noesis indexes`: the approximate index of each large tenant: look at them, tend them, build or drop one by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import click
from rich.markup import escape
from rich.table import Column, Table
from sqlalchemy import Connection

from cli.context import actor, chosen_tenant, tenant_option
from cli.jobs import run as run_job
from cli.screen import screen
from shared.audit import record
from shared.database import operator_session, tenant_session
from shared.errors import PermanentError, SettingsError
from shared.retrieval.indexes import (
    BUILD_FROM,
    DROP_BELOW,
    Corpus,
    Method,
    Standing,
    build_once,
    corpora,
    drop,
    owner_connection,
    standings,
)
from shared.retrieval.spaces import active_space, space_by_name
from shared.settings import get_settings

space_option = click.option("--space", default="", help="In this vector space; default the active one.")


@click.group()
def indexes() -> None:
    """Approximate indexes: one for each large tenant and vector space; small ones are searched exactly."""


@indexes.command("list")
@click.option("--large", is_flag=True, help="Only tenants that have an index or need one.")
def list_(large: bool) -> None:
    """Every tenant's vectors by space: index, size, recall at the last probe, and what care would do."""
    table = Table(
        Column("tenant", overflow="fold"),
        Column("space", overflow="fold"),
        Column("vectors", justify="right"),
        "index",
        Column("MB", justify="right"),
        Column("recall@10: mean, worst", overflow="fold"),
        "care",
        box=None,
    )
    with operator_session() as session:
        found = standings(session)
    for standing in found:
        if standing.method or standing.advice == "build" or not large:
            size = f"{standing.size / 1e6:.1f}" if standing.method else ""
            about = (f"{standing.corpus.vectors:,}", _method(standing), size, _probed(standing), standing.advice)
            table.add_row(escape(standing.tenant), escape(standing.space), *about)
    screen().print(table)


@indexes.command()
@click.pass_context
def care(context: click.Context) -> None:
    """Do what the daily job does, now: refresh statistics, build and drop indexes; prints its counts as JSON."""
    _owner_url()
    context.invoke(run_job, name="index-care", slot=None)


@indexes.command()
@tenant_option
@space_option
@click.option(
    "--method", default="hnsw", show_default=True, type=click.Choice(["hnsw", "ivfflat"]), help="ivfflat builds faster."
)
def build(tenant: str, space: str, method: str) -> None:
    """Build a tenant's index beside reads and writes, whatever its size; one that is there is replaced."""
    corpus, name = _corpus(tenant, space)
    with _owner() as owner:
        if not build_once(owner, corpus, cast("Method", method)):
            raise PermanentError("index-busy", "This index is being built right now.", "Wait for it.")
    _record("index-built", corpus, method=method)
    click.echo(f"{name}: {method} over {corpus.vectors:,} vectors")
    if corpus.vectors < DROP_BELOW:
        click.echo(f"Index care will drop it: below {DROP_BELOW:,} vectors exact search is fast.")


@indexes.command("drop")
@tenant_option
@space_option
def drop_(tenant: str, space: str) -> None:
    """Drop a tenant's index beside reads and writes: it is searched exactly from then on."""
    corpus, name = _corpus(tenant, space)
    with _owner() as owner:
        drop(owner, corpus)
    _record("index-dropped", corpus)
    click.echo(f"{name}: searched exactly")
    if corpus.vectors >= BUILD_FROM:
        click.echo(f"Index care will build it again: from {BUILD_FROM:,} vectors on exact search is slow.")


def _method(standing: Standing) -> str:
    return f"{standing.method}{'' if standing.valid else ' (not valid)'}" if standing.method else "none"


def _probed(standing: Standing) -> str:
    if standing.mean is None or standing.worst is None:
        return "not probed yet"
    return f"{standing.mean:.3f}, {standing.worst:.2f} ({standing.probed_at:%Y-%m-%d})"


def _corpus(tenant: str, space: str) -> tuple[Corpus, str]:
    chosen = chosen_tenant(tenant)
    with tenant_session(chosen.tenant_id) as session:
        wanted = space_by_name(session, space) if space else active_space(session, chosen.tenant_id)
    with operator_session() as session:
        found = corpora(session)
    for corpus in found:
        if (corpus.tenant_id, corpus.space_id) == (chosen.tenant_id, wanted.space_id):
            return corpus, f"{chosen.slug}, {wanted.name}"
    raise PermanentError(
        "no-vectors",
        f"{chosen.slug} has no vectors in {wanted.name}.",
        "Submit documents first, or name another space.",
    )


def _owner_url() -> str:
    url = get_settings().migration_database_url
    if url is None:
        raise SettingsError("MIGRATION_DATABASE_URL is not set: indexes belong to the role noesis_owner.")
    return url.get_secret_value()


@contextmanager
def _owner() -> Iterator[Connection]:
    with owner_connection(_owner_url()) as owner:
        yield owner


def _record(action: str, corpus: Corpus, **details: str) -> None:
    with operator_session() as session:
        record(
            session,
            actor=actor(),
            action=action,
            subject=corpus.index,
            tenant_id=corpus.tenant_id,
            space=corpus.space_id,
            **details,
        )
