"""A question becomes an answer: take the run, run or resume its graph, store the answer. Durable at every step."""

from __future__ import annotations

import logging
import time
from typing import Any
from uuid import UUID

from functions.agent.calling import ProviderClosed
from functions.agent.citations import placed
from functions.agent.journal import HandOver, Journal
from functions.agent.state import RunState
from functions.agent.wording import language_of
from functions.agent.work import Work, begin
from shared import tracing
from shared.conversations.calls import total_of
from shared.conversations.ending import fail, finish
from shared.conversations.runs import Answer, Citation, Lease, release, take_lease
from shared.conversations.waiting import Cause, hand_over, suspend, waited_since
from shared.database import tenant_session
from shared.documents.reading import was_closed
from shared.errors import PermanentError, Postponed
from shared.events import AnswerQuestion
from shared.llm import ToolCall
from shared.money.budgets import OverBudget
from shared.money.ledger import NoPrice, spent_on
from shared.services import Services

log = logging.getLogger(__name__)

MOST_CRASHES = 5
"""A run that took this many workers with it is not given to another; the same number as deliveries of a message."""

WORK_SECONDS = 400.0
"""No step begins after this in one invocation: with a step of 120 s it ends below the service's timeout of 540 s."""


def answer_question(command: AnswerQuestion, services: Services, *, seconds: float = WORK_SECONDS) -> None:
    """Bring a run to `answered` or `failed`, to `waiting`, or after `seconds` to a fresh invocation.

    Raises Superseded when the run has ended, waits, or another process works on it, and Postponed when it waits for
    budget, price or provider. Anything else that stops the work goes up after the lease was given back; the
    redelivery resumes at the last finished step.
    """
    with tenant_session(command.tenant_id) as session:
        lease = take_lease(session, command.tenant_id, command.run_id)
    tracing.annotate(run_id=lease.run_id, member_id=lease.member_id, conversation_id=lease.conversation_id)
    until = time.monotonic() + seconds
    work = begin(lease, services, Journal(lease, over=lambda: time.monotonic() >= until))
    given_back = False
    try:
        _bring_on(work)
        given_back = True
    except HandOver:
        with work.journal.held() as session:
            hand_over(session, lease)
        given_back = True
        log.info("run handed over", extra={"run_id": lease.run_id, "turn": lease.epoch})
    except PermanentError as error:
        _fail(work, error)
        given_back = True
    except (OverBudget, ProviderClosed) as pause:
        given_back = True
        _wait(work, pause)
        raise
    finally:
        if not given_back:
            with tenant_session(lease.tenant_id) as session:
                release(session, lease)


def _bring_on(work: Work) -> None:
    """Run the graph as far as it goes now: to the answer, or to a call that people must agree to."""
    lease = work.lease
    if lease.crashes > MOST_CRASHES:
        raise PermanentError(
            "run-crashes", "This question stopped its worker again and again.", "Ask it in another way."
        )
    state, asks = run_graph(work)
    if asks:
        _ask_people(work, state)
        return
    # The last step has written every event that waited; `finish` itself sees to it that the run is still ours.
    with tenant_session(lease.tenant_id) as session:
        answer = _answer(state, *_spent(session, lease))
        finish(session, lease, answer, work.journal.next_seq)
    log.info("answered", extra={"run_id": lease.run_id, "no_evidence": answer.no_evidence})


def run_graph(work: Work) -> tuple[RunState, bool]:
    """Run the graph from its last checkpoint; returns the state it ends in, and whether it waits for people."""
    # Imported late: LangGraph costs 0.85 s and 69 MB (FACTS), and tests of the parts do not need it.
    from langgraph.types import Command

    from functions.agent.checkpointer import Checkpointer
    from functions.agent.graph import build

    lease = work.lease
    fresh = lease.epoch == 1
    graph = build(Checkpointer(lease.tenant_id, work.journal.held, keep=work.journal.keep, fresh=fresh))
    config: dict[str, Any] = {"configurable": {"thread_id": str(lease.run_id)}, "recursion_limit": 10_000}
    start: Any = {"question": lease.question}
    if not fresh:
        snapshot = graph.get_state(config)
        if snapshot.created_at is not None:
            _check_sources(lease, snapshot.values)
            # Not `next`: it leaves out a node whose stored resumption died before its step was kept.
            pending = [task.name for task in snapshot.tasks]
            if not pending:
                return snapshot.values, False
            # Giving the input again would begin anew on half a state (FACTS).
            start = Command(resume=True) if "approve" in pending else None
            if start is not None and not _decided(work, snapshot.values):
                return snapshot.values, True
    state = graph.invoke(start, config, context=work, durability="sync")
    return state, bool(state.get("__interrupt__"))


def _check_sources(lease: Lease, state: RunState) -> None:
    """A run that waited, for days perhaps, does not go on with what its member may not read any more."""
    read = {UUID(passage["document_id"]) for passage in state.get("passages") or () if passage["document_id"]}
    with tenant_session(lease.tenant_id) as session:
        closed = was_closed(session, lease.tenant_id, lease.member_id, sorted(read))
    if closed:
        raise PermanentError(
            "source-closed",
            "A document that this question had read has been deleted, or you may not see it any more.",
            "Ask it again.",
        )


def _decided(work: Work, state: RunState) -> bool:
    """Whether every call that was asked about has its decision."""
    from shared.tools.approvals import decision_of  # late: most runs ask nobody

    lease = work.lease
    keys = [call["key"] for call in state["calls"] if call["verdict"] == "ask"]
    with tenant_session(lease.tenant_id) as session:
        return all(decision_of(session, lease.tenant_id, lease.run_id, key) is not None for key in keys)


def _ask_people(work: Work, state: RunState) -> None:
    """Ask for a word about each call and let the run wait, in one transaction: no decision can fall between."""
    from shared.tools.approvals import request_approval  # late: most runs ask nobody

    with work.journal.held() as session:
        for call in state["calls"]:
            if call["verdict"] == "ask":
                wanted = ToolCall(call["call_id"], call["name"], call["arguments"], call["malformed"])
                request_approval(session, work.lease, wanted, call["key"])
        suspend(session, work.lease, work.journal.next_seq, "approval")
    log.info("run waits for people", extra={"run_id": work.lease.run_id})


def _wait(work: Work, pause: Postponed) -> None:
    """Put the run to `waiting`; one that nobody paid for in a week ends with a reason."""
    cause: Cause = "provider"
    if isinstance(pause, OverBudget):
        cause = "price" if isinstance(pause, NoPrice) else "budget"
    with tenant_session(work.lease.tenant_id) as session:
        late = waited_since(session, work.lease, work.services.clock.now())
    if late:
        _fail(work, PermanentError("waited-too-long", f"The question waited a week for {cause}.", "Ask it again."))
        return
    with work.journal.held() as session:
        suspend(session, work.lease, work.journal.next_seq, cause, pause.until)
    log.info("run waits", extra={"run_id": work.lease.run_id, "cause": cause})


def _fail(work: Work, error: PermanentError) -> None:
    log.warning("run failed: %s", error.reason, extra={"run_id": work.lease.run_id})
    tracing.fail_operation(error.reason)
    with work.journal.held() as session:
        fail(session, work.lease.tenant_id, work.lease.run_id, error)


def _spent(session: Any, lease: Lease) -> tuple[Any, Any]:
    return total_of(session, lease), spent_on(session, lease.tenant_id, lease.run_id)


def _answer(state: RunState, total: Any, spent: Any) -> Answer:
    passages = {passage["number"]: passage for passage in state["passages"]}
    usage: dict[str, Any] = state.get("usage") or {}
    citations = []
    for citation in state["citations"]:
        passage = passages[citation["passage"]]
        place = placed(passage, citation["start"], citation["end"])
        citations.append(
            Citation(
                number=citation["number"],
                document_id=UUID(passage["document_id"]),
                version_id=UUID(passage["version_id"]),
                chunk_id=UUID(place.chunk_id),
                title=passage["title"],
                heading_path=place.heading_path,
                page=place.page,
                quote=place.quote,
                quote_start=place.start,
                quote_end=place.end,
            )
        )
    return Answer(
        text=state["answer"],
        no_evidence=state["no_evidence"],
        citations=tuple(citations),
        model=str(usage.get("model", "")),
        input_tokens=total.input_tokens,
        output_tokens=total.output_tokens,
        cost_eur=spent.eur,
        partial=bool(state.get("partial")),
        language=language_of(state["question"]),
        prompts=" ".join(total.prompts),
        space_id=UUID(state["space_id"]) if state.get("space_id") else None,
        findings=tuple(state.get("findings") or ()),
    )
