"""`noesis spaces`: vector spaces, who uses which, and new ones."""

from __future__ import annotations

import click
from rich.markup import escape
from sqlalchemy import text

from cli.context import actor
from cli.screen import screen, table_of
from shared.audit import record
from shared.database import operator_session
from shared.errors import PermanentError
from shared.retrieval.estimating import price_or_refuse, try_model
from shared.retrieval.paying import Platform
from shared.retrieval.spaces import Chunker, ensure_space, profile
from shared.services import services
from shared.settings import get_settings


@click.group()
def spaces() -> None:
    """Vector spaces: a model, its dimension, how documents are cut, what is written before a text."""


@spaces.command("list")
def list_() -> None:
    """Every space with its profile, its evidence floor, and how many tenants have it in which state."""
    headers = ("space", "model", "dimension", "chunker", "prefixes", "evidence floor", "tenants")
    table = table_of(*headers, whole=("space",))
    with operator_session() as session:
        rows = session.execute(
            text(
                "select s.*, (select string_agg(n || ' ' || state, ', ' order by state) from (select state, "
                "count(*) as n from rag.tenant_spaces t where t.space_id = s.space_id group by state) c) as tenants "
                "from rag.vector_spaces s order by s.name"
            )
        ).all()
    for row in rows:
        prefixes = " ".join(repr(prefix) for prefix in (row.query_prefix, row.passage_prefix) if prefix)
        floor = "not calibrated" if row.evidence_floor is None else f"{row.evidence_floor:.3f}"
        table.add_row(
            escape(row.name),
            escape(row.model),
            str(row.dimension),
            row.chunker,
            escape(prefixes) or "none",
            floor,
            row.tenants or "none",
        )
    screen().print(table)


@spaces.command()
@click.argument("model")
@click.argument("dimension", type=click.IntRange(1, 4000))
@click.option("--query-prefix", default="", help="Written before every question.")
@click.option("--passage-prefix", default="", help="Written before every chunk.")
@click.option("--chunk-size", type=click.IntRange(50, 1200), help="Tokens of a chunk; default CHUNK_SIZE.")
@click.option("--chunk-overlap", type=click.IntRange(0, 200), help="Tokens two chunks share; default CHUNK_OVERLAP.")
def add(
    model: str,
    dimension: int,
    query_prefix: str,
    passage_prefix: str,
    chunk_size: int | None,
    chunk_overlap: int | None,
) -> None:
    """Make the space of a profile, after asking the model proxy whether MODEL gives vectors of DIMENSION numbers."""
    for prefix in (query_prefix, passage_prefix):
        if len(prefix) > 100 or not prefix.isprintable():
            raise PermanentError("bad-prefix", "A prefix is at most 100 printable characters.", "Shorten it.")
    settings = get_settings()
    chunker = Chunker(
        settings.chunk_size if chunk_size is None else chunk_size,
        settings.chunk_overlap if chunk_overlap is None else chunk_overlap,
    )
    wanted = profile(model, dimension, chunker, query_prefix, passage_prefix)
    now = services().clock.now()
    with operator_session() as session:
        price_or_refuse(session, wanted, settings.noesis_stage, now)
    rate = try_model(services().models, wanted, Platform(settings.noesis_stage, now))
    with operator_session() as session:
        known = session.execute(
            text("select true from rag.vector_spaces where space_id = :space"), {"space": wanted.space_id}
        ).scalar()
        made = ensure_space(session, model, dimension, chunker, query_prefix, passage_prefix)
        if not known:
            record(session, actor=actor(), action="space-added", subject=str(made.space_id), name=made.name)
    click.echo(f"{made.name}{' is there already' if known else ''}; {rate:.1f} texts a second")
