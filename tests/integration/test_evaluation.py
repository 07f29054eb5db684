"""`noesis eval`: search and answers measured on golden sets, against what is really indexed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from cli.main import noesis
from functions.agent.answering import answer_question
from shared.conversations.feedback import give_feedback
from shared.conversations.runs import ask
from shared.database import operator_session, tenant_session
from shared.errors import PermanentError
from shared.events import AnswerQuestion
from shared.fakes import FakeModels
from shared.rerankings import Reranked, UnusableRanking
from shared.retrieval import golden
from shared.retrieval.golden import Question, Relevant
from shared.retrieval.judging import Given
from shared.retrieval.spaces import ensure_space
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.search_material import index

HOLIDAY = "Alle Beschäftigten haben Anspruch auf 30 Arbeitstage Urlaub. Der Antrag wird im Portal gestellt."
ASKED = "Wie viele Arbeitstage Urlaub haben Beschäftigte?"
QUOTED = "„Alle Beschäftigten haben Anspruch auf 30 Arbeitstage Urlaub.“ [1]"


@pytest.fixture
def models(fake_services: Services, monkeypatch: pytest.MonkeyPatch) -> FakeModels:
    """The models of the commands, scripted."""
    monkeypatch.setattr("cli.evaluating.services", lambda: fake_services)
    monkeypatch.setenv("COLUMNS", "200")
    assert isinstance(fake_services.models, FakeModels)
    return fake_services.models


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """One question with an answer and one without."""
    path = tmp_path / "questions.jsonl"
    relevant = (Relevant(document="urlaub", passage="30 Arbeitstage"),)
    known = Question(id="1", question=ASKED, language="de", relevant=relevant, answers=("30 Arbeitstage",))
    golden.write(path, [known, Question(id="2", question="Wer gewann die Weltmeisterschaft?", language="de")])
    return path


def evaluate(tenant: Principal, *arguments: str | Path) -> dict[str, list[str]]:
    """Run `noesis eval …`; the lines of its table by their first cell."""
    words = [str(argument) for argument in arguments]
    result = CliRunner().invoke(noesis, ["eval", *words, "-t", tenant.tenant_slug], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.output.splitlines() if "│" in line]
    return {row[0]: row[1:] for row in rows} | {"output": [result.output]}


def conversations(tenant: Principal) -> int:
    """How many the tenant has."""
    with tenant_session(tenant.tenant_id) as session:
        count: int = session.execute(text("select count(*) from core.conversations")).scalar_one()
        return count


def test_answers_are_asked_judged_and_forgotten(
    tenant: Principal, models: FakeModels, questions: Path, tmp_path: Path
) -> None:
    """The whole graph answers; the measures are those of its answers; no question of ours stays with the tenant."""
    index(tenant, "urlaub", HOLIDAY)
    models.replies = [QUOTED, "NO_EVIDENCE"]
    saved = tmp_path / "saved.jsonl"
    table = evaluate(tenant, "answers", questions, "--save", saved)
    whole = "1.000 (1.000, 1.000)"
    for measure in ("holds", "citation precision", "proven", "answered", "refused"):
        assert table[measure] == ["1", whole], measure
    assert table["exact"][1].startswith("0.000")
    first, second = golden.read_items(Given, saved)
    assert (first.no_evidence, second.no_evidence) == (False, True)
    assert (first.citations[0].document, first.citations[0].passage) == ("urlaub", HOLIDAY)
    assert conversations(tenant) == 0


def test_saved_answers_are_judged_beside_others(
    tenant: Principal, models: FakeModels, questions: Path, tmp_path: Path
) -> None:
    """Without asking anything; the differences are paired."""
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    golden.write(good, [Given(id="1", answer="30 Arbeitstage"), Given(id="2", no_evidence=True)])
    golden.write(bad, [Given(id="1", answer="40 Tage"), Given(id="2", answer="Deutschland")])
    table = evaluate(tenant, "answers", questions, "--answers", good, "--against", bad)
    for measure in ("exact", "holds", "refused"):
        assert [cell[:6].strip() for cell in table[measure][1:]] == ["1.000", "0.000", "+1.000"], measure
    assert table["proven"][-1].startswith("+0.000")
    assert models.asked == []


def test_a_question_that_is_not_answered_is_counted(
    tenant: Principal, models: FakeModels, questions: Path, tmp_path: Path
) -> None:
    """By the reason of its run; the others are asked all the same."""
    index(tenant, "urlaub", HOLIDAY)
    models.failures = [PermanentError("model-refused", "No.", "Ask again.")]
    models.replies = [QUOTED, "NO_EVIDENCE"]
    output = evaluate(tenant, "answers", questions)["output"][0]
    assert "Not answered: 1 model-refused" in output
    assert conversations(tenant) == 0


def test_search_is_measured_in_two_spaces_side_by_side(tenant: Principal, models: FakeModels, questions: Path) -> None:
    """In a space that has no vectors yet nothing is found: the difference is the whole measure."""
    index(tenant, "urlaub", HOLIDAY)
    with operator_session() as operator:
        other = ensure_space(operator, "other", 16).name
    table = evaluate(tenant, "run", questions, "--against-space", other)
    assert table["fake-64"][0].startswith("1.000")
    assert table[other][0].startswith("0.000")
    assert table["difference"][0].startswith("-1.000")
    with_setting = evaluate(tenant, "run", questions, "--against", "lexical_weight=0.2")
    assert with_setting["difference"][0].startswith("+0.000")


@pytest.fixture
def far_down(tenant: Principal, tmp_path: Path) -> Path:
    """A question that one passage repeats as it stands, far behind a dozen short ones with its rare words."""
    for number in range(12):
        index(tenant, f"kurz-{number}", f"Arbeitstage, Urlaub, Beschäftigte {number}")
    index(tenant, "urlaub", f"{ASKED} " + " ".join(f"Anlage{number}" for number in range(150)))
    path = tmp_path / "far.jsonl"
    golden.write(path, [Question(id="1", question=ASKED, language="de", relevant=(Relevant(document="urlaub"),))])
    return path


def test_search_is_measured_beside_itself_re_ranked(
    tenant: Principal, fake_services: Services, models: FakeModels, far_down: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RERANK_MODEL orders more candidates than the ten that count, each shown once; the difference is paired."""
    chosen = fake_services.settings.model_copy(update={"rerank_model": "hosted/judge"})
    monkeypatch.setattr("cli.evaluating.services", lambda: replace(fake_services, settings=chosen))
    table = evaluate(tenant, "run", far_down, "--rerank")
    assert table["fake-64"][0].startswith("0.000")
    assert table["fake-64 re-ranked by hosted/judge"][0].startswith("1.000")
    assert table["difference"][0].startswith("+1.000")
    assert len(models.reranked) == 13


def test_the_bundled_reranker_is_measured_where_none_is_set(
    tenant: Principal, models: FakeModels, far_down: Path
) -> None:
    """Whether to turn it on is what the measurement is for; it corrects, so a clear lead of search stays."""
    table = evaluate(tenant, "run", far_down, "--rerank", "--against", "lexical_weight=0.02")
    assert "fake-64 lexical_weight=0.02 re-ranked by sentences" in table
    assert len(models.reranked) == 13


def test_a_reranker_that_fails_is_not_measured_as_one_that_does_not_help(
    tenant: Principal, models: FakeModels, far_down: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a search it costs the order; here it would be a wrong figure."""

    def unusable(question: str, documents: Sequence[str], *, model: str) -> Reranked:
        raise UnusableRanking("One document was judged twice.", 0)

    monkeypatch.setattr(models, "rerank", unusable)
    with pytest.raises(UnusableRanking):
        evaluate(tenant, "run", far_down, "--rerank")


def test_a_golden_set_grows_from_feedback(
    tenant: Principal, models: FakeModels, fake_services: Services, tmp_path: Path
) -> None:
    """What a member found good becomes a question that search is measured on; twice adds nothing."""
    index(tenant, "urlaub", HOLIDAY)
    for _ in range(2):
        models.replies = [QUOTED]
        with tenant_session(tenant.tenant_id) as session:
            run_id = ask(session, tenant, ASKED)
        answer_question(AnswerQuestion(tenant_id=tenant.tenant_id, run_id=run_id), fake_services)
        with tenant_session(tenant.tenant_id) as session:
            give_feedback(session, tenant, run_id, "up")
    path = tmp_path / "grown.jsonl"
    assert "1 questions, 1 new" in evaluate(tenant, "grow", path)["output"][0]
    assert "1 questions, 0 new" in evaluate(tenant, "grow", path)["output"][0]
    (question,) = golden.read_questions(path)
    assert question.relevant[0].document == "urlaub"
    assert evaluate(tenant, "run", path)["fake-64"][0].startswith("1.000")


def test_xquad_gives_questions_with_and_without_evidence(
    tenant: Principal, models: FakeModels, shared_folder: Path, tmp_path: Path
) -> None:
    """With articles held out: their questions are the unanswerable ones, and no document of theirs is written."""
    words = ["eval", "convert", "xquad", str(shared_folder / "data" / "xquad"), str(tmp_path), "--hold-out", "4"]
    assert CliRunner().invoke(noesis, words, catch_exceptions=False).exit_code == 0
    known = golden.read_questions(tmp_path / "questions.jsonl")
    unanswerable = golden.read_questions(tmp_path / "unanswerable.jsonl")
    file = shared_folder / "data" / "xquad" / "xquad.de.json"
    everything = {question.question for question in golden.xquad(file, file, "de", "de")[1]}
    assert {question.question for question in (*known, *unanswerable)} == everything
    assert 0.1 < len(unanswerable) / len(everything) < 0.4
    assert all(question.relevant for question in known)
    assert not any(question.relevant for question in unanswerable)
    files = {path.stem for path in (tmp_path / "corpus").iterdir()}
    assert files == {relevant.document for question in known for relevant in question.relevant}
