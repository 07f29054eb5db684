"""A run's life: resumed, handed over, cancelled, waited for, judged; by one worker at a time."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from functions.agent.answering import answer_question
from shared.completions import ChatReply
from shared.conversations.runs import RunEvent, take_lease
from shared.conversations.waiting import cancel, wake_runs
from shared.database import operator_session, tenant_session
from shared.errors import Postponed, Superseded
from shared.events import AnswerQuestion
from shared.fakes import FakeBus, FakeModels
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.agent_material import GOOD, booked, ended, models_of
from tests.integration.test_answering import HOLIDAY, index, put

RELEASED = json.loads((Path(__file__).parent / "data/checkpoints-0.1.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("before", list(RELEASED))
def test_a_run_that_an_earlier_release_began_is_finished(
    tenant: Principal, fake_services: Services, before: str
) -> None:
    """Its stored steps are read as they are: names of nodes and keys of the state are wire formats."""
    index(tenant, "urlaub", HOLIDAY)
    stored = RELEASED[before]
    command = put(tenant, stored["question"])
    ids = {"tenant": tenant.tenant_id, "thread": str(command.run_id)}
    with operator_session() as session:
        for row in stored["checkpoints"]:
            session.execute(
                text(
                    "insert into core.checkpoints (tenant_id, thread_id, checkpoint_ns, checkpoint_id, parent_id, "
                    "kind, checkpoint, metadata) values (:tenant, :thread, :checkpoint_ns, :checkpoint_id, "
                    ":parent_id, :kind, :checkpoint, cast(:metadata as jsonb))"
                ),
                ids
                | row
                | {"checkpoint": base64.b64decode(row["checkpoint"]), "metadata": json.dumps(row["metadata"])},
            )
        for row in stored["writes"]:
            session.execute(
                text(
                    "insert into core.checkpoint_writes (tenant_id, thread_id, checkpoint_ns, checkpoint_id, task_id, "
                    "task_path, position, channel, kind, value) values (:tenant, :thread, :checkpoint_ns, "
                    ":checkpoint_id, :task_id, :task_path, :position, :channel, :kind, :value)"
                ),
                ids | row | {"value": base64.b64decode(row["value"])},
            )
        session.execute(text("update core.runs set epoch = 1 where run_id = :run"), {"run": command.run_id})
    models_of(fake_services).replies = [GOOD]
    answer_question(command, fake_services)
    run, _ = ended(tenant, command.run_id)
    assert run.state == "answered"
    assert run.no_evidence is (before == "before give_up")
    assert models_of(fake_services).embedded == ([stored["question"]] if before == "before retrieve" else [])
    assert len(models_of(fake_services).asked) == (before in ("before retrieve", "before generate"))


def test_only_the_last_step_is_kept(tenant: Principal, fake_services: Services) -> None:
    """Steps hold passages: what is not needed to resume is not stored."""
    index(tenant, "urlaub", HOLIDAY)
    command = put(tenant)
    models_of(fake_services).replies = [GOOD]
    answer_question(command, fake_services)
    with tenant_session(tenant.tenant_id) as session:
        counts = [
            session.execute(
                text(f"select count(*) from core.{table} where thread_id = :run"), {"run": str(command.run_id)}
            ).scalar_one()
            for table in ("checkpoints", "checkpoint_writes")
        ]
    assert counts == [1, 0]


def test_a_run_is_cancelled_while_the_model_streams(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """The next piece notices; what was streamed is booked, nothing stays reserved, everybody is told."""
    index(tenant, "urlaub", HOLIDAY)
    command = put(tenant)
    closed = []

    class Slow(FakeModels):
        def chat(self, messages: Sequence[dict[str, Any]], **_: Any) -> Iterator[str | ChatReply]:
            try:
                yield "„Alle "
                with tenant_session(tenant.tenant_id) as session:
                    assert cancel(session, tenant, command.run_id)
                while True:
                    yield "Beschäftigten "
            finally:
                closed.append(True)

    with pytest.raises(Superseded):
        answer_question(command, replace(fake_services, _models=Slow()))
    run, events = ended(tenant, command.run_id)
    assert (run.state, events[-1].kind) == ("cancelled", "cancelled")
    assert closed == [True]
    tokens, output, _, reserved = booked(tenant, command.run_id)
    assert (tokens > 6, output > 0, reserved) == (True, True, 0)
    assert bus.names()[-1] == "answer-ready"
    with tenant_session(tenant.tenant_id) as session:
        assert not cancel(session, tenant, command.run_id)
        with pytest.raises(LookupError):
            cancel(session, replace(tenant, member_id=command.run_id), command.run_id)


@pytest.mark.parametrize("node", ["contextualise", "retrieve", "reason", "generate", "verify", "answer"])
def test_a_run_is_cancelled_at_every_node(
    tenant: Principal, fake_services: Services, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    """Whatever the worker does when the word comes, its next write is refused and the run stays cancelled."""
    from functions.agent import graph

    index(tenant, "urlaub", HOLIDAY)
    models_of(fake_services).replies = [GOOD]
    command = put(tenant)
    real = graph.NODES[node]

    def cancelled(work: Any, state: Any) -> dict[str, Any]:
        with tenant_session(tenant.tenant_id) as session:
            cancel(session, tenant, command.run_id)
        return real(work, state)

    monkeypatch.setitem(graph.NODES, node, cancelled)
    with pytest.raises(Superseded):
        answer_question(command, fake_services)
    run, events = ended(tenant, command.run_id)
    assert run.state == "cancelled"
    assert events[-1].kind == "cancelled"
    assert booked(tenant, command.run_id)[3] in (0, None)
    with pytest.raises(Superseded):
        answer_question(command, fake_services)


def test_a_waiting_run_is_cancelled_too(tenant: Principal, fake_services: Services) -> None:
    """Nobody need hold it; what wakes it later finds it ended."""
    index(tenant, "urlaub", HOLIDAY)
    command = put(tenant)
    models_of(fake_services).failures = [Postponed(fake_services.clock.now() + timedelta(hours=1), "busy")]
    with pytest.raises(Postponed):
        answer_question(command, fake_services)
    with tenant_session(tenant.tenant_id) as session:
        assert cancel(session, tenant, command.run_id)
        assert wake_runs(session, tenant.tenant_id, ["provider"]) == 0


def test_a_long_run_is_handed_over_to_a_fresh_invocation(
    tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """No step begins after the deadline; each invocation commands the next, and no step or call is repeated."""
    index(tenant, "urlaub", HOLIDAY)
    models = models_of(fake_services)
    models.replies = [GOOD]
    command = put(tenant)
    turns = 0
    while ended(tenant, command.run_id)[0].state != "answered":
        turns += 1
        # With no time at all every invocation would only hand over: one step each.
        _one_step(command, fake_services)
    assert turns > 4
    assert (len(models.asked), len(models.embedded)) == (1, 1)
    assert bus.names().count("answer-question") == turns
    assert bus.names().count("answer-ready") == 1
    run, events = ended(tenant, command.run_id)
    assert run.answer == GOOD
    assert [e.data["name"] for e in events if e.kind == "step"] == ["retrieve", "generate", "verify"]


def _one_step(command: AnswerQuestion, services: Services) -> None:
    """An invocation whose time is over after its first step."""
    from unittest.mock import patch

    from functions.agent.journal import Journal

    begun = []
    begin = Journal.begin

    def counted(self: Journal) -> None:
        begun.append(1)
        self._over = lambda: len(begun) > 1
        begin(self)

    with patch.object(Journal, "begin", counted):
        answer_question(command, services)


def test_two_workers_at_once_answer_once(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """Both get the message at the same moment: one takes the run, the other is told."""
    import threading

    index(tenant, "urlaub", HOLIDAY)
    command = put(tenant)
    models_of(fake_services).replies = [GOOD]
    outcomes: list[str] = []
    barrier = threading.Barrier(2)

    def deliver() -> None:
        barrier.wait(60)
        try:
            answer_question(command, fake_services)
            outcomes.append("answered")
        except Superseded:
            outcomes.append("superseded")

    threads = [threading.Thread(target=deliver) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == ["answered", "superseded"]
    assert len(models_of(fake_services).asked) == 1
    assert bus.names().count("answer-ready") == 1


def test_a_step_is_kept_only_by_who_holds_the_run(make_tenant: Callable[..., Principal], bus: FakeBus) -> None:
    """A later epoch, another tenant, a cancelled run: refused in the write itself, and nothing of it is there."""
    from shared.conversations.steps import Step, keep

    one, two = make_tenant(), make_tenant()
    command = put(one)
    with tenant_session(one.tenant_id) as session:
        lease = take_lease(session, one.tenant_id, command.run_id)
    step = Step(str(command.run_id), "", "1", None, "msgpack", b"x", "{}")
    events = [RunEvent(lease.next_seq, "step", {"name": "retrieve"})]
    for wrong in (replace(lease, epoch=0), replace(lease, tenant_id=two.tenant_id)):
        with pytest.raises(Superseded):
            keep(wrong, events, step)
    keep(lease, events, step)
    keep(lease, [], replace(step, step="2", parent="1"))
    with operator_session() as session:
        rows = session.execute(
            text("select tenant_id, checkpoint_id from core.checkpoints where thread_id = :r"),
            {"r": str(command.run_id)},
        )
        assert [tuple(row) for row in rows] == [(one.tenant_id, "2")]
    assert [event.data for event in ended(one, command.run_id)[1]] == [{"name": "retrieve"}]
    with tenant_session(one.tenant_id) as session:
        cancel(session, one, command.run_id)
    with pytest.raises(Superseded):
        keep(lease, [], step)


def test_the_sweep_wakes_what_waited_for_a_time(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """The postponed command was lost: two minutes after its time the run is commanded again, and goes on."""
    from functions.maintenance.jobs.sweep import _runs_without_worker

    index(tenant, "urlaub", HOLIDAY)
    command = put(tenant)
    models_of(fake_services).failures = [Postponed(fake_services.clock.now() + timedelta(hours=1), "busy")]
    with pytest.raises(Postponed):
        answer_question(command, fake_services)
    with operator_session() as session:
        assert command.run_id not in [row[1] for row in _runs_without_worker(session)]
        session.execute(
            text("update core.runs set waiting_until = now() - interval '3 minutes' where run_id = :r"),
            {"r": command.run_id},
        )
        session.execute(text("delete from core.provider_gates"))
        assert command.run_id in [row[1] for row in _runs_without_worker(session)]
    models_of(fake_services).replies = [GOOD]
    answer_question(command, fake_services)
    assert ended(tenant, command.run_id)[0].state == "answered"


def test_a_question_that_waited_a_week_ends_with_a_reason(tenant: Principal, fake_services: Services) -> None:
    """Nobody waits longer; what has ended is told."""
    command = put(tenant)
    with operator_session() as session:
        session.execute(
            text("update core.runs set created_at = now() - interval '8 days' where run_id = :r"), {"r": command.run_id}
        )
    models_of(fake_services).failures = [Postponed(fake_services.clock.now() + timedelta(hours=1), "busy")]
    with pytest.raises(Postponed):
        answer_question(command, fake_services)
    run, _ = ended(tenant, command.run_id)
    assert (run.state, run.reason) == ("failed", "waited-too-long")


def test_good_answers_become_golden_questions(tenant: Principal, fake_services: Services, tmp_path: Path) -> None:
    """Feedback is kept against what was cited and the space; what was found good can be evaluated."""
    from click.testing import CliRunner

    from cli.main import noesis
    from shared.conversations.feedback import give_feedback, recent_feedback
    from shared.retrieval.golden import read_questions

    index(tenant, "urlaub", HOLIDAY)
    models_of(fake_services).replies = [GOOD, GOOD]
    good, bad = put(tenant), put(tenant)
    for command in (good, bad):
        answer_question(command, fake_services)
    with tenant_session(tenant.tenant_id) as session:
        give_feedback(session, tenant, good.run_id, "up", "genau")
        give_feedback(session, tenant, bad.run_id, "down")
        words = recent_feedback(session, tenant.tenant_id)
    assert {word.run_id: word.rating for word in words} == {good.run_id: "up", bad.run_id: "down"}
    assert all(word.space_id and len(word.chunk_ids) == 1 for word in words)
    path = tmp_path / "golden.jsonl"
    result = CliRunner().invoke(noesis, ["feedback", "export", str(path), "--tenant", tenant.tenant_slug])
    assert result.exit_code == 0, result.output
    (question,) = read_questions(path)
    assert question.relevant[0].document == "urlaub"
    assert (question.relevant[0].passage or "") in HOLIDAY
    assert question.language == "de"


def test_a_run_says_which_prompts_it_used(tenant: Principal, fake_services: Services) -> None:
    """Name, version and the beginning of the text's hash."""
    from functions.agent.prompts import prompt

    index(tenant, "urlaub", HOLIDAY)
    models_of(fake_services).replies = [GOOD]
    command = put(tenant)
    answer_question(command, fake_services)
    with operator_session() as session:
        used = session.execute(
            text("select prompts from core.runs where run_id = :r"), {"r": command.run_id}
        ).scalar_one()
    assert used == prompt("answer").tag
