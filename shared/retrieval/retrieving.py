"""From a question to passages that answer it: embed, search, re-rank, context. What the agent and the doors call."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from uuid import UUID

from shared.database import tenant_session
from shared.llm import Models
from shared.retrieval.context import with_context
from shared.retrieval.evidence import Evidence, weigh
from shared.retrieval.passages import Passage
from shared.retrieval.paying import Payer, question_vectors
from shared.retrieval.questions import Filters, checked_filters, checked_question
from shared.retrieval.reranking import BUNDLED, candidates_wanted, improved, paid
from shared.retrieval.search import Diagnostics, search_explained
from shared.retrieval.spaces import Space, active_space
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: a member of a tenant, perhaps in a run, at a moment."""

    tenant_id: UUID
    member_id: UUID
    now: datetime
    run_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """How much is wanted: `top_k` passages, widened by their context up to `context_tokens` (0: as they are).

    `rerank` None does as RERANK_MODEL says.
    """

    top_k: int = 5
    context_tokens: int = 0
    rerank: bool | None = None
    filters: Filters = field(default_factory=Filters)


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Passages, best first, what they are worth as evidence, and how they were found.

    `reranking` is `off`, the model that did it, or `failed: …` with the reason: then the order is that of the search.
    `stages` are milliseconds of embed, search, rerank, context as the caller sees them.
    """

    passages: list[Passage]
    evidence: Evidence
    space: Space
    diagnostics: Diagnostics
    reranking: str
    stages: dict[str, float]


def retrieve(models: Models, settings: Settings, asker: Asker, question: str, wanted: Wanted) -> Retrieved:
    """The passages that answer a question best, among what the asker may see.

    Opens its own sessions, one after the other, and none while a model works. A re-ranking that fails costs order, not
    the answer. Raises like `search_explained` and `question_vectors`.
    """
    stages: dict[str, float] = {}
    asked = checked_question(question)
    filters = checked_filters(wanted.filters)
    if wanted.rerank is False:
        settings = settings.model_copy(update={"rerank_model": ""})
    payer = Payer(asker.tenant_id, settings.noesis_stage, asker.now, asker.run_id)
    with tenant_session(asker.tenant_id) as session:
        space = active_space(session, asker.tenant_id)
    with _timed(stages, "embed"):
        vector = question_vectors(models, payer, space, [asked])[0]
    most = candidates_wanted(settings, wanted.top_k)
    with _timed(stages, "search"), tenant_session(asker.tenant_id) as session:
        found = search_explained(
            session, asker.tenant_id, asker.member_id, space, asked, vector, top_k=most, filters=filters
        )
    passages, evidence, reranking = found.passages, found.evidence, "off"
    if settings.rerank_model:
        with _timed(stages, "rerank"):
            judge = partial(paid, models, payer)
            passages, reranking = improved(models, settings, space, asked, passages, judge)
        evidence = weigh(passages, space) if reranking == BUNDLED else evidence
    passages = passages[: wanted.top_k]
    if wanted.context_tokens:
        with _timed(stages, "context"), tenant_session(asker.tenant_id) as session:
            passages = with_context(session, asker.tenant_id, passages, wanted.context_tokens)
    return Retrieved(passages, evidence, space, found.diagnostics, reranking, stages)


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    stages[name] = round((time.perf_counter() - started) * 1000, 2)
