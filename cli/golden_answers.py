"""Real answers to a golden set: the whole graph in this process, with the models and the database as configured."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from sqlalchemy import text

from functions.agent.answering import answer_question
from shared.conversations.runs import Run, ask, read_run
from shared.database import tenant_session
from shared.errors import PermanentError, Postponed, Superseded
from shared.events import AnswerQuestion
from shared.retrieval.golden import Question
from shared.retrieval.judging import Given, Quoted
from shared.services import Services
from shared.tenants.directory import Principal


def answers_to(
    principal: Principal, questions: Sequence[Question], services: Services, parallel: int = 1
) -> Iterator[Given]:
    """Ask every question in a conversation of its own and yield its answer; the conversation is deleted afterwards.

    `parallel` questions are under way at once; the answers come in the order of the questions. What was asked to
    measure is no question of the tenant's: campaigns compare spaces on those. A run that waits for budget, price,
    provider or a person counts as failed. Raises TransientError when the models cannot be reached.
    """
    _ = services.models  # made here: two threads would make two
    with ThreadPoolExecutor(parallel) as threads:
        try:
            yield from threads.map(lambda question: _asked(principal, question, services), questions)
        finally:
            threads.shutdown(cancel_futures=True)  # after a failure, or when nobody wants the rest


def _asked(principal: Principal, question: Question, services: Services) -> Given:
    try:
        with tenant_session(principal.tenant_id) as session:
            run_id = ask(session, principal, question.question)
    except PermanentError as error:
        return Given(id=question.id, failure=error.reason)
    try:
        return _answered(principal, question, run_id, services)
    finally:
        _forget(principal, run_id)


def _answered(principal: Principal, question: Question, run_id: UUID, services: Services) -> Given:
    try:
        answer_question(AnswerQuestion(tenant_id=principal.tenant_id, run_id=run_id), services)
    except Postponed:
        pass  # the run says below what it waits for
    except Superseded:
        # The agent of a running platform was quicker than this process: its answer is as good.
        _wait(principal, run_id)
    with tenant_session(principal.tenant_id) as session:
        run = read_run(session, principal, run_id)
    if run is None:
        return Given(id=question.id, failure="deleted")
    if run.state != "answered":
        return Given(id=question.id, failure=run.reason or run.waiting_for or run.state)
    citations = _citations(principal, run)
    return Given(
        id=question.id, answer=run.answer or "", no_evidence=run.no_evidence is True, citations=tuple(citations)
    )


def _wait(principal: Principal, run_id: UUID, seconds: float = 300.0) -> None:
    """Until somebody else's run has ended or waits."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with tenant_session(principal.tenant_id) as session:
            run = read_run(session, principal, run_id)
        if run is None or run.state not in ("queued", "running"):
            return
        time.sleep(0.2)


def _citations(principal: Principal, run: Run) -> list[Quoted]:
    """The run's citations by the names that golden sets use, with the text of their chunks."""
    with tenant_session(principal.tenant_id) as session:
        rows = session.execute(
            text(
                "select d.external_id, c.quote, k.text from core.citations c "
                "join rag.documents d on d.tenant_id = c.tenant_id and d.document_id = c.document_id "
                "left join rag.chunks k on k.tenant_id = c.tenant_id and k.chunk_id = c.chunk_id "
                "where c.tenant_id = :tenant and c.run_id = :run order by c.number"
            ),
            {"tenant": principal.tenant_id, "run": run.run_id},
        ).all()
    return [Quoted(document=row.external_id, quote=row.quote, passage=row.text or "") for row in rows]


def _forget(principal: Principal, run_id: UUID) -> None:
    with tenant_session(principal.tenant_id) as session:
        session.execute(
            text(
                "delete from core.conversations c using core.runs r where c.tenant_id = :tenant "
                "and r.tenant_id = :tenant and r.run_id = :run and c.conversation_id = r.conversation_id"
            ),
            {"tenant": principal.tenant_id, "run": run_id},
        )
