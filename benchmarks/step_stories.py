"""Real runs of the agent as data: which node wrote what, for benchmarks that store the same steps in another way.

`record` answers questions with the agent itself (graph, retrieval, tools, conversation memory; only the model is
scripted) and writes down what every node gave back. The documents are this project's own prose, cut like chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict
from uuid import UUID, uuid4

from sqlalchemy import text

from functions.agent import graph
from functions.agent.answering import answer_question
from shared import database as db
from shared.completions import ToolCall
from shared.conversations.runs import ask, read_run
from shared.documents.completion import finish_version
from shared.documents.intake import receive
from shared.documents.storing import Batch, Content, NewChunk, store
from shared.documents.vectors import chunks_without_vector, store_vectors, text_hash
from shared.events import AnswerQuestion, DocumentSubmitted
from shared.fakes import FakeModels, hashed_vector
from shared.llm import Abilities
from shared.retrieval.spaces import active_space
from shared.services import Services
from shared.settings import get_settings
from shared.tenants.directory import Principal

DOCS = Path(__file__).parents[1] / "docs"
CHUNK = 1_600
"""Characters, about 400 tokens."""

FACT = "Alle Beschäftigten haben Anspruch auf 30 Arbeitstage Urlaub."
REPLY = f"„{FACT}“ [1]"
QUESTION = "Wie viele Arbeitstage Urlaub haben alle Beschäftigten?"
TURNS = 6
SEARCHES = ("Antrag im Portal", "checkpoint of a run", "vector space and campaign", "budget of a tenant")


class Story(TypedDict):
    """A run: the input of the graph, and node by node what it wrote into the state. Plain JSON."""

    name: str
    input: dict[str, Any]
    steps: list[tuple[str, dict[str, Any]]]


def record(tenant: Principal) -> list[Story]:
    """A short question, and one at the end of a long conversation that looks things up four times."""
    _index(tenant, [f"{FACT} {piece}" for piece in _prose()[:60]])
    short = _answered(tenant, FakeModels(replies=[REPLY]), None)
    conversation = _conversation(tenant, short[1])
    long = f"{FACT} " + " ".join(_prose()[1].split()[:180])
    for _ in range(TURNS - 1):
        _answered(tenant, FakeModels(replies=[f"{long} [1]"]), conversation)
    searches: list[Any] = [[ToolCall(uuid4().hex[:8], "search", {"query": words})] for words in SEARCHES]
    models = FakeModels(replies=["Wie viele Urlaubstage?", *searches, REPLY], able=Abilities(True, True))
    asked = _answered(tenant, models, conversation)
    return [_story("short question", short), _story("long conversation", asked)]


def _story(name: str, told: tuple[list[tuple[str, dict[str, Any]]], UUID]) -> Story:
    return {"name": name, "input": {"question": QUESTION}, "steps": told[0]}


def _answered(
    tenant: Principal, models: FakeModels, conversation: UUID | None
) -> tuple[list[tuple[str, dict[str, Any]]], UUID]:
    """What the nodes of a run wrote, and the run."""
    with db.tenant_session(tenant.tenant_id) as session:
        run_id = ask(session, tenant, QUESTION, conversation_id=conversation)
    told: list[tuple[str, dict[str, Any]]] = []
    nodes = dict(graph.NODES)
    try:
        graph.NODES.update({name: _told(name, node, told) for name, node in nodes.items()})
        command = AnswerQuestion(tenant_id=tenant.tenant_id, run_id=run_id)
        answer_question(command, Services(get_settings(), _models=models))
    finally:
        graph.NODES.update(nodes)
    with db.tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, run_id)
    if run is None or run.state != "answered":
        raise SystemExit(f"the recorded run was not answered: {run}")
    return told, run_id


def _told(
    name: str, node: Callable[..., dict[str, Any]], into: list[tuple[str, dict[str, Any]]]
) -> Callable[..., dict[str, Any]]:
    def telling(*args: Any) -> dict[str, Any]:
        result = node(*args)
        into.append((name, result))
        return result

    return telling


def _conversation(tenant: Principal, run_id: UUID) -> UUID:
    with db.tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, run_id)
    assert run is not None
    return run.conversation_id


def _prose() -> list[str]:
    words = " ".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md")))
    words = " ".join(words.split())
    return [words[at : at + CHUNK] for at in range(0, len(words), CHUNK)]


def _index(tenant: Principal, texts: Sequence[str]) -> None:
    submitted = DocumentSubmitted(tenant_id=tenant.tenant_id, external_id="handbook", content="")
    chunks = [NewChunk(t, text_hash((), t), 0, len(t), len(t.split()), "de", (), {}) for t in texts]
    with db.tenant_session(tenant.tenant_id) as session:
        reception = receive(session, submitted, "upstream")
    with db.tenant_session(tenant.tenant_id) as session:
        content = Content(uuid4().hex, "", 1, "text/plain", "de", "", chunks)
        store(session, reception, content, submitted.traceparent, Batch(9, 999))
    with db.tenant_session(tenant.tenant_id) as session:
        space = active_space(session, tenant.tenant_id)
        ids = [
            row[0]
            for row in session.execute(
                text("select chunk_id from rag.chunks where version_id = :v"), {"v": reception.version_id}
            )
        ]
        missing = chunks_without_vector(session, tenant.tenant_id, reception.version_id, space.space_id, ids).chunks
        vectors = [hashed_vector(t, space.dimension) for _, t in missing]
        store_vectors(session, tenant.tenant_id, space.space_id, [chunk_id for chunk_id, _ in missing], vectors)
        if not finish_version(session, tenant.tenant_id, reception.version_id):
            raise SystemExit("the handbook did not become searchable")
