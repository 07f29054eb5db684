"""A question becomes an answer: take the run, run or resume its graph, store the answer. Durable at every step."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from functions.agent.citations import page_at
from functions.agent.state import RunState
from shared.conversations.runs import Answer, Citation, Lease, fail, finish, hold, release, take_lease
from shared.database import tenant_session
from shared.errors import PermanentError
from shared.events import AnswerQuestion
from shared.services import Services

log = logging.getLogger(__name__)

MOST_CRASHES = 5
"""A run that took this many workers with it is not given to another; the same number as deliveries of a message."""


def answer_question(command: AnswerQuestion, services: Services) -> None:
    """Bring a run to `answered` or `failed`.

    Raises Superseded when the run has ended or another process works on it. Anything else that stops the work goes up
    after the lease was given back; the redelivery resumes at the last finished step.
    """
    with tenant_session(command.tenant_id) as session:
        lease = take_lease(session, command.tenant_id, command.run_id)
    try:
        answer, seq = _work(lease, services)
    except PermanentError as error:
        log.warning("run failed: %s", error.reason, extra={"run_id": command.run_id})
        with tenant_session(command.tenant_id) as session:
            fail(session, command.tenant_id, command.run_id, error)
        return
    with tenant_session(command.tenant_id) as session:
        finish(session, lease, answer, seq)
    log.info("answered", extra={"run_id": command.run_id, "no_evidence": answer.no_evidence})


def _work(lease: Lease, services: Services) -> tuple[Answer, int]:
    """Run the graph; whatever stops it, the lease is given back, so that the next delivery need not wait."""
    if lease.crashes > MOST_CRASHES:
        raise PermanentError(
            "run-crashes", "This question stopped its worker again and again.", "Ask it in another way."
        )
    finished = False
    try:
        found = run_graph(lease, services)
        finished = True
    finally:
        if not finished:
            with tenant_session(lease.tenant_id) as session:
                release(session, lease)
    return found


def run_graph(lease: Lease, services: Services) -> tuple[Answer, int]:
    """Run the graph from its last checkpoint; returns the answer and the number for the last event."""
    # Imported late: LangGraph costs 0.85 s and 69 MB (FACTS), and tests of the parts do not need it.
    from functions.agent.checkpointer import Checkpointer
    from functions.agent.graph import build
    from functions.agent.journal import Journal
    from functions.agent.nodes import Nodes

    journal = Journal(lease)
    checkpointer = Checkpointer(lease.tenant_id, guard=lambda session: hold(session, lease))
    graph = build(Nodes(lease, services, journal), checkpointer)
    config = {"configurable": {"thread_id": str(lease.run_id)}}
    snapshot = graph.get_state(config)
    if snapshot.created_at is None:
        state = graph.invoke({"question": lease.question}, config, durability="sync")
    elif snapshot.next:
        # Giving the input again would begin anew on half a state (FACTS).
        state = graph.invoke(None, config, durability="sync")
    else:
        state = snapshot.values
    return _answer(state), journal.next_seq


def _answer(state: RunState) -> Answer:
    passages = {passage["number"]: passage for passage in state["passages"]}
    usage: dict[str, Any] = state.get("usage") or {}
    citations = []
    for citation in state["citations"]:
        passage = passages[citation["passage"]]
        citations.append(
            Citation(
                number=citation["number"],
                document_id=UUID(passage["document_id"]),
                version_id=UUID(passage["version_id"]),
                chunk_id=UUID(passage["chunk_id"]),
                title=passage["title"],
                heading_path=tuple(passage["heading_path"]),
                page=page_at(passage["page_starts"], citation["start"]),
                quote=citation["quote"],
                quote_start=citation["start"],
                quote_end=citation["end"],
            )
        )
    return Answer(
        text=state["answer"],
        no_evidence=state["no_evidence"],
        citations=tuple(citations),
        model=str(usage.get("model", "")),
        input_tokens=int(usage.get("input", 0)),
        output_tokens=int(usage.get("output", 0)),
    )
