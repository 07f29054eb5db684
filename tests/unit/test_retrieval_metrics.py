"""Measures and golden sets: what they promise, against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import PermanentError
from shared.retrieval import golden, metrics
from shared.retrieval.evidence import calibrate, has_evidence
from shared.retrieval.indexes import Corpus, plan
from shared.retrieval.passages import Passage
from shared.retrieval.questions import Filters, checked_filters, language_of
from shared.retrieval.spaces import Space
from shared.retrieval.statements import index_name, search_sql


def test_ndcg_is_the_formula_of_the_paper() -> None:
    """Relevant at ranks 1 and 3 of two: (1 + 1/2) / (1 + 1/log2 3)."""
    assert metrics.ndcg(["a", "x", "b"], {"a": 1, "b": 1}) == pytest.approx(1.5 / (1 + 0.6309297535714574))


def test_a_measure_counts_an_item_once() -> None:
    """The same document through two chunks is one find."""
    assert metrics.ndcg(["a", "a"], {"a": 1}) == 1
    assert metrics.recall(["a", "a"], {"a": 1, "b": 1}, 2) == 0.5
    assert metrics.reciprocal_rank(["x", "x", "a"], {"a": 1}) == 0.5


def test_nothing_relevant_is_zero() -> None:
    """No division by zero, no free points."""
    assert metrics.ndcg(["a"], {}) == metrics.recall(["a"], {}) == metrics.reciprocal_rank(["a"], {}) == 0


@given(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 5), min_size=1))
def test_auc_is_the_share_of_pairs_in_order(yes: list[int], no: list[int]) -> None:
    """By ranks or pair by pair, ties counting half."""
    pairs = sum((y > n) + (y == n) / 2 for y in yes for n in no) / (len(yes) * len(no))
    assert metrics.auc(yes, no) == pytest.approx(pairs)


def test_the_threshold_keeps_the_share_it_promises() -> None:
    """95 of a hundred reach it, and the next higher score would be too high."""
    scores = [n / 100 for n in range(100)]
    assert metrics.keeping(scores, 0.95) == 0.05
    assert metrics.keeping([0.4], 0.95) == 0.4
    assert metrics.keeping([0.1, 0.9], 1.0) == 0.1


def test_an_interval_holds_its_mean_and_repeats() -> None:
    """The same numbers give the same interval."""
    found = metrics.estimate([0, 1, 1, 1, 0, 1])
    assert found.low <= found.mean <= found.high
    assert found == metrics.estimate([0, 1, 1, 1, 0, 1])
    assert metrics.difference([1, 1], [0, 0]) == metrics.Estimate(1, 1, 1)


def test_answers_are_compared_as_squad_does() -> None:
    """Articles, case and punctuation do not matter; words do."""
    assert metrics.exact_match("Der Urlaub!", ["urlaub"]) == 1
    assert metrics.answer_f1("24 Werktage im Jahr", ["24 Werktage"]) == pytest.approx(2 / 3)
    assert metrics.answer_f1("nichts", ["24"]) == 0
    assert metrics.exact_match("the U.S. (1,200)", ["US 1200"]) == 1  # evaluate-v1.1.py deletes punctuation
    assert metrics.answer_f1("a well-known man", ["well known man"]) == pytest.approx(2 / 5)


def test_a_number_is_not_held_by_a_part_of_another() -> None:
    """Marks part words, but the points and commas of a number belong to it."""
    assert metrics.holds_answer("Es sind 3.5 Millionen, im Mittel 7,25.", ["5"]) == 0
    assert metrics.holds_answer("Es sind 3.5 Millionen, im Mittel 7,25.", ["7,25"]) == 1
    assert metrics.holds_answer("In 2010–2012, before Rollo's arrival.", ["2012"]) == 1
    assert metrics.holds_answer("In 2010–2012, before Rollo's arrival.", ["Rollo"]) == 1
    assert metrics.holds_answer("§ 14/15 am 5.", ["15"]) == metrics.holds_answer("§ 14/15 am 5.", ["5"]) == 1


def test_calibration_reports_the_unseen_half() -> None:
    """Fitted on the even questions, told about the odd ones: a perfect half does not hide a bad one."""
    yes = [0.9 if n % 2 == 0 else 0.2 for n in range(40)]
    no = [0.1 if n % 2 == 0 else 0.6 for n in range(40)]
    found = calibrate(yes, no)
    assert (found.floor, found.auc, found.kept, found.refused) == (0.9, 0, 0, 1)
    with pytest.raises(PermanentError, match="20 questions"):
        calibrate(yes[:10], no)


def test_evidence_is_what_reaches_the_floor_of_its_space() -> None:
    """Nothing found is no evidence; a space that was not calibrated lets everything found pass."""
    from uuid import uuid4

    found = [Passage(uuid4(), uuid4(), uuid4(), "t", "x", (), {}, similarity=0.4, score=0.5, bm25=2.0)]
    floors = {None: True, 0.42: True, 0.43: False}
    for floor, expected in floors.items():
        space = Space(uuid4(), "use-v3-512", "use-v3", 512, floor)
        assert has_evidence(found, space) is expected
        assert has_evidence([], space) is False


def test_a_golden_set_survives_its_file(tmp_path: Path) -> None:
    """Written, appended to and read again."""
    one = golden.Question(
        id="1", question="Wie?", language="de", relevant=(golden.Relevant(document="d", passage="p"),)
    )
    assert golden.write(tmp_path / "q.jsonl", [one]) == 1
    golden.append(tmp_path / "q.jsonl", one.model_copy(update={"id": "2"}))
    assert [q.id for q in golden.read_questions(tmp_path / "q.jsonl")] == ["1", "2"]
    assert golden.read_questions(tmp_path / "q.jsonl")[0] == one


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"id": "1"}', '{"id": "1", "question": "x", "stray": 1}', '{"id": "1", "question": ""}']
)
def test_a_bad_golden_set_names_the_line(tmp_path: Path, line: str) -> None:
    """A person can find and mend it."""
    (tmp_path / "q.jsonl").write_text('{"id": "0", "question": "x"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(PermanentError, match="line 2"):
        golden.read_questions(tmp_path / "q.jsonl")


def test_cross_lingual_questions_expect_the_translated_paragraph(tmp_path: Path) -> None:
    """A German question over the English corpus expects the paragraph at the same place."""

    def file(language: str, context: str) -> Path:
        asked = {"id": "1", "question": f"{language}?", "answers": [{"text": context, "answer_start": 0}]}
        path = tmp_path / f"{language}.json"
        path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [{"context": context, "qas": [asked]}]}]}))
        return path

    texts, questions = golden.xquad(file("de", "Antwort"), file("en", "answer"), "de", "en")
    assert (texts[0].text, texts[0].language) == ("answer", "en")
    assert (questions[0].question, questions[0].answers) == ("de?", ("answer",))
    assert questions[0].relevant[0].document == texts[0].document


def test_real_collections_convert(shared_folder: Path) -> None:
    """XQuAD, Cranfield and the laws: everything that is asked for exists."""
    data = shared_folder / "data"
    texts, questions = golden.xquad(data / "xquad/xquad.de.json", data / "xquad/xquad.en.json", "de", "en")
    assert {q.relevant[0].document for q in questions} == {t.document for t in texts}
    assert len(questions) == 711
    texts, questions = golden.cranfield(data / "cranfield")
    assert (len(texts), len(questions)) == (1398, 225)
    laws = golden.known_items(sorted((data / "laws").glob("*.md")), wanted=50)
    assert len({q.relevant[0].document for q in laws}) == 50


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("Wie lange ist der Urlaub?", "de"),
        ("How long is it?", "en"),
        ("Kündigungsfrist", "de"),
        ("GmbH 2016/679", "simple"),
    ],
)
def test_the_language_of_a_question(question: str, language: str) -> None:
    """By its function words; without any it may be in every language."""
    assert language_of(question) == language


@pytest.mark.parametrize(
    "filters",
    [
        Filters(languages=("fr",)),
        Filters(collections="default"),
        Filters(sources=["x"] * 101),
        Filters(metadata={"a": {1}}),
        Filters(metadata={"a": float("nan")}),
        Filters(collections=("a\x00",)),
        Filters(metadata={"a": "\x00"}),
    ],
)
def test_a_filter_that_cannot_be_asked_is_a_typed_error(filters: Filters) -> None:
    """Before it reaches the database."""
    with pytest.raises(PermanentError):
        checked_filters(filters)


def test_indexes_are_not_built_and_dropped_in_turns() -> None:
    """Between the two sizes nothing happens."""
    from uuid import uuid4

    def corpus(size: int, indexed: bool) -> Corpus:
        return Corpus(uuid4(), uuid4(), 512, size, indexed)

    found = [corpus(20_000, False), corpus(20_000, True), corpus(8_000, True), corpus(8_000, False), corpus(100, True)]
    decided = plan(found)
    assert decided.build == found[:1]
    assert decided.drop == found[4:]


def test_wide_vectors_are_indexed_as_half_precision() -> None:
    """pgvector's index on `vector` ends at 2,000 dimensions; names fit PostgreSQL's 63 bytes."""
    from uuid import uuid4

    assert "halfvec(3072)" in search_sql(3072).text
    assert "vector(512)" in search_sql(512).text
    assert len(index_name(uuid4(), uuid4())) < 63
