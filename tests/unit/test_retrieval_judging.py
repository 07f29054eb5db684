"""Answers judged against golden sets: against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import PermanentError
from shared.retrieval import golden, judging, metrics
from shared.retrieval.golden import CorpusText, Question, Relevant
from shared.retrieval.judging import Given, Quoted

URLAUB = Question(
    id="1",
    question="Wie viel Urlaub?",
    language="de",
    relevant=(Relevant(document="urlaub", passage="30 Arbeitstage"),),
    answers=("die 30 Arbeitstage",),
)
NOTHING = Question(id="2", question="Wer gewann 1954?", language="de")


def only(question: Question, given: Given) -> dict[str, float | None]:
    """The measures of one answer."""
    return {name: values[0] for name, values in judging.judge([question], [given]).values.items()}


def test_marks_articles_and_punctuation_do_not_count() -> None:
    """SQuAD's normalisation with German articles; citation marks are no words."""
    row = only(URLAUB, Given(id="1", answer="„30 Arbeitstage.“ [1]"))
    assert (row["exact"], row["f1"], row["holds"], row["answered"]) == (1, 1, 1, 1)
    assert row["refused"] is None


def test_a_sentence_holds_the_answer_without_being_it() -> None:
    """Two of four words: precision 1/2, recall 1, F1 2/3; word for word, not letter for letter."""
    row = only(URLAUB, Given(id="1", answer="Es sind 30 Arbeitstage [1]."))
    assert (row["exact"], row["holds"]) == (0, 1)
    assert row["f1"] == pytest.approx(2 / 3)
    assert metrics.holds_answer("130 Arbeitstage", ["30 Arbeitstage"]) == 0
    assert metrics.holds_answer("anything", ["die", ""]) == 0


def test_a_citation_is_right_by_document_and_words() -> None:
    """The right words in the wrong document prove nothing, nor does another passage of the right one."""
    citations = (
        Quoted(document="urlaub", quote="30\nArbeitstage"),
        Quoted(document="urlaub", quote="Antrag", passage="Der Antrag wird im Portal gestellt."),
        Quoted(document="reise", quote="30 Arbeitstage"),
        Quoted(document="urlaub", quote="Urlaub", passage="Urlaub: 30 Arbeitstage im Jahr"),
    )
    row = only(URLAUB, Given(id="1", answer="30 [1]", citations=citations))
    assert (row["citation precision"], row["proven"]) == (0.5, 1)
    assert only(URLAUB, Given(id="1", answer="30"))["citation precision"] is None


def test_no_evidence_is_right_exactly_where_there_is_none() -> None:
    """Refusing an answerable question is a failure, refusing an unanswerable one a success; silence is neither."""
    refused = Given(id="1", answer="Dafür gibt es keinen Beleg: 30 Arbeitstage.", no_evidence=True)
    row = only(URLAUB, refused)
    assert (row["answered"], row["exact"], row["holds"], row["proven"]) == (0, 0, 0, 0)
    assert only(NOTHING, Given(id="2", answer="x", no_evidence=True))["refused"] == 1
    assert only(NOTHING, Given(id="2", answer="Deutschland"))["refused"] == 0
    assert only(NOTHING, Given(id="2", failure="provider"))["refused"] == 0


def test_a_missing_answer_counts_and_a_foreign_file_is_an_error() -> None:
    """Who leaves questions out gains nothing."""
    both = judging.judge([URLAUB, NOTHING], [Given(id="2", no_evidence=True)])
    assert both.values["answered"] == [0.0, None]
    assert both.values["refused"] == [None, 1.0]
    with pytest.raises(PermanentError) as error:
        judging.judge([URLAUB], [Given(id="other", answer="30")])
    assert error.value.reason == "foreign-answers"


def test_differences_are_paired_where_both_sides_have_a_value() -> None:
    """A citation precision of one side alone is compared with nothing."""
    other = URLAUB.model_copy(update={"id": "3"})
    right, wrong = (Quoted(document=name, quote="30 Arbeitstage") for name in ("urlaub", "reise"))
    ours = judging.judge(
        [URLAUB, other],
        [Given(id="1", answer="30", citations=(right,)), Given(id="3", answer="30", citations=(right,))],
    )
    theirs = judging.judge([URLAUB, other], [Given(id="1", answer="30", citations=(wrong,)), Given(id="3")])
    gaps = judging.compare(ours, theirs)
    assert gaps["citation precision"] == metrics.Estimate(1, 1, 1)
    assert gaps["refused"] is None
    assert gaps["answered"] is not None
    assert gaps["answered"].mean == 0.5


def test_a_bad_line_of_answers_is_named(tmp_path: Path) -> None:
    """The reader of golden sets reads answers too."""
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "1", "answer": "x"}\n{"answer": "y"}\n', encoding="utf-8")
    with pytest.raises(PermanentError, match="line 2: id"):
        golden.read_items(Given, path)


def test_a_grown_golden_set_has_no_question_twice() -> None:
    """Case and punctuation make no other question; what answers it is joined, ids stay those of the first."""
    again = Question(
        id="new",
        question="wie viel  Urlaub",
        relevant=(Relevant(document="urlaub", passage="30 Arbeitstage"), Relevant(document="tarif")),
    )
    without = Question(id="none", question="WIE VIEL URLAUB?")
    found = golden.merged([URLAUB], [again, without, NOTHING])
    assert [question.id for question in found] == ["1", "2"]
    assert found[0].relevant == (*URLAUB.relevant, Relevant(document="tarif"))
    assert found[0].answers == URLAUB.answers
    assert golden.merged(found, [again, NOTHING]) == found


def test_held_out_articles_leave_questions_without_evidence() -> None:
    """Whole articles go, so that no neighbouring paragraph answers; every question is in exactly one of both sets."""
    texts = [CorpusText(document=f"x-{a}-{p}", title="", language="de", text="t") for a in range(4) for p in range(2)]
    questions = [
        Question(id=t.document, question=t.document, relevant=(Relevant(document=t.document),), answers=("a",))
        for t in texts
    ]
    kept, answerable, unanswerable = golden.held_out(texts, questions, 2)
    assert {text.document[:3] for text in kept} == {"x-0", "x-2"}
    assert {question.id[:3] for question in unanswerable} == {"x-1", "x-3"}
    assert all(not question.relevant and not question.answers for question in unanswerable)
    assert sorted(q.id for q in (*answerable, *unanswerable)) == sorted(q.id for q in questions)
    with pytest.raises(ValueError, match="second"):
        golden.held_out(texts, questions, 1)
