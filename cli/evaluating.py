"""`noesis eval`: how good is search on a golden set, and is another setting better."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from cli.context import acting_as, chosen_tenant, tenant_option
from shared.database import operator_session, tenant_session
from shared.errors import PermanentError
from shared.retrieval import evidence, golden
from shared.retrieval.evaluation import MEASURES, Outcome, compare, evaluate
from shared.retrieval.search import DEFAULT, Tuning
from shared.retrieval.spaces import Space, active_space
from shared.services import services
from shared.tenants.directory import Principal


@click.group(name="eval")
def evaluating() -> None:
    """Measure search on golden sets (files of questions with what must be found)."""


@evaluating.command()
@click.argument("kind", type=click.Choice(["xquad", "cranfield", "laws"]))
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("target", type=click.Path(file_okay=False, path_type=Path))
@click.option("--asked-in", default="de", show_default=True, type=click.Choice(["de", "en"]), help="XQuAD questions.")
@click.option("--written-in", default="de", show_default=True, type=click.Choice(["de", "en"]), help="XQuAD corpus.")
def convert(kind: str, source: Path, target: Path, asked_in: str, written_in: str) -> None:
    """Write TARGET/questions.jsonl and, where there is one, TARGET/corpus/ with a file a document to submit."""
    texts: list[golden.CorpusText] = []
    if kind == "xquad":
        asking, written = (source / f"xquad.{language}.json" for language in (asked_in, written_in))
        texts, questions = golden.xquad(asking, written, asked_in, written_in)
    elif kind == "cranfield":
        texts, questions = golden.cranfield(source)
    else:
        questions = golden.known_items(sorted(source.glob("*.md")))
    count = golden.write(target / "questions.jsonl", questions)
    for item in texts:
        path = target / "corpus" / f"{item.document}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(item.text, encoding="utf-8")
    click.echo(f"{count} questions, {len(texts)} documents in {target}")


@evaluating.command()
@click.argument("questions", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@tenant_option
@click.option("--as", "email", default="", help="E-mail of the member who asks; default the administrator.")
@click.option("--against", "settings", multiple=True, help="A second setting, e.g. by_rank=true or lexical_weight=0.1.")
def run(questions: Path, tenant: str, email: str, settings: tuple[str, ...]) -> None:
    """Ask every question of a golden set and print the measures with 95 % intervals."""
    asked = golden.read_questions(questions)
    principal, space = _who(tenant, email)
    tunings = {"default": DEFAULT} | ({"other": _tuning(settings)} if settings else {})
    outcomes = [_outcome(principal, space, asked, name, tuning) for name, tuning in tunings.items()]
    table = Table("setting", *MEASURES, "ms p50", "ms p95")
    for outcome in outcomes:
        table.add_row(
            outcome.name, *(_cell(e.mean, e.low, e.high) for e in outcome.summary().values()), *_times(outcome)
        )
    if len(outcomes) == 2:
        gaps = compare(outcomes[1], outcomes[0]).values()
        table.add_row("difference", *(_cell(e.mean, e.low, e.high, signed=True) for e in gaps), "", "")
    Console().print(table)


@evaluating.command()
@click.argument("answerable", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("unanswerable", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@tenant_option
@click.option("--store", is_flag=True, help="Store the floor with the tenant's vector space.")
def calibrate(answerable: Path, unanswerable: Path, tenant: str, store: bool) -> None:
    """Fit the evidence gate of the tenant's space on half of the questions, report on the other half."""
    principal, space = _who(tenant, "")
    strengths = [
        _outcome(principal, space, golden.read_questions(path), path.stem, DEFAULT).strengths
        for path in (answerable, unanswerable)
    ]
    found = evidence.calibrate(*strengths)
    click.echo(
        f"floor {found.floor:.4f}; on unseen questions AUC {found.auc:.3f}, "
        f"{found.kept:.0%} of the answerable kept, {found.refused:.0%} of the unanswerable refused"
    )
    if store:
        with operator_session() as session:
            evidence.store_floor(session, space, found.floor)
        click.echo(f"Stored with {space.name}.")


def _who(tenant: str, email: str) -> tuple[Principal, Space]:
    chosen = chosen_tenant(tenant)
    principal = acting_as(chosen, email or f"admin@{chosen.slug}.example")
    with tenant_session(principal.tenant_id) as session:
        return principal, active_space(session, principal.tenant_id)


def _outcome(
    principal: Principal, space: Space, questions: Sequence[golden.Question], name: str, tuning: Tuning
) -> Outcome:
    def embed(texts: Sequence[str]) -> list[list[float]]:
        return services().models.embed(texts, model=space.model, dimension=space.dimension, input_type="query")

    with tenant_session(principal.tenant_id) as session:
        return evaluate(session, principal, space, questions, embed, name=name, tuning=tuning)


def _tuning(settings: Sequence[str]) -> Tuning:
    known = {field.name: field.type for field in fields(Tuning)}
    values: dict[str, bool | int | float] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in known:
            raise PermanentError("bad-setting", f"There is no setting {name!r}.", f"Use {', '.join(known)}.")
        try:
            kind = str(known[name])
            values[name] = value == "true" if kind == "bool" else int(value) if kind == "int" else float(value)
        except ValueError:
            raise PermanentError("bad-setting", f"{setting!r} is no number.", "Write name=number.") from None
    return replace(DEFAULT, **values)  # type: ignore[arg-type] # the names were checked above


def _cell(mean: float, low: float, high: float, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{mean:{sign}.3f} ({low:{sign}.3f}, {high:{sign}.3f})"


def _times(outcome: Outcome) -> tuple[str, str]:
    times = sorted(outcome.milliseconds)
    return f"{statistics.median(times):.1f}", f"{times[int(len(times) * 0.95)]:.1f}"
