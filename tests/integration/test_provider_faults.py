"""A provider that fails in every way providers do: no wrong vector is stored, nothing is paid or done twice."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text

from functions.embed.embedding import embed_chunks
from shared.database import operator_session, tenant_session
from shared.documents.intake import receive
from shared.documents.storing import Batch, Content, NewChunk, store
from shared.documents.vectors import text_hash
from shared.embeddings import Embedded
from shared.errors import Postponed, TooSlow, TransientError
from shared.events import DocumentSubmitted, EmbedChunks, decode
from shared.fakes import FakeBus, FakeClock, FakeModels, hashed_vector
from shared.llm import LiteLLM
from shared.money.prices import set_price
from shared.retrieval.spaces import Space, ensure_space
from shared.services import Services
from shared.settings import Settings
from shared.tenants.directory import Principal
from tests.loopback import served

DIMENSION = 64
RETRY_AFTER = 7
SILENCE = 0.25
"""Seconds without a sign of life that these tests bear from a provider that means to be silent; a drip may go on for
twice that. What is answered has all the time of production: a busy machine is no fault of a provider."""

KINDS = (
    "429-retry-after",
    "429-date",
    "429",
    "500",
    "502",
    "503",
    "503-retry-after",
    "401",
    "hang",
    "drip",
    "reset",
    "truncated",
    "empty",
    "html",
    "dimension",
    "nan",
    "zeros",
    "short",
    "duplicate-index",
    "swapped",
)
SILENT = ("hang", "drip")
PAID = {"dimension", "nan", "zeros", "short", "duplicate-index", "swapped"}
"""Answers that came whole and said what they cost, usable or not; `swapped` is in another order and usable."""


@dataclass
class Provider:
    """An OpenAI-compatible server; `faults` names the fault of each request, None answers well."""

    kinds: tuple[str, ...] = ()
    rate: float = 0.0
    url: str = ""
    charged: int = 0
    """Tokens of every answer that said what it cost."""
    sold: Counter[str] = field(default_factory=Counter)
    """How often a usable vector of each text went out."""
    seen: Counter[str] = field(default_factory=Counter)
    done: threading.Event = field(default_factory=threading.Event)
    lock: threading.Condition = field(default_factory=threading.Condition)

    def coming(self) -> str:
        """The fault of the next request: spread evenly at the rate, each kind in its turn."""
        asked = sum(self.seen.values())
        wrong = int((asked + 1) * self.rate) > int(asked * self.rate)
        return self.kinds[(asked - self.seen[""]) % len(self.kinds)] if wrong else ""

    def fault(self) -> str:
        """Take the next fault."""
        with self.lock:
            kind = self.coming()
            self.seen[kind] += 1
            self.lock.notify_all()
        return kind

    def wait_until_asked(self, times: int) -> None:
        """Return when so many requests were heard: one that was given up may be heard only afterwards."""
        with self.lock:
            assert self.lock.wait_for(lambda: sum(self.seen.values()) >= times, 60), "the request was never heard"


def good(texts: list[str]) -> dict[str, Any]:
    """The right answer: a vector and a token count a text."""
    rows = [{"object": "embedding", "index": n, "embedding": hashed_vector(t, DIMENSION)} for n, t in enumerate(texts)]
    tokens = sum(len(t.split()) for t in texts)
    return {"object": "list", "model": "m", "data": rows, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def spoil(kind: str, answer: dict[str, Any]) -> None:
    """Make an answer what a broken provider makes of it."""
    rows = answer["data"]
    if kind == "dimension":
        rows[0]["embedding"] = rows[0]["embedding"][:-1]
    elif kind == "nan":
        rows[0]["embedding"][0] = float("nan")
    elif kind == "zeros":
        rows[0]["embedding"] = [0.0] * DIMENSION
    elif kind == "short":
        rows.pop()
    elif kind == "duplicate-index":
        rows[-1]["index"] = 0
    elif kind == "swapped":
        rows.reverse()


class Handler(BaseHTTPRequestHandler):
    """Answers one request, rightly or wrongly."""

    provider: Provider

    def do_POST(self) -> None:
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        provider, kind = self.provider, self.provider.fault()
        answer = good(texts)
        if kind in PAID or not kind:
            spoil(kind, answer)
            with provider.lock:
                provider.charged += answer["usage"]["prompt_tokens"]
                provider.sold.update(texts if kind in ("", "swapped") else ())
            self.send(200, json.dumps(answer).encode())
        elif kind == "hang":
            provider.done.wait(10)
        elif kind == "drip":
            self.drip()
        elif kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif kind == "truncated":
            self.send(200, json.dumps(answer).encode()[:-40])
        elif kind in ("empty", "html"):
            self.send(200, b"" if kind == "empty" else b"<!doctype html><title>Bad gateway</title>")
        else:
            self.refuse(kind)

    def refuse(self, kind: str) -> None:
        """An error status, with the wait that the provider asks for."""
        status, _, wait = kind.partition("-")
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=RETRY_AFTER), usegmt=True)
        waits = {"": {}, "retry-after": {"Retry-After": str(RETRY_AFTER)}, "date": {"Retry-After": date}}[wait]
        self.send(int(status), b'{"error": {"message": "no", "type": "x", "code": "y"}}', **waits)

    def send(self, status: int, body: bytes, **headers: str) -> None:
        """Send a whole answer."""
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self) -> None:
        """A byte now and then, always before the client loses patience with the silence."""
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(100):
                self.wfile.write(b" ")
                if self.provider.done.wait(SILENCE / 3):
                    return
        except OSError:
            return

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        return


@pytest.fixture
def provider() -> Iterator[Provider]:
    """The provider on a free port."""
    made = Provider()

    class Bound(Handler):
        provider = made

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            return  # a client that hangs up, or a connection we reset, is what is wanted here

    with served(Server(("127.0.0.1", 0), Bound)) as made.url:
        try:
            yield made
        finally:
            made.done.set()


class Listening(LiteLLM):
    """Impatient with the provider when it is about to be silent, and only then; one call after the other."""

    def __init__(self, settings: Settings, provider: Provider) -> None:
        super().__init__(settings)
        self.provider = provider
        # The connection is no part of the silence: without it the provider would not know that it was asked.
        self.hurried = LiteLLM(settings, httpx.Timeout(60, read=SILENCE), 2 * SILENCE)

    def embed_counted(self, texts: Sequence[str], **options: Any) -> Embedded:
        """The vectors, as the provider's next fault has it."""
        asked = sum(self.provider.seen.values())
        ask = self.hurried.embed_counted if self.provider.coming() in SILENT else super().embed_counted
        try:
            return ask(texts, **options)
        finally:
            self.provider.wait_until_asked(asked + 1)

    def close(self) -> None:
        """Give the connections back."""
        self.hurried.close()
        super().close()


@dataclass
class Pipeline:
    """A tenant with a paid model, the services, and the commands of one document."""

    tenant: Principal
    space: Space
    services: Services
    clock: FakeClock
    commands: list[EmbedChunks]
    texts: list[str]
    bus: FakeBus

    def run(self, rounds: int) -> list[Exception]:
        """Deliver what is left, and what was sent meanwhile, again and again, as the bus would; what was raised."""
        raised: list[Exception] = []
        left = list(self.commands)
        for _ in range(rounds):
            again = []
            self.bus.published.clear()
            for command in left:
                try:
                    embed_chunks(command, self.services)
                except (Postponed, TransientError) as error:
                    raised.append(error)
                    again.append(command)
            left = again + self.sent()
            # Whatever was waited for is over in the next round.
            self.clock.advance(timedelta(hours=1))
            if not left:
                break
        return raised

    def sent(self) -> list[EmbedChunks]:
        """The batches that were sent since the last round began."""
        found = [decode(m.data.encode(), m.attributes) for m in self.bus.published]
        return [m for m in found if isinstance(m, EmbedChunks)]

    def row(self) -> Any:
        """State of the document, its vectors, the ledger and what is reserved."""
        with operator_session() as operator:
            return operator.execute(
                text(
                    "select (select state from rag.documents where tenant_id = :t) as state, "
                    "(select count(*) from rag.embeddings where tenant_id = :t) as vectors, "
                    "(select coalesce(sum(cost_eur), 0) from core.ledger where tenant_id = :t) as cost, "
                    "(select coalesce(sum(reserved_eur), 0) from core.ledger where tenant_id = :t) as reserved, "
                    "(select coalesce(sum(spent_eur), 0) from core.spending "
                    "where tenant_id = :t and period = 'month') as spent, "
                    "(select coalesce(sum(reserved_eur), 0) from core.spending where tenant_id = :t) as held"
                ),
                {"t": self.tenant.tenant_id},
            ).one()

    def misaligned(self) -> list[str]:
        """Texts whose stored vector is not theirs."""
        with operator_session() as operator:
            rows = operator.execute(
                text(
                    "select c.text, cast(e.embedding as text) as vector from rag.embeddings e "
                    "join rag.chunks c on c.chunk_id = e.chunk_id where e.tenant_id = :t"
                ),
                {"t": self.tenant.tenant_id},
            ).all()
        return [
            row.text
            for row in rows
            if json.loads(row.vector) != pytest.approx(hashed_vector(row.text, DIMENSION), abs=1e-6)
        ]


@pytest.fixture
def pipeline(
    tenant: Principal, settings: Settings, bus: FakeBus, provider: Provider, request: pytest.FixtureRequest
) -> Iterator[Pipeline]:
    """Batches of three chunks (six, or as many as the test asks for), a euro a token."""
    batches: int = getattr(request, "param", 6)
    clock = FakeClock(datetime.now(UTC))
    with operator_session() as operator:
        space = ensure_space(operator, f"faulty-{uuid4().hex}", DIMENSION)
        set_price(operator, space.model, Decimal(1_000_000), clock.now() - timedelta(days=1))
        operator.execute(
            text("update rag.tenant_spaces set space_id = :space where tenant_id = :tenant"),
            {"space": space.space_id, "tenant": tenant.tenant_id},
        )
    texts = [f"text {n} of {uuid4().hex}" for n in range(3 * batches)]
    event = DocumentSubmitted(tenant_id=tenant.tenant_id, external_id="doc", source_version=1, content="")
    with tenant_session(tenant.tenant_id) as session:
        reception = receive(session, event, "upstream")
        chunks = [NewChunk(t, text_hash((), t), 0, len(t), 4, "en", (), {}) for t in texts]
        content = Content("hash", "", 1, "text/plain", "en", "", chunks)
        store(session, reception, content, event.traceparent, Batch(3, 1000))
    found = [decode(m.data.encode(), m.attributes) for m in bus.published]
    commands = [m for m in found if isinstance(m, EmbedChunks)]
    assert len(commands) == batches
    models = Listening(settings.model_copy(update={"litellm_url": provider.url}), provider)
    yield Pipeline(tenant, space, Services(settings, clock, _models=models), clock, commands, texts, bus)
    models.close()


def check_whole(pipeline: Pipeline, provider: Provider) -> None:
    """Everything is there once, in its place, and paid as charged."""
    row = pipeline.row()
    assert (row.state, row.vectors) == ("searchable", len(pipeline.texts))
    assert pipeline.misaligned() == []
    assert provider.sold == Counter(pipeline.texts)
    check_money(pipeline, provider)


def check_money(pipeline: Pipeline, provider: Provider) -> None:
    """The ledger, the counters and the provider agree to the token; nothing stays reserved."""
    row = pipeline.row()
    assert row.cost == row.spent == provider.charged
    assert row.reserved == row.held == 0


@pytest.mark.parametrize("pipeline", [40], indirect=True, ids=["40 batches"])
@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_a_provider_that_fails_now_and_then_spoils_nothing(pipeline: Pipeline, provider: Provider, rate: float) -> None:
    """Twenty kinds of faults in turn: in the end every chunk has its own vector, bought once."""
    provider.kinds, provider.rate = KINDS, rate
    raised = pipeline.run(rounds=20)
    assert sum(count for kind, count in provider.seen.items() if kind) > 0
    assert raised
    check_whole(pipeline, provider)


@pytest.mark.parametrize("kind", KINDS)
def test_a_provider_that_always_fails_is_survived(pipeline: Pipeline, provider: Provider, kind: str) -> None:
    """Nothing is stored and nothing stays reserved while it lasts; when it is over, everything is completed."""
    provider.kinds, provider.rate = (kind,), 1.0
    everything = pipeline.commands
    pipeline.commands = everything[:2]
    raised = pipeline.run(rounds=3)
    row = pipeline.row()
    if kind == "swapped":
        assert (row.vectors, raised) == (6, [])
    else:
        assert (row.vectors, row.state) == (0, "ingested")
        postponed = kind.startswith(("429", "503")) or kind in PAID
        assert {isinstance(error, Postponed) for error in raised} == {postponed}
    check_money(pipeline, provider)
    provider.rate, pipeline.commands = 0.0, everything
    pipeline.run(rounds=3)
    check_whole(pipeline, provider)


@pytest.mark.chaos
@pytest.mark.parametrize("pipeline", [40], indirect=True, ids=["40 batches"])
@pytest.mark.parametrize("rate", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_fault_alone_spoils_nothing(
    pipeline: Pipeline, provider: Provider, kind: str, rate: float
) -> None:
    """The whole matrix, for `make chaos`: now and then, often, and always until the provider has recovered."""
    provider.kinds, provider.rate = (kind,), rate
    everything = pipeline.commands
    if rate == 1.0:
        pipeline.commands = everything[:2]
        pipeline.run(rounds=3)
        usable = kind == "swapped"
        assert pipeline.row().vectors == (6 if usable else 0)
        check_money(pipeline, provider)
        provider.rate, pipeline.commands = 0.0, everything
    pipeline.run(rounds=30)
    check_whole(pipeline, provider)
    faults = sum(count for name, count in provider.seen.items() if name)
    useful = sum(len(text.split()) for text in pipeline.texts)
    print(
        f"\n{kind:16s} {rate:4.0%}: {faults:3d} faults in {sum(provider.seen.values()):3d} requests, "
        f"{useful} tokens of use, {provider.charged} billed and booked, 0 wrong vectors"
    )


class Slow(FakeModels):
    """Is not done with more than `most` texts in the time a request may take."""

    most = 1

    def embed_counted(self, texts: Sequence[str], **options: Any) -> Embedded:
        """Vectors for few texts."""
        if len(texts) > self.most:
            raise TooSlow("the model did not answer in time")
        return super().embed_counted(texts, **options)


@pytest.mark.parametrize("pipeline", [2], indirect=True, ids=["2 batches"])
def test_a_model_too_slow_for_a_batch_gets_it_in_halves(pipeline: Pipeline) -> None:
    """A batch that never ends would be tried for ever: after the second time less is asked, down to single chunks."""
    models = Slow()
    pipeline.services = replace(pipeline.services, _models=models)
    raised = pipeline.run(rounds=8)
    assert [type(error) for error in raised] == [TooSlow] * 4  # each of two batches, and its half of two chunks
    row = pipeline.row()
    assert (row.state, row.vectors) == ("searchable", len(pipeline.texts))
    assert Counter(models.embedded) == Counter(pipeline.texts)
    assert pipeline.misaligned() == []
    price = sum(len(text.split()) for text in pipeline.texts)
    assert (row.cost, row.spent, row.reserved, row.held) == (price, price, 0, 0)


@pytest.mark.parametrize("kind", ["429-retry-after", "503-retry-after", "429-date"])
def test_retry_after_is_kept_to_the_second(pipeline: Pipeline, provider: Provider, kind: str) -> None:
    """Seconds or a date: the batch waits exactly that long, and the others do not even ask."""
    provider.kinds, provider.rate = (kind,), 1.0
    before = datetime.now(UTC)
    with pytest.raises(Postponed) as caught:
        embed_chunks(pipeline.commands[0], pipeline.services)
    wait = caught.value.until - before
    # A date has whole seconds.
    slack = 1.0 if kind.endswith("date") else 0.0
    assert RETRY_AFTER - slack <= wait.total_seconds() <= RETRY_AFTER + 2
    for command in pipeline.commands[1:]:
        with pytest.raises(Postponed) as other:
            embed_chunks(command, pipeline.services)
        assert other.value.until == caught.value.until
    assert sum(provider.seen.values()) == 1


def test_a_model_that_never_answers_usably_fails_the_version_with_a_reason(
    pipeline: Pipeline, provider: Provider
) -> None:
    """A wrong dimension five times is a wrong setting: the document says so, and the later batches cost nothing."""
    provider.kinds, provider.rate = ("dimension",), 1.0
    first, *rest = pipeline.commands
    pipeline.commands = [first]
    pipeline.run(rounds=10)
    assert (pipeline.row().state, sum(provider.seen.values())) == ("failed", 5)
    pipeline.commands = rest
    assert pipeline.run(rounds=1) == []
    assert sum(provider.seen.values()) == 5
    check_money(pipeline, provider)


def test_the_twin_fails_like_the_real_one(pipeline: Pipeline) -> None:
    """FakeModels stands in for the proxy elsewhere: same vectors, a token a word."""
    twin = replace(pipeline.services, _models=FakeModels())
    pipeline.services = twin
    pipeline.run(rounds=1)
    assert pipeline.misaligned() == []
    assert pipeline.row().cost == sum(len(t.split()) for t in pipeline.texts)
