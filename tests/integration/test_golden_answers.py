"""Asking a golden set: several questions at once, and documents under the names that the set uses."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from cli.golden_answers import answers_to
from cli.main import noesis
from shared.completions import ChatReply
from shared.database import tenant_session
from shared.errors import PermanentError, TransientError
from shared.events import DocumentSubmitted
from shared.fakes import FakeModels
from shared.retrieval.golden import Question
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.agent_material import GOOD
from tests.integration.search_material import index

HOLIDAY = "Alle Beschäftigten haben Anspruch auf 30 Arbeitstage Urlaub. Der Antrag wird im Portal gestellt."
QUESTIONS = [Question(id=str(n), question=f"Wie viel Urlaub haben Beschäftigte im Jahr {2000 + n}?") for n in range(6)]


@dataclass
class InPairs(FakeModels):
    """Answers only when two ask at the same time."""

    pair: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))

    def chat(self, messages: Sequence[dict[str, Any]], **_: Any) -> Iterator[str | ChatReply]:
        """The same to everyone."""
        self.pair.wait(20)
        yield ChatReply(GOOD, "fake", 1, 1)


def conversations(tenant: Principal) -> int:
    """How many the tenant has."""
    with tenant_session(tenant.tenant_id) as session:
        count: int = session.execute(text("select count(*) from core.conversations")).scalar_one()
        return count


def test_two_questions_are_under_way_at_once(tenant: Principal, fake_services: Services) -> None:
    """The answers come in the order of the questions, and no question of ours stays with the tenant."""
    index(tenant, "urlaub", HOLIDAY)
    found = list(answers_to(tenant, QUESTIONS, replace(fake_services, _models=InPairs()), parallel=2))
    assert [(given.id, given.answer) for given in found] == [(question.id, GOOD) for question in QUESTIONS]
    assert conversations(tenant) == 0


def test_models_that_cannot_be_reached_end_the_asking(tenant: Principal, fake_services: Services) -> None:
    """What has not begun is not asked; a question refused by the model counts as failed and the others go on."""
    index(tenant, "urlaub", HOLIDAY)
    models = FakeModels(failures=[PermanentError("model-refused", "No.", "Ask again."), TransientError("gone")])
    asking = answers_to(tenant, QUESTIONS, replace(fake_services, _models=models), parallel=1)
    assert next(asking).failure == "model-refused"
    with pytest.raises(TransientError):
        next(asking)
    # One may have begun before the failure was looked at.
    assert len(models.asked) <= 1
    assert conversations(tenant) == 0


def test_documents_are_submitted_under_the_names_of_golden_sets(
    tenant: Principal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A golden set names documents after their files; two of one name are refused before anything is sent."""
    sent: list[DocumentSubmitted] = []
    monkeypatch.setattr("cli.submitting.publish_all", sent.extend)
    (tmp_path / "more").mkdir()
    for name in ("xquad-00-0.txt", "more/xquad-00-1.txt"):
        (tmp_path / name).write_text("Ein Absatz.", encoding="utf-8")
    words = ["submit", str(tmp_path), "-t", tenant.tenant_slug, "--no-wait"]
    assert CliRunner().invoke(noesis, [*words, "--ids", "name"], catch_exceptions=False).exit_code == 0
    assert sorted(event.external_id for event in sent) == ["xquad-00-0", "xquad-00-1"]
    sent.clear()
    assert CliRunner().invoke(noesis, words, catch_exceptions=False).exit_code == 0
    assert sorted(event.external_id for event in sent) == sorted(str(path) for path in tmp_path.rglob("*.txt"))
    sent.clear()
    (tmp_path / "more" / "xquad-00-0.txt").write_text("Ein anderer.", encoding="utf-8")
    refused = CliRunner().invoke(noesis, [*words, "--ids", "name"])
    assert refused.exit_code == 2
    assert "the same name" in refused.output
    assert sent == []
