"""`noesis search`: the passages that a question finds, and with `--explain` how."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from cli.context import acting_as, chosen_tenant, payer_for, tenant_option
from cli.screen import json_option, print_json, screen
from shared.database import tenant_session
from shared.errors import PermanentError
from shared.retrieval.explaining import Explanation, explain
from shared.retrieval.passages import Passage
from shared.retrieval.paying import question_vectors
from shared.retrieval.questions import Filters, checked_question
from shared.retrieval.retrieving import Asker, Retrieved, Wanted, retrieve
from shared.retrieval.spaces import Space
from shared.services import services
from shared.tenants.directory import Principal

MOMENT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"])

SHOWN = 300
"""Characters of a passage on the terminal."""


@click.command()
@click.argument("question")
@tenant_option
@click.option("--as", "email", default="", help="E-mail of the member who searches; default the administrator.")
@click.option("--top", default=5, show_default=True, help="How many passages.")
@click.option("--collection", "collections", multiple=True, help="Only in this collection; may be given again.")
@click.option("--source", "sources", multiple=True, help="Only documents of this source; may be given again.")
@click.option("--language", "languages", multiple=True, help="Only chunks in this language (de, en, simple).")
@click.option("--metadata", multiple=True, metavar="NAME=VALUE", help="Only documents with this value.")
@click.option("--since", type=MOMENT, help="Only documents changed at this time or later.")
@click.option("--until", type=MOMENT, help="Only documents changed before this time.")
@click.option("--as-of", type=MOMENT, help="The versions that answered at this time.")
@click.option(
    "--context",
    default=0,
    metavar="TOKENS",
    type=click.IntRange(0),
    help="Widen the passages by what stands around them.",
)
@click.option("--rerank/--no-rerank", default=None, help="With the model of RERANK_MODEL (its default) or without.")
@click.option("--explain", "explained", is_flag=True, help="Say how the result came about.")
@json_option
def search(
    question: str,
    tenant: str,
    email: str,
    top: int,
    context: int,
    rerank: bool | None,
    explained: bool,
    as_json: bool,
    **narrowed: Any,
) -> None:
    """Find passages without asking a model to answer. Times are ISO 8601, in your time zone unless they say another."""
    filters = _filters(**narrowed)
    if rerank and not services().settings.rerank_model:
        raise PermanentError("no-reranker", "RERANK_MODEL is not set.", "Set it to `sentences` or a LiteLLM model.")
    chosen = chosen_tenant(tenant)
    principal = acting_as(chosen, email or f"admin@{chosen.slug}.example")
    asker = Asker(principal.tenant_id, principal.member_id, services().clock.now())
    wanted = Wanted(top, context, rerank, filters)
    found = retrieve(services().models, services().settings, asker, question, wanted)
    if as_json:
        why = asdict(_explanation(principal, found.space, question, top, filters)) if explained else None
        print_json({**asdict(found), "space": found.space.name, "explanation": why})
        return
    console = screen()
    for number, passage in enumerate(found.passages, start=1):
        _show(console, number, passage, explained)
    if not found.passages:
        console.print("Nothing found.")
    elif not found.evidence.enough:
        console.print("[yellow]Too little evidence for an answer.[/yellow]")
    if explained:
        _explain(console, found, _explanation(principal, found.space, question, top, filters))


def _filters(
    collections: tuple[str, ...],
    sources: tuple[str, ...],
    languages: tuple[str, ...],
    metadata: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    as_of: datetime | None,
) -> Filters:
    return Filters(
        collections,
        sources,
        languages,
        dict(map(_pair, metadata)),
        *(_aware(moment) if moment else None for moment in (since, until, as_of)),
    )


def _aware(moment: datetime) -> datetime:
    try:
        return moment.astimezone()
    except (ValueError, OverflowError):
        raise PermanentError("bad-filter", f"{moment} is out of range.", "Give a later time.") from None


def _pair(given: str) -> tuple[str, str]:
    name, separator, value = given.partition("=")
    if not separator or not name:
        raise PermanentError("bad-filter", f"{given!r} is no filter on metadata.", "Write name=value.")
    return name, value


def _explanation(principal: Principal, space: Space, question: str, top: int, filters: Filters) -> Explanation:
    asked = checked_question(question)
    vector = question_vectors(services().models, payer_for(principal.tenant_id), space, [asked])[0]
    with tenant_session(principal.tenant_id) as session:
        return explain(
            session, principal.tenant_id, principal.member_id, space, asked, vector, top_k=top, filters=filters
        )


def _explain(console: Console, found: Retrieved, why: Explanation) -> None:
    console.print()
    evidence = found.evidence
    floor = "not calibrated" if evidence.floor is None else f"floor {evidence.floor:.3f}"
    judged = "" if evidence.relevance is None else f", relevance {evidence.relevance:.3f} decides"
    said = "enough" if evidence.enough else "too little"
    lines: dict[str, object] = {"evidence": f"{evidence.strength:.3f}, {floor}{judged}: {said}"}
    lines |= {name.replace("_", " "): value for name, value in asdict(found.diagnostics).items()}
    lines["re-ranking"] = found.reranking
    lines["filtered out"] = ", ".join(f"{reason} {count}" for reason, count in why.filtered.items() if count) or "-"
    lines["database ms"] = _joined(why.stages)
    lines["stages ms"] = _joined(found.stages)
    for name, value in lines.items():
        console.print(f"{name:20} {escape(str(value))}")


def _joined(times: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in times.items())


def _show(console: Console, number: int, passage: Passage, explain: bool) -> None:
    place = escape(" › ".join([passage.title, *passage.heading_path]))
    text = " ".join(passage.text.split())
    console.print(f"[bold]{number}.[/bold] {place}")
    if explain:
        figures = f"score {passage.score:.3f} = cosine {passage.similarity:.3f} + weighted BM25 of {passage.bm25:.2f}"
        console.print(f"   [dim]{figures}, {escape(passage.language)}[/dim]")
    console.print(f"   {escape(text[:SHOWN])}{'…' if len(text) > SHOWN else ''}")
