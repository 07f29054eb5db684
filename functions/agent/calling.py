"""The one path to the models of a run: what is finished is never paid again, what is paid is booked.

A call has a key that names its place in the graph. Finished under that key: its reply is used. Else its most is
reserved in run, tenant and stage, the model is asked without a transaction open, and reply and price are stored in one
transaction under the run's epoch. Texts leave masked and come back with their names restored.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any
from uuid import uuid5

from sqlalchemy.orm import Session

from functions.agent.journal import Journal
from functions.agent.output_checks import plain
from shared import tracing
from shared.completions import CutOff, filtered
from shared.conversations.calls import ModelCall, find_call, store_call
from shared.conversations.runs import Lease
from shared.database import tenant_session
from shared.errors import PermanentError, Postponed, Superseded, TransientError
from shared.llm import ChatReply, ToolCall, UnusableVectors
from shared.money.budgets import LONGEST_WAIT, OverBudget, run_limit
from shared.money.gates import close_gate
from shared.money.ledger import Call, Reservation, Spent, release, reserve_alone, settle
from shared.money.prices import most_tokens
from shared.money.standing import standing_of
from shared.privacy.pseudonyms import Pseudonyms, pseudonyms_for
from shared.rerankings import Reranked, UnusableRanking
from shared.retrieval.reranking import billed
from shared.retrieval.spaces import Space
from shared.services import Services

log = logging.getLogger(__name__)

EMBED_SECONDS = 60.0
"""A question is short; with everything else a step ends within 120 s."""


class ProviderClosed(Postponed):
    """The model's provider asked for time, at this call or another one's."""


class TokensSpent(PermanentError):
    """The run has used up the tokens that one question may take (RUN_TOKENS)."""

    def __init__(self) -> None:
        super().__init__(
            "run-tokens-spent",
            "The answer would take more tokens than one question may.",
            "Ask a narrower question.",
        )


@dataclass
class Caller:
    """Makes the model calls of one run."""

    lease: Lease
    services: Services
    journal: Journal
    _pseudonyms: Pseudonyms | None = None

    def chat(
        self,
        key: str,
        prompt: str,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] = (),
        max_tokens: int | None = None,
        aloud: bool = False,
        share: float = 1.0,
    ) -> ChatReply:
        """The model's reply to the messages, made once under `key`.

        `aloud`: its words go out to readers as they come. `share` of the run's tokens may be used up by this call.
        Raises Superseded (cancelled, lost), OverBudget, ProviderClosed, TokensSpent, and what `Models.chat` raises.
        """
        settings = self.services.settings
        limit = max_tokens or settings.max_tokens
        messages = [self.pseudonyms.mask_message(message) for message in messages]
        sent = [_content(message) for message in messages] + [json.dumps(list(tools))] * bool(tools)
        opened = self._open(key, settings.chat_model, sent, limit, share)
        if isinstance(opened, ModelCall):
            reply = _read_reply(opened)
            if aloud:
                self.journal.token(plain(reply.text))
                self.journal.flush()
        else:
            with tracing.span(
                "call model",
                kind="client",
                observation="generation",
                operation="chat",
                model=settings.chat_model,
                prompt_version=prompt,
                input=messages,
            ):
                reply = self._ask(key, prompt, messages, tools, limit, aloud, opened)
        if reply.finish_reason == "content_filter":
            raise filtered()
        return reply

    def prepare(self, session: Session) -> None:
        """Read what every call needs in a session that is open anyway."""
        if self._pseudonyms is None:
            self._pseudonyms = pseudonyms_for(session, self.lease.tenant_id, self.services.settings)

    @property
    def pseudonyms(self) -> Pseudonyms:
        """The tenant's pseudonyms: the same value is the same word in every text of the run."""
        if self._pseudonyms is None:
            with tenant_session(self.lease.tenant_id) as session:
                self.prepare(session)
        assert self._pseudonyms is not None
        return self._pseudonyms

    def embed(self, key: str, question: str, space: Space, seconds: float = EMBED_SECONDS) -> list[float]:
        """The vector of a question in a space, made once under `key` in at most `seconds`. Raises as `chat`."""
        written = space.as_query(question)
        opened = self._open(key, space.model, [written], 0, 1.0)
        if isinstance(opened, ModelCall) and not _is_of(opened, space):
            # Another space answers since the call was made: its vectors mean nothing there.
            key = f"{key}:{space.space_id}"
            opened = self._open(key, space.model, [written], 0, 1.0)
        if isinstance(opened, ModelCall):
            return [float(x) for x in opened.reply["vector"]]
        try:
            with tracing.span(
                "embed", kind="client", observation="embedding", operation="embeddings", model=space.model
            ) as span:
                answer = self.services.models.embed_counted(
                    [written], model=space.model, dimension=space.dimension, input_type="query", seconds=seconds
                )
                span.set(input_tokens=answer.tokens)
        except (Postponed, PermanentError, TransientError) as error:
            self._give_back(opened, error, [])
        vector = answer.vectors[0]
        self._finish(key, "", opened, {"vector": vector, "space": str(space.space_id)}, answer.tokens, 0)
        return vector

    def rerank(self, key: str, model: str, question: str, documents: Sequence[str]) -> Reranked:
        """What a paid model says each document is worth for the question, made once under `key`. Raises as `chat`.

        The search before it is no stored call, so a resumed run may find other documents: those are another call.
        """
        hidden = self.pseudonyms
        question, documents = hidden.mask(question), [hidden.mask(document) for document in documents]
        shown = json.dumps([model, question, documents], ensure_ascii=False)
        key = f"{key}:{hashlib.sha256(shown.encode()).hexdigest()[:16]}"
        opened = self._open(key, model, billed(question, documents), 0, 1.0)
        if isinstance(opened, ModelCall):
            return Reranked([float(x) for x in opened.reply["relevances"]], opened.input_tokens)
        try:
            with tracing.span(
                "rerank", kind="client", operation="rerank", model=model, documents=len(documents)
            ) as span:
                found = self.services.models.rerank(question, documents, model=model)
                span.set(input_tokens=found.tokens)
        except (Postponed, PermanentError, TransientError) as error:
            self._give_back(opened, error, [])
        self._finish(key, "", opened, {"relevances": found.relevances}, found.tokens, 0)
        return found

    def _open(self, key: str, model: str, sent: list[str], most_output: int, share: float) -> ModelCall | Reservation:
        """What was finished under the key, or the reservation to make the call; in one transaction of the run."""
        settings, now = self.services.settings, self.services.clock.now()
        lease = self.lease
        with self.journal.held() as session:
            # Under its first lease a run makes each call once: nothing can be finished yet.
            finished = find_call(session, lease, key) if lease.epoch > 1 else None
            if finished is not None:
                return finished
            standing = standing_of(session, lease.tenant_id, lease.run_id, model, now)
            if standing.closed_until is not None:
                raise ProviderClosed(standing.closed_until, "waiting for provider")
            call = Call(lease.tenant_id, uuid5(lease.run_id, key), model, run_id=lease.run_id)
            reservation = reserve_alone(
                session, call, standing.price, sent, settings.noesis_stage, now, most_output=most_output
            )
            self._within_run(session, reservation, standing.spent, share)
        return reservation

    def _within_run(self, session: Session, reservation: Reservation, spent: Spent, share: float) -> None:
        """Hold the call against what one question may take. Raises TokensSpent or OverBudget."""
        tenant_id, settings = self.lease.tenant_id, self.services.settings
        tokens = spent.tokens + spent.output_tokens + reservation.most + reservation.most_output
        if tokens > settings.run_tokens * share:
            raise TokensSpent
        if reservation.amount > 0:
            limit = run_limit(session, tenant_id)
            if limit is not None and spent.eur + reservation.amount > limit:
                raise OverBudget(self.services.clock.now() + LONGEST_WAIT, "waiting for budget")

    def _ask(
        self,
        key: str,
        prompt: str,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]],
        limit: int,
        aloud: bool,
        reservation: Reservation,
    ) -> ChatReply:
        """Ask the model, without a transaction open while it works: a connection is worth more than a lock here."""
        said: list[str] = []
        reply: ChatReply | None = None
        shown = self.pseudonyms.restoring()
        try:
            with closing(_stream(self.services.models.chat(messages, tools=tools, max_tokens=limit))) as pieces:
                for piece in pieces:
                    if isinstance(piece, ChatReply):
                        reply = piece
                        break
                    said.append(piece)
                    if aloud and piece:
                        # The draft is shown before it is checked: what reorders or hides goes at once.
                        self.journal.token(plain(shown.feed(piece)))
                    else:
                        self.journal.look()
        except (Postponed, PermanentError, TransientError, Superseded) as error:
            self._give_back(reservation, error, said)
        assert reply is not None, "a chat ends with its ChatReply"
        # Before names come back: traces see what the model wrote.
        tracing.annotate(
            output=reply.text,
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            finish_reason=reply.finish_reason,
            tool_calls=[call.name for call in reply.tool_calls],
        )
        if aloud:
            self.journal.token(plain(shown.close()))
        self.journal.collect()
        reply = replace(
            reply,
            text=self.pseudonyms.restore(reply.text),
            tool_calls=tuple(
                replace(call, arguments=self.pseudonyms.restore_values(call.arguments)) for call in reply.tool_calls
            ),
        )
        stored = {
            "text": reply.text,
            "finish_reason": reply.finish_reason,
            "tool_calls": [asdict(call) for call in reply.tool_calls],
        }
        self._finish(key, prompt, reservation, stored, reply.input_tokens, reply.output_tokens)
        return reply

    def _finish(
        self, key: str, prompt: str, reservation: Reservation, reply: dict[str, Any], tokens: int, output: int
    ) -> None:
        """Reply and price in one transaction of the run; who lost the run meanwhile still pays."""
        model, wrote = reservation.call.model, bool(reply.get("text") or reply.get("tool_calls"))
        try:
            with self.journal.held() as session:
                eur = settle(session, reservation, tokens, output, wrote=wrote)
                store_call(session, self.lease, key, ModelCall(model, prompt, reply, tokens, output, eur))
        except Superseded:
            with tenant_session(self.lease.tenant_id) as session:
                settle(session, reservation, tokens, output, wrote=wrote)
            raise
        tracing.annotate(cost_eur=eur)
        extra = {"run_id": self.lease.run_id, "call": key, "tokens": tokens, "output_tokens": output, "eur": str(eur)}
        log.info("model called", extra=extra)

    def _give_back(self, reservation: Reservation, error: Exception, said: Sequence[str]) -> None:
        """Book what an unfinished call has cost, give back the rest, and raise.

        What the provider had counted is booked as it counted; of what it had sent without counting, the most that can
        have been. A call that was refused before its first word cost nothing.
        """
        tokens = output = 0
        written = (error.written if isinstance(error, CutOff) else "") or "".join(said)
        if isinstance(error, UnusableVectors | UnusableRanking):
            tokens = error.tokens
        elif said or written:
            tokens, output = reservation.most, min(most_tokens([written]), reservation.most_output)
            if not written:  # only pieces of tool calls, of which nobody knows here how long they were
                output = reservation.most_output
        if isinstance(error, CutOff) and error.input_tokens:
            tokens, output = error.input_tokens, error.output_tokens or output
        with tenant_session(self.lease.tenant_id) as session:
            release(session, reservation, tokens, output)
            if isinstance(error, Postponed):
                close_gate(session, reservation.call.model, error.until)
        if isinstance(error, Postponed):
            raise ProviderClosed(error.until, "waiting for provider") from error
        raise error


def _stream(pieces: Iterator[str | ChatReply]) -> Any:
    """The stream as something that can be closed: leaving it early must give its connection back."""

    def through() -> Iterator[str | ChatReply]:
        try:
            yield from pieces
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()

    return through()


def _is_of(call: ModelCall, space: Space) -> bool:
    """Whether a stored vector is one of this space; an earlier release did not store of which it is."""
    known = call.reply.get("space", str(space.space_id))
    return bool(known == str(space.space_id) and call.model == space.model) and (
        len(call.reply["vector"]) == space.dimension
    )


def _content(message: dict[str, Any]) -> str:
    """All a message sends, for the most tokens it can have."""
    calls = json.dumps(message["tool_calls"], ensure_ascii=False) if message.get("tool_calls") else ""
    return str(message.get("content") or "") + calls


def _read_reply(call: ModelCall) -> ChatReply:
    reply = call.reply
    calls = tuple(ToolCall(**one) for one in reply.get("tool_calls") or ())
    return ChatReply(
        reply["text"], call.model, call.input_tokens, call.output_tokens, calls, reply.get("finish_reason", "stop")
    )
