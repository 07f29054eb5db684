"""`noesis eval`: how good is search on a golden set, and is another setting better."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import click
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from sqlalchemy import text

from cli.context import acting_as, chosen_tenant, payer_for, tenant_option
from cli.screen import screen
from shared.conversations.feedback import golden_questions
from shared.database import array_literal, operator_session, tenant_session
from shared.errors import PermanentError
from shared.retrieval import evidence, golden, judging
from shared.retrieval.evaluation import MEASURES, Outcome, Reranking, compare, evaluate
from shared.retrieval.passages import Passage
from shared.retrieval.paying import question_vectors
from shared.retrieval.ranking import DEFAULT, MOST_LOOKED_AT, Tuning
from shared.retrieval.reranking import BUNDLED, paid, reordered
from shared.retrieval.spaces import Space, active_space, space_by_name
from shared.services import services
from shared.tenants.directory import Principal

space_option = click.option(
    "--space", default="", help="In this vector space, say a campaign's; default the active one."
)


@click.group(name="eval")
def evaluating() -> None:
    """Measure search on golden sets (files of questions with what must be found)."""


@evaluating.command()
@click.argument("kind", type=click.Choice(["xquad", "cranfield", "laws"]))
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("target", type=click.Path(file_okay=False, path_type=Path))
@click.option("--asked-in", default="de", show_default=True, type=click.Choice(["de", "en"]), help="XQuAD questions.")
@click.option("--written-in", default="de", show_default=True, type=click.Choice(["de", "en"]), help="XQuAD corpus.")
@click.option("--hold-out", type=click.IntRange(2), help="XQuAD: leave every such article out of the corpus.")
def convert(kind: str, source: Path, target: Path, asked_in: str, written_in: str, hold_out: int | None) -> None:
    """Write TARGET/questions.jsonl and, where there is one, TARGET/corpus/ with a file a document to submit.

    With --hold-out also TARGET/unanswerable.jsonl: questions about what was left out, for `calibrate` and `answers`.
    """
    try:
        texts, questions = _converted(kind, source, asked_in, written_in)
    except ValueError as error:  # of pydantic, of encodings and of collections whose parts do not fit
        problem = str(error).partition("\n")[0]
        raise PermanentError(
            "bad-golden-set", f"{source} is no collection of the kind {kind}: {problem}.", "See docs/retrieval.md."
        ) from None
    if hold_out and kind == "xquad":
        texts, questions, unanswerable = golden.held_out(texts, questions, hold_out)
        golden.write(target / "unanswerable.jsonl", unanswerable)
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
@space_option
@click.option("--against-space", default="", help="A second space beside the first, say a campaign's.")
@click.option("--against", "settings", multiple=True, help="A second setting, e.g. by_rank=true or lexical_weight=0.1.")
@click.option("--rerank", is_flag=True, help="A second time, re-ranked by RERANK_MODEL or, if empty, the bundled one.")
def run(
    questions: Path,
    tenant: str,
    email: str,
    space: str,
    against_space: str,
    settings: tuple[str, ...],
    rerank: bool,
) -> None:
    """Ask every question of a golden set and print the measures with 95 % intervals.

    A second space or setting, or the same one re-ranked, is asked the same questions; the differences are paired.
    """
    asked = _asked(questions)
    if not any(question.relevant for question in asked):
        raise PermanentError(
            "bad-golden-set", f"{questions}: no question expects a document.", "See docs/retrieval.md for the form."
        )
    principal, chosen = _who(tenant, email, space)
    outcomes = [_outcome(principal, chosen, asked, chosen.name, DEFAULT)]
    if settings or against_space or rerank:
        other = _who(tenant, email, against_space)[1] if against_space else chosen
        model = (services().settings.rerank_model or BUNDLED) if rerank else ""
        name = " ".join((other.name, *settings, *([f"re-ranked by {model}"] if model else [])))
        outcomes.append(_outcome(principal, other, asked, name, _tuning(settings), model))
    table = Table("setting", *MEASURES, "ms p50", "ms p95")
    for outcome in outcomes:
        table.add_row(
            outcome.name, *(_cell(e.mean, e.low, e.high) for e in outcome.summary().values()), *_times(outcome)
        )
    if len(outcomes) == 2:
        gaps = compare(outcomes[1], outcomes[0]).values()
        table.add_row("difference", *(_cell(e.mean, e.low, e.high, signed=True) for e in gaps), "", "")
    screen().print(table)
    if missing := _not_searchable(principal, asked):
        click.echo(f"{len(missing)} expected documents are not searchable, {missing[0]} for one: they count as missed.")


@evaluating.command()
@click.argument("questions", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@tenant_option
@click.option("--as", "email", default="", help="E-mail of the member who asks; default the administrator.")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many questions.")
@click.option("--parallel", default=1, show_default=True, type=click.IntRange(1, 16), help="Questions at once.")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the answers to this file.")
@click.option("--answers", "given", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Judge these.")
@click.option("--against", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="And these beside them.")
def answers(
    questions: Path,
    tenant: str,
    email: str,
    limit: int | None,
    parallel: int,
    save: Path | None,
    given: Path | None,
    against: Path | None,
) -> None:
    """Answer a golden set by the whole agent, in this process, and judge answers and citations.

    With --answers nothing is asked: the answers of that file are judged. --against judges a second file, saved earlier
    or made by another product; the differences are paired, with 95 % intervals.
    """
    asked = _asked(questions)[:limit]
    if given is None:
        from cli.golden_answers import answers_to  # late: LangGraph costs 0.85 s (FACTS), judging needs none

        principal = _member(tenant, email)
        track = Progress(console=screen(stderr=True), transient=True)
        with track:
            given_now = answers_to(principal, asked, services(), parallel)
            found = list(track.track(given_now, total=len(asked), description="asking"))
    else:
        found = golden.read_items(judging.Given, given)
    if save is not None:
        golden.write(save, found)
    judged = [judging.judge(asked, found, name=given.stem if given else "now")]
    if against is not None:
        judged.append(judging.judge(asked, golden.read_items(judging.Given, against), name=against.stem))
    _show_judged(judged)
    failures = Counter(answer.failure for answer in found if answer.failure)
    if failures:
        click.echo("Not answered: " + ", ".join(f"{count} {why}" for why, count in failures.most_common()))


@evaluating.command()
@click.argument("questions", type=click.Path(dir_okay=False, path_type=Path))
@tenant_option
def grow(questions: Path, tenant: str) -> None:
    """Add the tenant's questions whose answers its members found good to QUESTIONS; none twice."""
    chosen = chosen_tenant(tenant)
    known = golden.read_questions(questions) if questions.exists() else []
    with tenant_session(chosen.tenant_id) as session:
        new = list(golden_questions(session, chosen.tenant_id))
    count = golden.write(questions, golden.merged(known, new))
    click.echo(f"{questions}: {count} questions, {count - len(known)} new.")


@evaluating.command()
@click.argument("answerable", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("unanswerable", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@tenant_option
@space_option
@click.option("--store", is_flag=True, help="Store the floor with the vector space.")
def calibrate(answerable: Path, unanswerable: Path, tenant: str, space: str, store: bool) -> None:
    """Fit the evidence gate of the tenant's space on half of the questions, report on the other half."""
    principal, chosen = _who(tenant, "", space)
    asked = [_of_kind(answerable, answered=True), _of_kind(unanswerable, answered=False)]
    strengths = [_outcome(principal, chosen, questions, "", DEFAULT).strengths for questions in asked]
    found = evidence.calibrate(*strengths)
    click.echo(
        f"floor {found.floor:.4f}; on unseen questions AUC {found.auc:.3f}, "
        f"{found.kept:.0%} of the answerable kept, {found.refused:.0%} of the unanswerable refused"
    )
    if store:
        with operator_session() as session:
            evidence.store_floor(session, chosen, found.floor)
        click.echo(f"Stored with {chosen.name}.")


def _converted(
    kind: str, source: Path, asked_in: str, written_in: str
) -> tuple[list[golden.CorpusText], list[golden.Question]]:
    if kind == "xquad":
        asking, written = (source / f"xquad.{language}.json" for language in (asked_in, written_in))
        return golden.xquad(asking, written, asked_in, written_in)
    if kind == "cranfield":
        return golden.cranfield(source)
    return [], golden.known_items(sorted(source.glob("*.md")))


def _member(tenant: str, email: str) -> Principal:
    chosen = chosen_tenant(tenant)
    return acting_as(chosen, email or f"admin@{chosen.slug}.example")


def _asked(path: Path) -> list[golden.Question]:
    """The questions of a golden set. Raises PermanentError, also when there is none: no measure is true of nothing."""
    found = golden.read_questions(path)
    if not found:
        raise PermanentError("bad-golden-set", f"{path} has no question.", "See docs/retrieval.md for the form.")
    return found


def _not_searchable(principal: Principal, asked: Sequence[golden.Question]) -> list[str]:
    """Names of expected documents that the tenant does not have: submitted under others, withdrawn, or never."""
    wanted = {relevant.document for question in asked for relevant in question.relevant}
    with tenant_session(principal.tenant_id) as session:
        there = session.execute(
            text(
                "select external_id from rag.documents where tenant_id = :tenant and state = 'searchable' "
                "and external_id = any(cast(:names as text[]))"
            ),
            {"tenant": principal.tenant_id, "names": array_literal(wanted)},
        ).scalars()
        return sorted(wanted - set(there))


def _of_kind(path: Path, *, answered: bool) -> list[golden.Question]:
    """Questions of which all have something relevant, or none. Raises PermanentError: a floor fitted to files that were
    mixed up would be stored for everybody, and refuse what has an answer."""
    found = _asked(path)
    wrong = next((question for question in found if bool(question.relevant) != answered), None)
    if wrong is not None:
        problem = "has nothing relevant" if answered else "has something relevant"
        raise PermanentError(
            "bad-golden-set",
            f"{path}: question {wrong.id!r} {problem}.",
            "Give the file of answerable questions first, then that of unanswerable ones.",
        )
    return found


def _who(tenant: str, email: str, space: str) -> tuple[Principal, Space]:
    principal = _member(tenant, email)
    with tenant_session(principal.tenant_id) as session:
        active = active_space(session, principal.tenant_id)
        return principal, space_by_name(session, space) if space else active


def _outcome(
    principal: Principal,
    space: Space,
    questions: Sequence[golden.Question],
    name: str,
    tuning: Tuning,
    rerank_model: str = "",
) -> Outcome:
    embed = partial(question_vectors, services().models, payer_for(principal.tenant_id), space)
    reranking = _reranking(principal, space, rerank_model) if rerank_model else None
    return evaluate(principal, space, questions, embed, name=name, tuning=tuning, reranking=reranking)


def _reranking(principal: Principal, space: Space, model: str) -> Reranking:
    settings, models = services().settings, services().models
    payer = payer_for(principal.tenant_id)

    def reorder(question: str, passages: Sequence[Passage]) -> list[Passage]:
        return reordered(models, model, space, question, passages, partial(paid, models, payer))

    return Reranking(settings.rerank_candidates, reorder)


def _tuning(settings: Sequence[str]) -> Tuning:
    known = {field.name: str(field.type) for field in fields(Tuning)}
    values: dict[str, bool | int | float] = {}
    for setting in settings:
        name, _, written = setting.partition("=")
        if name not in known:
            raise PermanentError("bad-setting", f"There is no setting {name!r}.", f"Use {', '.join(known)}.")
        value = _value(known[name], written)
        if value is None:
            raise PermanentError("bad-setting", f"{setting!r} is no value for it.", _TAKES[known[name].split()[0]])
        values[name] = value
    return replace(DEFAULT, **values)  # type: ignore[arg-type] # the names were checked above


_TAKES = {
    "bool": "Write name=true or name=false.",
    "int": f"Write name=number, 1 to {MOST_LOOKED_AT}.",
    "float": "Write name=number, 0 or more.",
}


def _value(kind: str, written: str) -> bool | int | float | None:
    """What is written for a setting of that type; None where it is nothing that a search can be asked with."""
    if kind == "bool":
        return {"true": True, "false": False}.get(written)
    try:
        number = int(written) if kind == "int" else float(written)
    except ValueError:
        return None
    fits = 1 <= number <= MOST_LOOKED_AT if kind == "int" else 0 <= number < math.inf
    return number if fits else None


def _show_judged(judged: Sequence[judging.Judgement]) -> None:
    """A line a measure, with the number of questions it applies to; a second judgement beside the first."""
    table = Table("measure", "questions", *(escape(one.name) for one in judged), *["difference"] * (len(judged) - 1))
    gaps = judging.compare(judged[0], judged[1]) if len(judged) == 2 else {}
    for measure in judging.MEASURES:
        values = [value for value in judged[0].values[measure] if value is not None]
        estimates = [one.summary()[measure] for one in judged]
        cells = ["" if e is None else _cell(e.mean, e.low, e.high) for e in estimates]
        if gaps:
            gap = gaps[measure]
            cells.append("" if gap is None else _cell(gap.mean, gap.low, gap.high, signed=True))
        table.add_row(measure, str(len(values)), *cells)
    screen().print(table)


def _cell(mean: float, low: float, high: float, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{mean:{sign}.3f} ({low:{sign}.3f}, {high:{sign}.3f})"


def _times(outcome: Outcome) -> tuple[str, str]:
    times = sorted(outcome.milliseconds)
    return f"{statistics.median(times):.1f}", f"{times[int(len(times) * 0.95)]:.1f}"
