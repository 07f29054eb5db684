"""Re-ranking: a model looks at question and candidates together and puts them in order again. Optional.

Paid through the ledger like every call of a model, except for the bundled one; by whom, the caller says: a run keeps
what it has paid for (functions/agent/calling.py), a search alone does not (`paid`). It improves what was found already,
so nothing waits for it and nothing fails with it (`improved`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from shared import tracing
from shared.database import tenant_session
from shared.errors import PermanentError, Postponed, TransientError
from shared.llm import Models
from shared.privacy.pseudonyms import pseudonyms_for
from shared.rerankings import Reranked
from shared.retrieval.passages import Passage
from shared.retrieval.paying import Payer, pay
from shared.retrieval.ranking import lexical_weight
from shared.retrieval.spaces import Space
from shared.settings import Settings

log = logging.getLogger(__name__)

BUNDLED = "sentences"

BUNDLED_WEIGHT = 4.0
"""What certainty (relevance 1) of the bundled model is worth in points of BM25. It sees sentences only, so it corrects
the order of search and does not replace it: alone it loses 8 points nDCG@10 on Cranfield, added less than one
(docs/retrieval.md). Other models replace the order."""


Judge = Callable[[str, str, list[str]], Reranked]
"""Model, question and documents to their relevances, paid by whoever asks. No session may be open."""


def candidates_wanted(settings: Settings, top_k: int) -> int:
    """How many passages to search for when `top_k` are wanted in the end."""
    return max(top_k, settings.rerank_candidates) if settings.rerank_model else top_k


def improved(
    models: Models, settings: Settings, space: Space, question: str, passages: Sequence[Passage], judge: Judge
) -> tuple[list[Passage], str]:
    """The passages in the order of RERANK_MODEL, and what happened: `off`, the model, or `failed: …` with the reason.

    Never fails for what a model or a budget does: then the order is that of the search. No session may be open. Raises
    what else `judge` does (Superseded: the run was lost).
    """
    model = settings.rerank_model
    if not model:
        return list(passages), "off"
    try:
        return reordered(models, model, space, question, passages, judge), model
    except PermanentError as error:
        reason = error.reason
    except Postponed:
        # The provider asks for time, or the budget is spent: neither is worth making the question wait.
        reason = "postponed"
    except TransientError:
        reason = "unreachable"
    log.warning("re-ranking failed: %s", reason, extra={"model": model})
    return list(passages), f"failed: {reason}"


def reordered(
    models: Models, model: str, space: Space, question: str, passages: Sequence[Passage], judge: Judge
) -> list[Passage]:
    """The passages in the order of `model`, best first, each with its new `score`; equal ones keep their order.

    The bundled model also leaves its `relevance`, which the evidence gate reads. It is free, so `judge` is not asked.

    No session may be open: the model takes its time. Raises what `Models.rerank` and `judge` raise.
    """
    if not passages:
        return []
    documents = [shown(passage) for passage in passages]
    if model == BUNDLED:
        found = models.rerank(question, documents, model=model)
        weight = BUNDLED_WEIGHT * lexical_weight(space)
        scored = [
            replace(passage, score=passage.score + weight * relevance, relevance=relevance)
            for passage, relevance in zip(passages, found.relevances, strict=True)
        ]
    else:
        scores = judge(model, question, documents).relevances
        scored = [replace(passage, score=score) for passage, score in zip(passages, scores, strict=True)]
    return sorted(scored, key=lambda passage: -passage.score)


def shown(passage: Passage) -> str:
    """What the model sees of a passage: title and headings as a Markdown heading, then the text."""
    return f"# {' › '.join((passage.title, *passage.heading_path))}\n{passage.text}"


def billed(question: str, documents: Sequence[str]) -> list[str]:
    """What a re-ranking sends at most: most providers send the question with every document, and bill it so."""
    return [*documents, *[question] * len(documents)]


def paid(models: Models, payer: Payer, model: str, question: str, documents: list[str]) -> Reranked:
    """The re-ranking of a search that nobody repeats. Raises like `pay` and `Models.rerank`.

    The model sees pseudonyms, the same in question and documents, so what belongs together stays together.
    """
    with tenant_session(payer.tenant_id) as session:
        hidden = pseudonyms_for(session, payer.tenant_id)
    question, documents = hidden.mask(question), [hidden.mask(document) for document in documents]

    def ask() -> Reranked:
        with tracing.span("rerank", kind="client", operation="rerank", model=model, documents=len(documents)) as span:
            found = models.rerank(question, documents, model=model)
            span.set(input_tokens=found.tokens)
            return found

    return pay(payer, model, billed(question, documents), ask)
