"""The sweep over a run: a question is answered undisturbed and recorded, then once for every point with a death."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import create_engine, text

from local.bus.tokens import Tokens
from shared import messaging
from shared.conversations.runs import ask
from shared.database import operator_session, tenant_session
from shared.events import AnswerQuestion
from shared.fakes import FakeBus
from shared.money.prices import set_price
from shared.retrieval.spaces import activate_first, ensure_space
from shared.tenants.directory import Principal, create_tenant, memberships
from shared.tools.cases import put_case
from tests.chaos.crash_points import Point
from tests.chaos.forks import ForkServer, WorkFailed
from tests.chaos.invariants import Database
from tests.chaos.leftovers import end_leftovers
from tests.chaos.sweeping import SERVERS, one_certificate
from tests.chaos.wire import ACCOUNT, AUDIENCE, ISSUER, PUSHES, FileBus, outgoing
from tests.chaos.workshop import Workshop, environment_of, start_servers
from tests.conftest import DIMENSION, MODEL
from tests.integration.test_answering import HOLIDAY, index
from tests.integration.tool_material import allow
from tests.scripted_model import Say, Script, serving, tokens_of

GOOD = "„Alle Beschäftigten haben Anspruch auf 30 Arbeitstage Urlaub.“ [1]"
ENGLISH = "The company grants its whole staff a generous number of days of paid leave every single year."
QUESTION = "Wie viele Arbeitstage Urlaub haben alle Beschäftigten?"
RANKER = "scripted-ranker"
_MARKER = re.compile(r"m\d{5}x[0-9a-f]{6}")
PRICE = Decimal(1_000_000)
"""A euro a token."""


@dataclass(frozen=True, slots=True)
class Story:
    """A question and what the model can do; `before` was asked in the same conversation, undisturbed.

    `reranker` puts what search finds in order, paid by the token like everything else.
    """

    name: str
    question: str
    abilities: str
    before: str = ""
    approves: bool = False
    reranker: str = ""


STORIES = {
    story.name: story
    for story in (
        Story("a question", QUESTION, "quotes"),
        Story("a follow-up in the wrong language", "Und wie viele sind das?", "writes", before=QUESTION),
        Story("a tool", f"Rechne bitte. {QUESTION}", "tools"),
        Story("a re-ranking, and a search by the model", f"Suche bitte. {QUESTION}", "tools", reranker=RANKER),
        Story("an approval", f"Schließe Fall 4711. {QUESTION}", "tools", approves=True),
    )
}


@dataclass
class Model(Script):
    """Answers by what it is asked, always the same; every request counts as paid from its arrival."""

    orders: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """By marker: what was bought, in order, with its tokens."""

    def next(self, body: dict[str, Any]) -> Say:
        """What to say, by the question."""
        messages = body["messages"]
        say = _reply(messages, bool(body.get("tools")))
        digest = hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:12]
        self._buy(json.dumps(messages), digest, tokens_of(messages) + tokens_of([say.text, list(say.calls)]))
        return say

    def sell(self, texts: list[str]) -> None:
        """Vectors are bought too."""
        for each in texts:
            self._buy(each, each, tokens_of(each))

    def judge(self, question: str, documents: list[str]) -> list[float]:
        """So is an order."""
        self._buy(question, f"order for {question}", tokens_of([question, documents]))
        return super().judge(question, documents)

    def _buy(self, where: str, what: str, tokens: int) -> None:
        if marker := _MARKER.search(where):
            with self.lock:
                self.orders.setdefault(marker.group(), []).append((what, tokens))

    def bought(self, marker: str) -> list[tuple[str, int]]:
        """What was bought for a telling until now."""
        with self.lock:
            return list(self.orders.get(marker, []))


def _reply(messages: list[dict[str, Any]], tools: bool) -> Say:
    asked = str(messages[1]["content"])
    if "<conversation>" in asked:
        marker = _MARKER.search(asked)
        return Say(f"{QUESTION} {marker.group() if marker else ''}")
    if tools and messages[-1]["role"] == "user":
        if "Rechne" in asked:
            return Say(calls=(("calculate", '{"expression": "30*2"}'),))
        if "Suche" in asked:
            marker = _MARKER.search(asked)
            query = f"Urlaub im Portal {marker.group() if marker else ''}"
            return Say(calls=(("search", json.dumps({"query": query})),))
        arguments = json.dumps({"case_number": "4711", "status": "closed", "note": "erledigt"})
        return Say(calls=(("update_case", arguments),))
    return Say(f"{ENGLISH} {GOOD}" if "Rechne" not in asked and len(messages) == 2 and not tools else GOOD)


@dataclass(frozen=True, slots=True)
class Telling:
    """One telling of a story: a tenant of its own, a queue of its own, a marker in its question."""

    story: Story
    principal: Principal
    run_id: UUID
    marker: str
    folder: Path
    bus: FileBus


@dataclass(kw_only=True)
class RunStage(Workshop):
    """Everything a telling needs."""

    model: Model
    tokens: Tokens

    def job(self, telling: Telling, **more: Any) -> dict[str, Any]:
        """The order for a worker."""
        bearers = {topic: self.tokens.bearer(AUDIENCE + path) for topic, (_, path, _) in PUSHES.items()}
        story, who = telling.story, telling.principal
        return {
            "folder": str(telling.folder), "tenant": str(who.tenant_id), "email": who.email, "bearers": bearers,
            "abilities": story.abilities, "approves": story.approves, "reranker": story.reranker, **more,
        }  # fmt: skip

    def tell(self, forks: ForkServer, story: Story) -> Telling:
        """A new telling: tenant, document, question; what was asked before is answered already."""
        marker = f"m{next(self.numbers):05d}x{uuid4().hex[:6]}"
        principal = _tenant(marker)
        index(principal, "urlaub", HOLIDAY)
        if story.approves:
            allow(principal, "update_case", approvers=("admin",), four_eyes=False)
            with tenant_session(principal.tenant_id) as session:
                put_case(session, principal.tenant_id, "4711", "Reklamation", "test")
        folder = self.folder / marker
        bus = FileBus(folder)
        conversation = None
        if story.before:
            earlier = Telling(
                Story("before", story.before, "quotes"),
                principal,
                self._ask(principal, bus, story.before),
                marker,
                folder,
                bus,
            )
            forks.run(self.job(earlier))
            (row,) = self.database.rows(
                "select conversation_id from core.runs where run_id = :r and state = 'answered'", r=earlier.run_id
            )
            conversation = row.conversation_id
            self.database.change("delete from core.ledger where tenant_id = :t", t=principal.tenant_id)
            self.database.change("delete from core.spending where tenant_id = :t", t=principal.tenant_id)
        run_id = self._ask(principal, bus, f"{story.question} {marker}", conversation)
        return Telling(story, principal, run_id, marker, folder, bus)

    def _ask(self, principal: Principal, bus: FileBus, question: str, conversation: UUID | None = None) -> UUID:
        with tenant_session(principal.tenant_id) as session:
            run_id = ask(session, principal, question, conversation_id=conversation)
        bus.publish([outgoing(AnswerQuestion(tenant_id=principal.tenant_id, run_id=run_id))])
        return run_id

    def mend(self, forks: ForkServer, telling: Telling) -> None:
        """Redeliver, let time pass and sweep until all is quiet."""
        with self.mending:
            forks.run(self.job(telling, recover=True))

    def record(self, story: Story) -> tuple[list[Point], dict[str, Any]]:
        """The story undisturbed: its points and its ending. Raises AssertionError when it is not whole."""
        with self.forks() as forks:
            telling = self.tell(forks, story)
            points = forks.record(self.job(telling))
        assert not telling.bus.waiting(), "the story does not come to its end by itself"
        bought = self.model.bought(telling.marker)
        assert len(bought) == len(set(bought)) == len(self.stored(telling)), (bought, self.stored(telling))
        assert self.wrong(telling, 0) == []
        return points, self.ending(telling)

    def _brought(self, forks: ForkServer, story: Story, act: Callable[[dict[str, Any]], Any]) -> tuple[Telling, Any]:
        """A telling brought to its point; again when two operations changed places: LangGraph stores from a thread."""
        left = 3
        while True:
            telling = self.tell(forks, story)
            try:
                return telling, act(self.job(telling))
            except WorkFailed as failed:
                if not left or "not the one that was recorded" not in str(failed):
                    raise
            left -= 1
            self.mend(forks, telling)

    def killed(self, story: Story, point: Point, expected: dict[str, Any]) -> list[str]:
        """The story with a death at a point; what is wrong after its repair."""
        with self.forks() as forks:
            telling, _ = self._brought(forks, story, lambda job: forks.kill(job, point))
            bought, stored = self.model.bought(telling.marker), self.stored(telling)
            self.mend(forks, telling)
        # What was paid between a reply and its commit is paid again, once, and the ledger cannot know of it.
        lost = sum(tokens for _, tokens in bought[len(stored) :])
        wrong = self.wrong(telling, lost) + differences(self.ending(telling), expected)
        finished = {what for what, _ in bought[: len(stored)]}
        again = self.model.bought(telling.marker)[len(bought) :]
        wrong += [f"finished, and asked again: {what}" for what, _ in again if what in finished]
        return [f"{story.name}, {point}: {what}" for what in wrong + self.repeats(telling)]

    def stopped(self, story: Story, point: Point, expected: dict[str, Any]) -> list[str]:
        """The story told to its end by another while its teller stands still at a point, who then goes on."""
        with self.forks() as forks:
            telling, late = self._brought(forks, story, lambda job: forks.stop(job, point))
            self.mend(forks, telling)
            wrong = [f"while it stands: {what}" for what in differences(self.ending(telling), expected)]
            late.resume()
            self.mend(forks, telling)
        # Who lost the run still pays for what came late, at the most it can have been when the answer was left.
        wrong += self.wrong(telling, 0, more=True) + differences(self.ending(telling), expected)
        return [f"{story.name}, {point}: {what}" for what in wrong + self.repeats(telling)]

    def repeats(self, telling: Telling) -> list[str]:
        """Calls that were made more often than once before and once after."""
        counted = Counter(what for what, _ in self.model.bought(telling.marker))
        return [f"asked {count} times: {what}" for what, count in counted.items() if count > 2]

    def stored(self, telling: Telling) -> list[str]:
        """The keys of finished calls."""
        sql = "select call_key from core.model_calls where tenant_id = :t and run_id = :r order by created_at"
        return [row.call_key for row in self.database.rows(sql, t=telling.principal.tenant_id, r=telling.run_id)]

    def ending(self, telling: Telling) -> dict[str, Any]:
        """Everything that a crash must not change."""
        ids = {"t": telling.principal.tenant_id, "r": telling.run_id}
        (run,) = self.database.rows(
            "select state, reason, answer, no_evidence, partial, language, prompts, input_tokens, output_tokens, "
            "cost_eur from core.runs where tenant_id = :t and run_id = :r",
            **ids,
        )
        cited = self.database.rows(
            "select number, title, quote, quote_start, quote_end from core.citations where tenant_id = :t "
            "and run_id = :r order by number",
            **ids,
        )
        calls = self.database.rows(
            # A re-ranking is named after what it judged, and in that stands the telling's own marker.
            r"select regexp_replace(call_key, ':[0-9a-f]{16}$', '') as call_key, prompt, input_tokens, output_tokens "
            "from core.model_calls where tenant_id = :t and run_id = :r order by 1",
            **ids,
        )
        tools = self.database.rows(
            "select call_key, name, state, ok from core.tool_calls where tenant_id = :t and run_id = :r order by 1",
            **ids,
        )
        case = self.database.rows("select status, revision from core.cases where tenant_id = :t", t=ids["t"])
        approvals = self.database.rows(
            "select call_key, state from core.approvals where tenant_id = :t and run_id = :r", **ids
        )
        return {
            "run": list(run), "citations": [list(row) for row in cited], "calls": [list(row) for row in calls],
            "tools": [list(row) for row in tools], "case": [list(row) for row in case],
            "approvals": [list(row) for row in approvals], **self.told(telling),
        }  # fmt: skip

    def told(self, telling: Telling) -> dict[str, Any]:
        """What readers have at the end, and what listeners heard."""
        events = self.events(telling)
        last = max((row.seq for row in events if row.kind == "draft-restarted"), default=0)
        draft = "".join(row.data["text"] for row in events if row.kind == "token" and row.seq > last)
        single = [row.kind for row in events if row.kind not in ("step", "token", "draft-restarted")]
        ready = {
            (heard["event_id"], heard["state"])
            for heard in telling.bus.heard()
            if heard["name"] == "answer-ready" and heard["run_id"] == str(telling.run_id)
        }
        return {"draft": draft, "events": single, "announced": sorted(state for _, state in ready)}

    def events(self, telling: Telling) -> list[Any]:
        """The run's events in order."""
        sql = "select seq, kind, data from core.run_events where tenant_id = :t and run_id = :r order by seq"
        return self.database.rows(sql, t=telling.principal.tenant_id, r=telling.run_id)

    def wrong(self, telling: Telling, lost: int, *, more: bool = False) -> list[str]:
        """What is wrong when all is quiet; `lost` are tokens that were sold to the dead. `more`: booked may be more."""
        seqs = [row.seq for row in self.events(telling)]
        wrong = [] if seqs == list(range(1, len(seqs) + 1)) else [f"events lost or doubled: {seqs}"]
        (money,) = self.database.rows(
            "select (select coalesce(sum(cost_eur), 0) from core.ledger where tenant_id = :t) as cost, "
            "(select coalesce(sum(tokens + output_tokens), 0) from core.ledger where tenant_id = :t) as tokens, "
            "(select coalesce(sum(spent_eur), 0) from core.spending where tenant_id = :t and period = 'month') "
            "as spent, "
            "(select coalesce(sum(reserved_eur), 0) from core.ledger where tenant_id = :t) "
            "+ (select coalesce(sum(reserved_eur), 0) from core.spending where tenant_id = :t) as reserved",
            t=telling.principal.tenant_id,
        )
        billed = sum(tokens for _, tokens in self.model.bought(telling.marker)) - lost
        booked = min(billed, money.cost) if more else money.cost
        if not (money.tokens == money.cost == money.spent and booked == billed):
            wrong.append(f"ledger {money.tokens} tokens, {money.cost} EUR, counter {money.spent}, billed {billed}")
        if money.reserved:
            wrong.append(f"{money.reserved} EUR stay reserved")
        return wrong


def differences(ending: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Where the ending is not the expected one."""
    return [
        f"{name}: {ending[name]} instead of {value}"[:600] for name, value in expected.items() if ending[name] != value
    ]


def _tenant(slug: str) -> Principal:
    email = f"admin@{slug}.example"
    with operator_session() as operator:
        made = create_tenant(operator, slug, slug.title(), email)
        activate_first(operator, made.tenant_id, ensure_space(operator, MODEL, DIMENSION))
    return memberships(email)[0]


@contextmanager
def running_runs(folder: Path, owner_url: str, servers: int = SERVERS) -> Iterator[RunStage]:
    """A model, fork servers and a database engine, for as long as a module needs them."""
    end_leftovers(owner_url)
    tokens = Tokens(folder, ISSUER, ACCOUNT)
    with operator_session() as operator:
        operator.execute(text("delete from core.provider_gates"))
        for name in (MODEL, "scripted", RANKER):
            set_price(operator, name, PRICE, datetime.now(UTC) - timedelta(days=1), output=PRICE)
    engine = create_engine(owner_url)
    messaging.use_bus(FakeBus())  # questions go into the queue of their telling instead
    with ExitStack() as stack:
        stack.callback(engine.dispose)
        stack.callback(messaging.use_bus, None)
        model = stack.enter_context(serving(Model(keys=tokens.jwks())))
        assert isinstance(model, Model)
        environment = environment_of(model.url, one_certificate(folder / "authority.pem"))
        environment |= {"DATABASE_POOL": "2", "CHAT_MODEL": "scripted"}
        free = start_servers(stack, "tests.chaos.run_work:work", environment, folder, servers)
        yield RunStage(model=model, tokens=tokens, database=Database(engine), folder=folder, servers=free)
    with operator_session() as operator:
        operator.execute(text("delete from core.prices where model in (:a, 'scripted', :b)"), {"a": MODEL, "b": RANKER})


def sampled(points: Sequence[Point], first: int, every: int) -> list[Point]:
    """Every so-manieth point."""
    return list(points[first % len(points) :: every])


__all__ = ["STORIES", "RunStage", "Story", "Telling", "differences", "running_runs", "sampled"]
