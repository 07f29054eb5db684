"""Model calls of searches that nobody repeats: reserved, made and settled through the ledger like those of documents.

Runs keep what they have paid for under keys of their own (functions/agent/calling.py); batches of chunks do as well
(functions/embed). What an operator or a door asks once is paid here, by a tenant or, where it is for no tenant (whether
a model serves, whether it is back), under the cap of the stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Protocol, TypeVar
from uuid import UUID, uuid4

from shared.database import operator_session, tenant_session
from shared.embeddings import UnusableVectors
from shared.errors import NoesisError
from shared.llm import Models
from shared.money.budgets import add, counters_of_stage, take_for_platform
from shared.money.ledger import Call, Reservation, lock_call, priced, release, reserve, settle
from shared.money.prices import cost, most_tokens, prices_of
from shared.rerankings import UnusableRanking
from shared.retrieval.spaces import Space

QUESTIONS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Payer:
    """Who pays and by when: the tenant, for a run or a search without one."""

    tenant_id: UUID
    stage: str
    now: datetime
    run_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Platform:
    """Nobody's tenant: the call counts for the cap of its stage alone."""

    stage: str
    now: datetime


class Counted(Protocol):
    """An answer of a model with the tokens that were billed (0: the provider did not say)."""

    @property
    def tokens(self) -> int:
        """Tokens in."""


Answer = TypeVar("Answer", bound=Counted)


def pay(payer: Payer | Platform, model: str, sent: Sequence[str], ask: Callable[[], Answer]) -> Answer:
    """What `ask` answers, booked; `sent` is the most that it can be billed for. No session may be open.

    Raises OverBudget and NoPrice before anything is sent, and what `ask` raises: then only an unusable answer, which
    came and was counted, costs.
    """
    if isinstance(payer, Platform):
        return _pay_as_platform(payer, model, sent, ask)
    call = Call(payer.tenant_id, uuid4(), model, run_id=payer.run_id)
    with tenant_session(payer.tenant_id) as session:
        left = lock_call(session, call, payer.now)
        reservation = reserve(session, call, left, sent, payer.stage, payer.now)
    try:
        answer = ask()
    except (UnusableRanking, UnusableVectors) as error:
        _give_back(reservation, error.tokens)
        raise
    except NoesisError:
        _give_back(reservation, 0)
        raise
    with tenant_session(payer.tenant_id) as session:
        settle(session, reservation, answer.tokens)
    return answer


def _pay_as_platform(payer: Platform, model: str, sent: Sequence[str], ask: Callable[[], Answer]) -> Answer:
    with operator_session() as session:
        price = priced(prices_of(session, model, payer.now), model, payer.stage, payer.now)
        most = cost(most_tokens(sent), price.input)
        take_for_platform(session, payer.stage, most, payer.now)
    # No row of the ledger, which is of tenants: what dies here stays reserved until its hour or day is over, and a
    # trial is worth a few tokens.
    spent = Decimal(0)
    try:
        answer = ask()
        spent = cost(answer.tokens, price.input) if answer.tokens else most
    except (UnusableRanking, UnusableVectors) as error:
        spent = cost(error.tokens, price.input)
        raise
    finally:
        with operator_session() as session:
            for counter in counters_of_stage(payer.stage, payer.now):
                add(session, counter, -most, spent)
    return answer


def question_vectors(models: Models, payer: Payer, space: Space, questions: Sequence[str]) -> list[list[float]]:
    """A vector of `space` a question, in order. No session may be open; raises like `pay` and `Models.embed`."""
    vectors: list[list[float]] = []
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        asked = [space.as_query(question) for question in questions[start : start + QUESTIONS_AT_ONCE]]
        ask = partial(models.embed_counted, asked, model=space.model, dimension=space.dimension, input_type="query")
        vectors += pay(payer, space.model, asked, ask).vectors
    return vectors


def _give_back(reservation: Reservation, tokens: int) -> None:
    with tenant_session(reservation.call.tenant_id) as session:
        release(session, reservation, tokens)
