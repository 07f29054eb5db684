"""The dry run of a campaign: does the model do what the space says, how fast is it, what would filling cost.

Nothing of the tenant leaves: the model is tried with a text of ours, as long as the tenant's chunks are on average.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import patiently
from shared.embeddings import UnusableVectors
from shared.errors import PermanentError
from shared.llm import Models
from shared.money.prices import cost, price_of
from shared.retrieval.filling import CARRIED, COUNTING_SECONDS, THERE, WANTED
from shared.retrieval.paying import Payer, Platform, pay
from shared.retrieval.spaces import Space

SAMPLE = "Die Vertragsparteien vereinbaren eine Frist von drei Monaten. The parties agree on a period of three months. "
TRIED = 8
"""Texts in the timed request: two seconds for the slowest bundled model."""

CHARACTERS = 4
"""Characters a token, about, in German and English (FACTS; `functions.ingest.chunking` estimates likewise)."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What filling would take. `chunks` and `tokens` are those that still lack a vector in the new space.

    `history` chunks of them belong to earlier versions; `there` have their vector already, from an earlier campaign.
    `eur` is None when nobody entered a price; `seconds` counts one request after another.
    """

    chunks: int
    history: int
    there: int
    tokens: int
    eur_per_million: Decimal | None
    eur: Decimal | None
    chunks_per_second: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, amounts as text."""
        return {
            "chunks": self.chunks,
            "history": self.history,
            "there": self.there,
            "tokens": self.tokens,
            "eur_per_million": None if self.eur_per_million is None else str(self.eur_per_million),
            "eur": None if self.eur is None else str(self.eur),
            "chunks_per_second": round(self.chunks_per_second, 3),
            "seconds": round(self.seconds, 1),
        }


@dataclass(frozen=True, slots=True)
class Load:
    """The chunks of a tenant that a space lacks, and how long they are."""

    chunks: int
    history: int
    there: int
    tokens: int

    @property
    def mean_tokens(self) -> int:
        """Tokens of an average chunk, at least one."""
        return max(1, self.tokens // max(1, self.chunks))


def load_of(session: Session, tenant_id: UUID, source: Space, target: Space, *, history: bool) -> Load:
    """Count what would be embedded; the same chunks as `filling` sends."""
    with patiently(session, COUNTING_SECONDS):
        row = session.execute(
            text(
                "select count(*) filter (where not x.there) as chunks, count(*) filter (where x.there) as there, "
                "count(*) filter (where not x.there and x.state = 'superseded') as history, "
                "coalesce(sum(x.tokens) filter (where not x.there), 0) as tokens "
                f"from (select v.state, c.tokens, {THERE} as there from rag.versions v "
                "join rag.chunks c on c.tenant_id = v.tenant_id and c.version_id = v.version_id "
                f"where {CARRIED} and {WANTED}) x"
            ),
            {"tenant": tenant_id, "source": source.space_id, "target": target.space_id, "history": history},
        ).one()
    return Load(row.chunks, row.history, row.there, int(row.tokens))


def try_model(models: Models, space: Space, payer: Payer | Platform, tokens: int = 100) -> float:
    """Ask the proxy for vectors of the space; returns texts a second for texts of so many tokens.

    A space that is tried for a tenant is tried at the tenant's expense (`payer`), within its budgets; one that is for
    nobody yet under the cap of the stage. Raises PermanentError `unknown-model` when the proxy refuses it,
    `wrong-dimension` when the vectors are not the space's, OverBudget, and what `shared.llm` raises when the proxy is
    away.
    """
    sample = SAMPLE * (1 + tokens * CHARACTERS // len(SAMPLE))
    passage = space.as_passage(sample[: max(20, tokens * CHARACTERS)])

    def embed(times: int) -> None:
        sent = [passage] * times
        ask = partial(models.embed_counted, sent, model=space.model, dimension=space.dimension, input_type="passage")
        pay(payer, space.model, sent, ask)

    try:
        # The first request loads the model where it is ours: it is not what filling is like.
        embed(1)
        began = time.perf_counter()
        embed(TRIED)
    except UnusableVectors as error:
        raise PermanentError(
            "wrong-dimension", f"{space.model}: {error.message}", "Make a space with the dimension the model has."
        ) from None
    except PermanentError as error:
        if error.reason != "model-refused":
            raise
        raise PermanentError(
            "unknown-model",
            f"The model proxy does not serve {space.model} as an embedding model.",
            "Check its name; MORE_EMBEDDINGS_MODELS names models besides EMBEDDINGS_MODEL.",
        ) from None
    return TRIED / max(time.perf_counter() - began, 1e-6)


def price_or_refuse(session: Session, space: Space, stage: str, now: datetime) -> Decimal | None:
    """EUR a million tokens; None: free. Raises PermanentError `no-price` where a model without one may not be used."""
    price = price_of(session, space.model, now)
    if price is None and stage != "dev":
        raise PermanentError(
            "no-price", f"{space.model} has no price.", "Enter one: `noesis budgets price MODEL EUR_PER_MILLION`."
        )
    return price


def estimate(session: Session, load: Load, target: Space, rate: float, stage: str, now: datetime) -> Estimate:
    """Put load, price and rate together; raises like `price_or_refuse`."""
    price = price_or_refuse(session, target, stage, now)
    return Estimate(
        chunks=load.chunks,
        history=load.history,
        there=load.there,
        tokens=load.tokens,
        eur_per_million=price,
        eur=None if price is None else cost(load.tokens, price),
        chunks_per_second=rate,
        seconds=load.chunks / rate,
    )
