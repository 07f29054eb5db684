"""Answers judged against a golden set: right words, right proof, and "no evidence" where there is none.

Pure: questions and answers in, measures out. Answers are JSON Lines, so that what was answered yesterday, by another
model or by another product is judged alike:
`{"id": …, "answer": …, "no_evidence": false, "citations": [{"document": …, "quote": …, "passage": …}]}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from shared.errors import PermanentError
from shared.retrieval import metrics
from shared.retrieval.golden import Question, contains

MEASURES = ("exact", "f1", "holds", "citation precision", "proven", "answered", "refused")
"""Each 0 to 1 a question.

`exact`, `f1`: the answer against the expected ones (SQuAD). `holds`: an expected answer stands in it word for word,
which is what an answer in whole sentences can reach. `citation precision`: share of its citations that are right;
`proven`: at least one is. `answered`: an answerable question got an answer; `refused`: an unanswerable one got none.
"""

_MARKS = re.compile(r"\[\d{1,3}\]")


class Quoted(BaseModel):
    """A citation: the external id of a document, the words that were quoted, and the chunk they stand in if known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    document: str
    quote: str
    passage: str = ""


class Given(BaseModel):
    """An answer to the question of this id. `failure` says why there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    answer: str = ""
    no_evidence: bool = False
    citations: tuple[Quoted, ...] = ()
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Each measure by question, in the order of the golden set; None where it does not apply to a question."""

    name: str
    values: Mapping[str, Sequence[float | None]]

    def summary(self) -> dict[str, metrics.Estimate | None]:
        """Every measure over the questions it applies to, with its 95 % interval; None when it applies to none."""
        applicable = {name: [v for v in self.values[name] if v is not None] for name in MEASURES}
        return {name: metrics.estimate(values) if values else None for name, values in applicable.items()}


def judge(questions: Sequence[Question], given: Sequence[Given], *, name: str = "answers") -> Judgement:
    """Judge the answers. A question without an answer in `given` counts as failed.

    Raises PermanentError `foreign-answers` when not a single answer belongs to a question.
    """
    by_id = {answer.id: answer for answer in given}
    if not by_id.keys() & {question.id for question in questions}:
        raise PermanentError(
            "foreign-answers", "No answer belongs to a question of this golden set.", "Give the answers to these ids."
        )
    missing = Given(id="missing", failure="missing")
    rows = [_judged(question, by_id.get(question.id, missing)) for question in questions]
    return Judgement(name, {measure: [row[measure] for row in rows] for measure in MEASURES})


def compare(ours: Judgement, theirs: Judgement) -> dict[str, metrics.Estimate | None]:
    """Paired differences `ours - theirs` over the questions to which a measure applies on both sides."""
    gaps: dict[str, metrics.Estimate | None] = {}
    for name in MEASURES:
        pairs = zip(ours.values[name], theirs.values[name], strict=True)
        both = [(mine, other) for mine, other in pairs if mine is not None and other is not None]
        gaps[name] = metrics.difference([m for m, _ in both], [o for _, o in both]) if both else None
    return gaps


def _judged(question: Question, given: Given) -> dict[str, float | None]:
    row: dict[str, float | None] = dict.fromkeys(MEASURES)
    silent = given.no_evidence or not given.answer.strip()
    if not question.relevant:
        row["refused"] = float(given.no_evidence)
        return row
    row["answered"] = float(not silent)
    said = "" if silent else _MARKS.sub(" ", given.answer)
    if question.answers:
        row["exact"] = metrics.exact_match(said, question.answers)
        row["f1"] = metrics.answer_f1(said, question.answers)
        row["holds"] = metrics.holds_answer(said, question.answers)
    right = [_right(question, citation) for citation in given.citations]
    row["proven"] = float(any(right))
    if right:
        row["citation precision"] = sum(right) / len(right)
    return row


def _right(question: Question, citation: Quoted) -> bool:
    """Whether the document is an expected one and the cited words hold the expected passage or an expected answer."""
    cited = f"{citation.quote}\n{citation.passage}"
    return any(
        relevant.document == citation.document
        and (contains(cited, relevant.passage) or metrics.holds_answer(cited, question.answers) > 0)
        for relevant in question.relevant
    )
