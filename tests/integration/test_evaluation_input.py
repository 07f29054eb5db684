"""What an evaluation is given may be wrong; then it says so instead of measuring something else."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.main import noesis
from shared.database import operator_session
from shared.errors import PermanentError
from shared.fakes import FakeBus
from shared.retrieval import golden, metrics
from shared.retrieval.golden import Question, Relevant
from shared.retrieval.spaces import space_by_name
from shared.services import Services, services
from shared.tenants.directory import Principal
from tests.integration.search_material import index

QUESTION = Question(id="1", question="Wie lang ist die Frist?", relevant=(Relevant(document="frist"),))


@pytest.fixture(autouse=True)
def _fakes(bus: FakeBus, fake_services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands use the twins."""
    monkeypatch.setattr("cli.evaluating.services", lambda: fake_services)
    monkeypatch.setattr("cli.context.services", lambda: fake_services)
    services.cache_clear()


@pytest.fixture
def corpus(tenant: Principal) -> Principal:
    """A tenant with a document that answers."""
    index(tenant, "frist", "Die Frist beträgt drei Monate.")
    return tenant


def evaluate(tenant: Principal, *words: object) -> Result:
    """Run `noesis eval …` for a tenant; raises what the command line would tell."""
    said = ["eval", *map(str, words), "-t", tenant.tenant_slug]
    return CliRunner().invoke(noesis, said, catch_exceptions=False)


def written(path: Path, *questions: Question) -> Path:
    """A golden set of these questions."""
    golden.write(path, questions)
    return path


@pytest.mark.parametrize(
    "setting", ["by_rank=yes", "candidates=0", "breadth=-1", "effort=5000", "lexical_weight=nan", "foreign_weight=-1"]
)
def test_a_setting_that_no_search_can_have_is_refused(corpus: Principal, tmp_path: Path, setting: str) -> None:
    """Else the same search would be compared with itself, or the database would end it with an error of its own."""
    with pytest.raises(PermanentError) as caught:
        evaluate(corpus, "run", written(tmp_path / "q.jsonl", QUESTION), "--against", setting)
    assert caught.value.reason == "bad-setting"


def test_a_question_counts_once(corpus: Principal, tmp_path: Path) -> None:
    """The same id again is an error that names both lines."""
    with pytest.raises(PermanentError, match="line 2: the id '1' is that of line 1"):
        evaluate(corpus, "run", written(tmp_path / "q.jsonl", QUESTION, QUESTION))


def test_a_golden_set_may_begin_with_a_byte_order_mark(corpus: Principal, tmp_path: Path) -> None:
    """As editors on Windows write it."""
    path = written(tmp_path / "q.jsonl", QUESTION)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert "1.000" in evaluate(corpus, "run", path).output


def test_a_grade_without_an_end_is_refused(tmp_path: Path) -> None:
    """Infinity divided by itself is no measure."""
    path = tmp_path / "q.jsonl"
    path.write_text('{"id": "1", "question": "x", "relevant": [{"document": "a", "grade": 1e999}]}\n')
    with pytest.raises(PermanentError, match=r"line 1: relevant\.0\.grade"):
        golden.read_questions(path)


def test_expected_documents_that_are_not_there_are_named(corpus: Principal, tmp_path: Path) -> None:
    """A measure of 0 is told apart from a corpus that was submitted under other names."""
    other = QUESTION.model_copy(update={"id": "2", "relevant": (Relevant(document="frist.txt"),)})
    assert "not searchable" not in evaluate(corpus, "run", written(tmp_path / "q.jsonl", QUESTION)).output
    said = evaluate(corpus, "run", written(tmp_path / "q.jsonl", QUESTION, other)).output
    assert "1 expected documents are not searchable, frist.txt for one" in said


def test_a_golden_set_that_expects_nothing_is_not_measured_as_nothing(corpus: Principal, tmp_path: Path) -> None:
    """Questions without evidence are for `calibrate` and `answers`: a recall of 0 would be no finding."""
    with pytest.raises(PermanentError, match="no question expects a document"):
        evaluate(corpus, "run", written(tmp_path / "q.jsonl", QUESTION.model_copy(update={"relevant": ()})))


def test_letters_are_the_same_however_they_are_composed() -> None:
    """A golden set that was written on a Mac finds what it expects."""
    umlauts = unicodedata.normalize("NFD", "Kündigungsfrist für Löschgeräte")
    assert golden.contains("Die Kündigungsfrist für\u00a0Löschgeräte beträgt", umlauts)
    assert metrics.exact_match(umlauts, ["Kündigungsfrist für Löschgeräte"]) == 1
    assert metrics.holds_answer("Die Kündigungsfrist für Löschgeräte.", [umlauts]) == 1


def test_a_floor_is_not_fitted_to_files_that_were_mixed_up(corpus: Principal, tmp_path: Path) -> None:
    """The floor belongs to everybody who uses the space: nothing is stored."""
    yes = written(tmp_path / "yes.jsonl", *(QUESTION.model_copy(update={"id": str(n)}) for n in range(40)))
    no = written(
        tmp_path / "no.jsonl",
        *(Question(id=str(n), question=f"Wer gewann {1900 + n}?") for n in range(40)),
    )
    with pytest.raises(PermanentError, match="question '0' has nothing relevant"):
        evaluate(corpus, "calibrate", no, yes, "--store")
    with operator_session() as operator:
        assert space_by_name(operator, "fake-64").evidence_floor is None
    assert "floor" in evaluate(corpus, "calibrate", yes, no).output


def test_a_collection_of_another_form_is_no_stack_trace(tmp_path: Path) -> None:
    """What is no XQuAD says so, in a line."""
    (tmp_path / "xquad.de.json").write_text("{}")
    words = ["eval", "convert", "xquad", str(tmp_path), str(tmp_path / "out")]
    with pytest.raises(PermanentError, match="no collection of the kind xquad"):
        CliRunner().invoke(noesis, words, catch_exceptions=False)
