"""Money for embeddings: reserved before the call, settled after it, never over a limit, never booked twice."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from cli.main import noesis
from functions.embed.embedding import embed_chunks
from shared.database import operator_session, tenant_session
from shared.documents.intake import receive
from shared.documents.reading import DocumentRow, list_documents
from shared.documents.storing import Batch, Content, NewChunk, store
from shared.documents.vectors import text_hash
from shared.documents.waiting import wake
from shared.errors import Postponed, TransientError
from shared.events import DocumentSubmitted, EmbedChunks, decode
from shared.fakes import FakeBus, FakeClock, FakeModels
from shared.llm import UnusableVectors
from shared.money.budgets import OverBudget, end_of, read_budgets, set_budget, start_of
from shared.money.ledger import LEASE, Call, NoPrice, Reservation, lock_call, release, release_expired, reserve, settle
from shared.money.prices import cost, most_tokens, price_of, set_price
from shared.retrieval.spaces import Space, ensure_space
from shared.services import Clock, Services
from shared.settings import Settings
from shared.tenants.directory import Principal

START = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)
PRICE = Decimal(1_000_000)
"""EUR per million tokens: a token costs a euro, so that sums are read at a glance."""

TEXT = "one two three four"
MOST = len(TEXT) + 8
"""Euros that a batch of this one text can cost at most; it does cost four."""


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands at half past twelve."""
    return FakeClock(START)


@pytest.fixture
def space(database: object) -> Space:
    """A vector space whose model is paid for."""
    name = f"paid-{uuid4().hex}"
    with operator_session() as operator:
        made = ensure_space(operator, name, 64)
        set_price(operator, name, PRICE, START - timedelta(days=1))
    return made


@pytest.fixture
def payer(tenant: Principal, space: Space) -> Principal:
    """A tenant whose chunks go to the paid model."""
    with operator_session() as operator:
        operator.execute(
            text("update rag.tenant_spaces set space_id = :space where tenant_id = :tenant"),
            {"space": space.space_id, "tenant": tenant.tenant_id},
        )
    return tenant


@pytest.fixture
def paid_services(settings: Settings, bus: FakeBus, clock: FakeClock) -> Services:
    """Services with a clock that is moved by hand."""
    return Services(settings, clock, _models=FakeModels())


def models_of(services: Services) -> FakeModels:
    """The twin behind the services."""
    assert isinstance(services.models, FakeModels)
    return services.models


def batches(payer: Principal, bus: FakeBus, *texts: str, name: str = "doc") -> list[EmbedChunks]:
    """The commands for a document of these chunks, one chunk a batch."""
    event = DocumentSubmitted(tenant_id=payer.tenant_id, external_id=name, source_version=1, content="")
    before = len(bus.published)
    with tenant_session(payer.tenant_id) as session:
        reception = receive(session, event, "upstream")
        chunks = [NewChunk(t, text_hash((), t), 0, len(t), 4, "en", (), {}) for t in texts]
        content = Content(f"hash-{name}", "", 1, "text/plain", "en", "", chunks)
        store(session, reception, content, event.traceparent, Batch(1, 1000))
    return commands(bus, before)


def commands(bus: FakeBus, start: int = 0) -> list[EmbedChunks]:
    """The embedding commands published since."""
    found = (decode(m.data.encode(), m.attributes) for m in bus.published[start:])
    return [m for m in found if isinstance(m, EmbedChunks)]


def limit(payer: Principal, period: str, euros: int | None) -> None:
    """Set the tenant's budget."""
    with operator_session() as operator:
        set_budget(operator, payer.tenant_id, period, None if euros is None else Decimal(euros))  # type: ignore[arg-type]


def books(payer: Principal) -> Any:
    """What the ledger says about the tenant."""
    with operator_session() as operator:
        return operator.execute(
            text(
                "select coalesce(sum(cost_eur), 0) as cost, coalesce(sum(tokens), 0) as tokens, "
                "coalesce(sum(reserved_eur), 0) as reserved, count(*) as calls from core.ledger where tenant_id = :t"
            ),
            {"t": payer.tenant_id},
        ).one()


def counted(payer: Principal, now: datetime) -> dict[str, Any]:
    """Spent and reserved of the present day and month."""
    with tenant_session(payer.tenant_id) as session:
        return {b.period: (b.spent, b.reserved) for b in read_budgets(session, payer.tenant_id, now)}


def seen(payer: Principal, name: str = "doc") -> DocumentRow:
    """The document as its owner sees it."""
    with tenant_session(payer.tenant_id) as session:
        return next(row for row in list_documents(session, payer) if row.external_id == name)


def test_a_call_is_booked_at_what_the_provider_counted(
    payer: Principal, paid_services: Services, bus: FakeBus, clock: FakeClock
) -> None:
    """More is reserved than it costs; afterwards exactly the cost is spent and nothing is reserved."""
    for command in batches(payer, bus, TEXT, "five six"):
        embed_chunks(command, paid_services)
    assert (books(payer).cost, books(payer).tokens, books(payer).reserved) == (6, 6, 0)
    assert counted(payer, clock.now()) == {"day": (6, 0), "month": (6, 0)}


def test_a_repeat_is_not_booked_twice(
    payer: Principal, paid_services: Services, bus: FakeBus, clock: FakeClock
) -> None:
    """The same command three times is one call, one row, one price."""
    (command,) = batches(payer, bus, TEXT)
    for _ in range(3):
        embed_chunks(command, paid_services)
    assert (books(payer).cost, books(payer).calls) == (4, 1)
    assert models_of(paid_services).embedded == [TEXT]
    assert counted(payer, clock.now())["day"] == (4, 0)


def test_a_failed_call_gives_its_reservation_back(
    payer: Principal, paid_services: Services, bus: FakeBus, clock: FakeClock
) -> None:
    """Nothing was bought, so nothing is spent or reserved; the next try is the same call."""
    (command,) = batches(payer, bus, TEXT)
    models_of(paid_services).failures = [TransientError("down")]
    with pytest.raises(TransientError):
        embed_chunks(command, paid_services)
    assert counted(payer, clock.now())["day"] == (0, 0)
    embed_chunks(command, paid_services)
    assert (books(payer).cost, books(payer).calls) == (4, 1)


def test_an_unusable_answer_is_paid_and_asked_for_again(
    payer: Principal, paid_services: Services, bus: FakeBus, clock: FakeClock
) -> None:
    """The provider charges for it; the batch comes back later, and after five such answers the version fails."""
    (command,) = batches(payer, bus, TEXT)
    models_of(paid_services).failures = [UnusableVectors("1 vector for 2 texts", 4)]
    with pytest.raises(Postponed) as caught:
        embed_chunks(command, paid_services)
    assert caught.value.until == START + timedelta(seconds=30)
    assert books(payer).cost == 4
    embed_chunks(command, paid_services)
    assert (books(payer).cost, seen(payer).state) == (8, "searchable")

    (command,) = batches(payer, bus, "never", name="wrong")
    models_of(paid_services).failures = [UnusableVectors("dimension 3", 1) for _ in range(5)]
    for _ in range(4):
        with pytest.raises(Postponed):
            embed_chunks(command, paid_services)
    embed_chunks(command, paid_services)
    assert (seen(payer, "wrong").state, seen(payer, "wrong").reason) == ("failed", "wrong-vectors")
    assert counted(payer, clock.now())["day"] == (13, 0)


def test_past_the_limit_the_batch_waits_and_the_document_says_so(
    payer: Principal, paid_services: Services, bus: FakeBus, clock: FakeClock
) -> None:
    """Stopped before the spend, until the day ends; then it goes on."""
    limit(payer, "day", MOST)
    first, second = batches(payer, bus, TEXT, TEXT[::-1])
    embed_chunks(first, paid_services)
    with pytest.raises(OverBudget) as caught:
        embed_chunks(second, paid_services)
    assert caught.value.until == datetime(2026, 11, 22, tzinfo=UTC)
    assert "budget" in caught.value.reason
    assert models_of(paid_services).embedded == [TEXT]
    row = seen(payer)
    assert (row.state, row.waiting, row.waiting_until) == ("ingested", "budget", caught.value.until)
    clock.advance(timedelta(hours=12))
    embed_chunks(second, paid_services)
    assert (seen(payer).state, seen(payer).waiting) == ("searchable", None)
    assert counted(payer, clock.now()) == {"day": (4, 0), "month": (8, 0)}


def test_a_raised_limit_wakes_what_waits(
    payer: Principal, paid_services: Services, bus: FakeBus, clock: FakeClock
) -> None:
    """The missing batches go out again at once; the postponed ones find nothing to do."""
    limit(payer, "month", 0)
    waiting = batches(payer, bus, TEXT, TEXT[::-1])
    for command in waiting:
        with pytest.raises(OverBudget):
            embed_chunks(command, paid_services)
    limit(payer, "month", 100)
    before = len(bus.published)
    with tenant_session(payer.tenant_id) as session:
        assert wake(session, payer.tenant_id, ["budget", "price"], Batch(1, 1000)) == 1
    assert seen(payer).waiting is None
    woken = commands(bus, before)
    assert {c.chunk_ids for c in woken} == {c.chunk_ids for c in waiting}
    for command in [*woken, *waiting]:
        embed_chunks(command, paid_services)
    assert seen(payer).state == "searchable"
    assert books(payer).cost == 8


def test_no_number_of_workers_passes_a_limit(
    payer: Principal, paid_services: Services, bus: FakeBus, clock: FakeClock
) -> None:
    """Six threads, thirty batches, money for seven: never more is reserved or spent than the limit, at any moment."""
    limit(payer, "day", MOST * 2)
    todo = batches(payer, bus, *(f"{TEXT[:-1]}{n % 10}" for n in range(30)))
    done: list[EmbedChunks] = []
    waits: list[EmbedChunks] = []
    highest: list[Decimal] = []

    def work(mine: list[EmbedChunks]) -> None:
        for command in mine:
            try:
                embed_chunks(command, paid_services)
                done.append(command)
            except OverBudget:
                waits.append(command)
            spent, reserved = counted(payer, clock.now())["day"]
            highest.append(spent + reserved)

    threads = [threading.Thread(target=work, args=(todo[n::6],)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) + len(waits) == 30
    # How many were refused for what others had reserved is chance; one after the other they are done as far as the
    # money goes. Each is settled at 4 and the next needs 26 free: 52 - 4n >= 26, so seven fit.
    work(waits[:])
    assert max(highest) <= MOST * 2
    assert len(done) == 7
    assert books(payer).cost == 4 * len(done)
    assert counted(payer, clock.now())["day"] == (books(payer).cost, 0)


def test_two_deliveries_at_once_pay_once(
    payer: Principal, paid_services: Services, bus: FakeBus, clock: FakeClock
) -> None:
    """While the first waits for the model, the second is postponed until the lease is over and pays nothing."""
    (command,) = batches(payer, bus, TEXT)
    at_work, go_on = threading.Event(), threading.Event()

    class Slow(FakeModels):
        def embed_counted(self, *args: Any, **kwargs: Any) -> Any:
            at_work.set()
            assert go_on.wait(20)
            return super().embed_counted(*args, **kwargs)

    slow = replace(paid_services, _models=Slow())
    first = threading.Thread(target=embed_chunks, args=(command, slow))
    first.start()
    assert at_work.wait(20)
    with pytest.raises(Postponed) as caught:
        embed_chunks(command, paid_services)
    assert caught.value.until == START + LEASE
    go_on.set()
    first.join()
    embed_chunks(command, paid_services)
    assert books(payer).cost == 4
    assert models_of(paid_services).embedded == []


def call_of(payer: Principal, space: Space) -> Call:
    """A call for nobody's document."""
    return Call(payer.tenant_id, uuid4(), space.model, UUID(int=1), UUID(int=2))


def reserved(call: Call, content: str, stage: str, now: datetime) -> Reservation:
    """A reservation for one text, committed."""
    with tenant_session(call.tenant_id) as session:
        left = lock_call(session, call, now)
        return reserve(session, call, left, [content], stage, now)


def test_what_a_dead_worker_reserved_is_given_back(payer: Principal, space: Space, clock: FakeClock) -> None:
    """After the lease the sweep releases it; a zombie that still comes to settle books what it really spent."""
    call = call_of(payer, space)
    reservation = reserved(call, TEXT, "dev", clock.now())
    assert counted(payer, clock.now())["day"] == (0, MOST)
    with operator_session() as operator:
        release_expired(operator, "dev", clock.now())
    assert counted(payer, clock.now())["day"] == (0, MOST)
    clock.advance(LEASE + timedelta(seconds=1))
    with operator_session() as operator:
        assert release_expired(operator, "dev", clock.now()) >= 1
    assert counted(payer, clock.now())["day"] == (0, 0)
    with tenant_session(payer.tenant_id) as session:
        settle(session, reservation, 4)
    assert counted(payer, clock.now())["day"] == (4, 0)
    assert books(payer).cost == 4


def test_a_dead_workers_call_is_taken_over_after_its_lease(payer: Principal, space: Space, clock: FakeClock) -> None:
    """The new attempt replaces the old reservation, also across midnight; the day that has passed is free again."""
    call = call_of(payer, space)
    for _ in range(2):
        reservation = reserved(call, TEXT, "dev", clock.now())
        clock.advance(timedelta(hours=24))
    assert reservation.attempt == 2
    clock.advance(timedelta(hours=-24))
    assert counted(payer, clock.now())["day"] == (0, MOST)
    assert counted(payer, START) == {"day": (0, 0), "month": (0, MOST)}


def test_a_provider_that_does_not_count_is_booked_at_the_most(payer: Principal, space: Space, clock: FakeClock) -> None:
    """Never less than the truth."""
    call = call_of(payer, space)
    with tenant_session(payer.tenant_id) as session:
        left = lock_call(session, call, clock.now())
        settle(session, reserve(session, call, left, [TEXT], "dev", clock.now()), 0)
    assert books(payer).cost == MOST


@pytest.mark.parametrize(
    ("stage", "fitting", "until"),
    [("staging", 6, datetime(2026, 11, 22, tzinfo=UTC)), ("prod", 37, datetime(2026, 11, 21, 13, tzinfo=UTC))],
)
def test_the_cap_of_a_stage_holds_for_all_tenants_together(
    payer: Principal, space: Space, stage: str, fitting: int, until: datetime
) -> None:
    """Below 5 EUR a day on staging, below 30 EUR an hour in prod, and it stops before the spend."""
    # Days of their own: the counters of a stage are shared by all tests of this database.
    now = START + timedelta(days=365)
    with operator_session() as operator:
        operator.execute(text("delete from core.stage_spending where starts_at >= :now"), {"now": start_of("day", now)})
        set_price(operator, space.model, Decimal("100000"), now - timedelta(days=1))  # a tenth of a euro a token
    # A call of eight tokens may cost 0.8 EUR: six are 4.8, thirty-seven are 29.6.
    kept = [reserved(call_of(payer, space), "", stage, now) for _ in range(fitting)]
    with pytest.raises(OverBudget) as caught:
        reserved(call_of(payer, space), "", stage, now)
    assert caught.value.until == until.replace(year=2027)
    with tenant_session(payer.tenant_id) as session:
        release(session, kept[0])
    reserved(kept[0].call, "", stage, now)


def test_a_model_without_a_price_waits_where_a_cap_must_hold(payer: Principal, clock: FakeClock) -> None:
    """On a laptop it counts as free; elsewhere nobody could say what it would cost."""
    call = Call(payer.tenant_id, uuid4(), "never-heard-of", UUID(int=1), UUID(int=2))
    with pytest.raises(NoPrice):
        reserved(call, TEXT, "prod", clock.now())
    assert reserved(call, TEXT, "dev", clock.now()).amount == 0


def test_a_price_holds_from_its_date(payer: Principal, space: Space) -> None:
    """The newest that is not in the future; before the first there is none."""
    with operator_session() as operator:
        set_price(operator, space.model, Decimal(2), START + timedelta(days=10))
    with tenant_session(payer.tenant_id) as session:
        prices = [price_of(session, space.model, START + timedelta(days=days)) for days in (-2, 0, 9, 10)]
    assert prices == [None, PRICE, PRICE, 2]


def test_only_operators_set_limits_and_prices(payer: Principal) -> None:
    """The application's role may read them."""
    from sqlalchemy.exc import ProgrammingError

    for statement in (
        "insert into core.budgets values (:t, 'day', 1000000)",
        "insert into core.prices values ('use-v3', now(), 5)",
    ):
        with pytest.raises(ProgrammingError, match="permission denied"), tenant_session(payer.tenant_id) as session:
            session.execute(text(statement), {"t": payer.tenant_id})


def test_costs_are_exact_and_bounded() -> None:
    """Nano euros, and no tokenizer makes more tokens than there are bytes."""
    assert cost(1, Decimal("0.02")) == Decimal("0.00000002")
    assert cost(123_456_789, Decimal("0.13")) == Decimal("16.04938257")
    assert most_tokens(["äö", ""]) == 4 + 8 + 8


@pytest.mark.parametrize(
    ("period", "ends"),
    [("hour", datetime(2026, 12, 31, 23, tzinfo=UTC)), ("day", datetime(2027, 1, 1, tzinfo=UTC))],
)
def test_periods_end_where_the_next_begins(period: Any, ends: datetime) -> None:
    """Also at the end of a year, and a month of 31 days."""
    at = datetime(2026, 12, 31, 22, 59, 59, tzinfo=UTC)
    assert end_of(period, at) == ends == start_of(period, ends)
    assert end_of("month", at) == datetime(2027, 1, 1, tzinfo=UTC)


def run(*arguments: str) -> str:
    """What `noesis …` prints; it must succeed."""
    result = CliRunner().invoke(noesis, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_an_operator_sees_and_raises_a_limit(
    payer: Principal, paid_services: Services, bus: FakeBus, clock: FakeClock
) -> None:
    """`noesis budgets set` wakes what waits and leaves an audit record; `show` and `costs` tell the sums."""
    today = replace(paid_services, clock=Clock())
    run("budgets", "set", "day", "25.5", "--tenant", payer.tenant_slug)
    (command,) = batches(payer, bus, TEXT)
    with pytest.raises(OverBudget):
        embed_chunks(command, today)
    (line,) = [line for line in run("budgets", "show").splitlines() if payer.tenant_slug in line and " day " in line]
    assert line.split() == [payer.tenant_slug, "day", "25.5", "0", "0", "1"]
    bus.published.clear()
    assert "go on: 1" in run("budgets", "set", "day", "none", "--tenant", payer.tenant_slug)
    (woken,) = commands(bus)
    embed_chunks(woken, today)
    (line,) = [line for line in run("costs").splitlines() if payer.tenant_slug in line]
    assert line.split()[2:] == ["1", "1", "0", "4", "0", "4", "1000000"]
    with operator_session() as operator:
        actions = operator.execute(
            text(
                "select details ->> 'limit' from core.audit where tenant_id = :t and action = 'budget-set' order by at"
            ),
            {"t": payer.tenant_id},
        ).scalars()
        assert actions.all() == ["25.5", "none"]


def test_a_price_that_is_entered_wakes_what_waits_for_it(payer: Principal, settings: Settings, bus: FakeBus) -> None:
    """Where a cap must hold, a new model waits for its price and goes on when it has one."""
    model = f"new-{uuid4().hex}"
    with operator_session() as operator:
        operator.execute(
            text("update rag.tenant_spaces set space_id = :space where tenant_id = :tenant"),
            {"space": ensure_space(operator, model, 64).space_id, "tenant": payer.tenant_id},
        )
    staging = Services(settings.model_copy(update={"noesis_stage": "staging"}), _models=FakeModels())
    (command,) = batches(payer, bus, TEXT)
    with pytest.raises(NoPrice):
        embed_chunks(command, staging)
    assert seen(payer).waiting == "price"
    bus.published.clear()
    run("budgets", "price", model, "0.02")
    for woken in commands(bus):
        embed_chunks(woken, staging)
    assert seen(payer).state == "searchable"
    assert books(payer).cost == Decimal("0.00000008")


@pytest.mark.parametrize("amount", ["-1", "NaN", "Infinity", "ten", "1e9"])
def test_an_amount_is_an_amount(payer: Principal, amount: str) -> None:
    """Anything else changes nothing."""
    arguments = ["budgets", "set", "--tenant", payer.tenant_slug, "day", "--", amount]
    assert CliRunner().invoke(noesis, arguments).exit_code == 2
    with tenant_session(payer.tenant_id) as session:
        assert [b.limit for b in read_budgets(session, payer.tenant_id, START)] == [None, None]
