"""`noesis search`: the passages that a question finds, and with `--explain` how."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich.console import Console
from rich.markup import escape

from cli.context import acting_as, chosen_tenant, tenant_option
from shared.database import tenant_session
from shared.retrieval.questions import Filters, checked_question
from shared.retrieval.search import Passage, search_explained
from shared.retrieval.spaces import active_space
from shared.services import services

SHOWN = 300
"""Characters of a passage on the terminal."""


@click.command()
@click.argument("question")
@tenant_option
@click.option("--as", "email", default="", help="E-mail of the member who searches; default the administrator.")
@click.option("--top", default=5, show_default=True, help="How many passages.")
@click.option("--collection", "collections", multiple=True, help="Only in this collection; may be given again.")
@click.option("--language", "languages", multiple=True, help="Only chunks in this language (de, en, simple).")
@click.option("--explain", is_flag=True, help="Say how the result came about.")
def search(
    question: str,
    tenant: str,
    email: str,
    top: int,
    collections: tuple[str, ...],
    languages: tuple[str, ...],
    explain: bool,
) -> None:
    """Find passages without asking a model to answer."""
    chosen = chosen_tenant(tenant)
    principal = acting_as(chosen, email or f"admin@{chosen.slug}.example")
    asked = checked_question(question)
    with tenant_session(principal.tenant_id) as session:
        space = active_space(session, principal.tenant_id)
    vector = services().models.embed([asked], model=space.model, dimension=space.dimension, input_type="query")[0]
    with tenant_session(principal.tenant_id) as session:
        found = search_explained(
            session,
            principal.tenant_id,
            principal.member_id,
            space,
            asked,
            vector,
            top_k=top,
            filters=Filters(collections=collections, languages=languages),
        )
    console = Console(highlight=False)
    for number, passage in enumerate(found.passages, start=1):
        _show(console, number, passage, explain)
    if not found.passages:
        console.print("Nothing found.")
    if explain:
        console.print()
        for name, value in asdict(found.diagnostics).items():
            console.print(f"{name.replace('_', ' '):20} {escape(str(value))}")


def _show(console: Console, number: int, passage: Passage, explain: bool) -> None:
    place = escape(" › ".join([passage.title, *passage.heading_path]))
    text = " ".join(passage.text.split())
    console.print(f"[bold]{number}.[/bold] {place}")
    if explain:
        figures = f"score {passage.score:.3f} = cosine {passage.similarity:.3f} + weighted BM25 of {passage.bm25:.2f}"
        console.print(f"   [dim]{figures}, {escape(passage.language)}[/dim]")
    console.print(f"   {escape(text[:SHOWN])}{'…' if len(text) > SHOWN else ''}")
