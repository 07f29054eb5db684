"""The sweep: a story is told once undisturbed and recorded, then once for every point with a death in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import create_engine, text

from shared.database import operator_session
from shared.events import TenantMessage
from shared.money.prices import set_price
from shared.retrieval.spaces import activate_first, ensure_space
from shared.tenants.directory import create_tenant
from tests.chaos.crash_points import Point
from tests.chaos.forks import ForkServer
from tests.chaos.invariants import Database, outcomes, tokens_of
from tests.chaos.leftovers import end_leftovers
from tests.chaos.scenarios import Scenario
from tests.chaos.wire import FileBus, Provider, outgoing, running_provider
from tests.chaos.workshop import Workshop, environment_of, start_servers
from tests.conftest import DIMENSION, MODEL

SMALL = {"BATCH_SIZE": "2", "DATABASE_POOL": "2", "PARSE_SECONDS": "20"}
"""Three batches out of six chunks."""
PRICE = Decimal(1_000_000)
"""A euro a token: budgets and ledger can be compared to the token."""

SERVERS = 2
"""As many as the machine has processors."""


@dataclass(frozen=True, slots=True)
class Case:
    """One telling of a story: a tenant of its own, a queue of its own, a marker in every text."""

    tenant: UUID
    marker: str
    folder: Path
    bus: FileBus

    def job(self, provider: Provider, **more: Any) -> dict[str, Any]:
        """The order for a worker."""
        return {
            "folder": str(self.folder), "tenant": str(self.tenant), "bearers": provider.bearers(), **more,
        }  # fmt: skip


@dataclass
class Ending:
    """How a story ended, comparable between tellings."""

    story: dict[str, Any]
    outcomes: dict[tuple[str, str, int], int]
    """How many different events said each outcome."""


@dataclass(kw_only=True)
class Stage(Workshop):
    """Everything a telling needs."""

    provider: Provider

    def case(self, forks: ForkServer, scenario: Scenario) -> Case:
        """A new telling, with what happened before told already."""
        marker = f"m{next(self.numbers):05d}x{uuid4().hex[:6]}"
        folder = self.folder / marker
        case = Case(new_tenant(marker), marker, folder, FileBus(folder))
        self.send(case, scenario.before(case.tenant, marker))
        if case.bus.waiting():
            forks.run(case.job(self.provider))
        self.send(case, scenario.messages(case.tenant, marker))
        return case

    def send(self, case: Case, messages: Sequence[TenantMessage]) -> None:
        """Publish as an upstream system does."""
        case.bus.publish([outgoing(message) for message in messages])

    def mend(self, forks: ForkServer, case: Case) -> None:
        """Redeliver, let time pass and sweep until all is quiet."""
        with self.mending:
            forks.run(case.job(self.provider, recover=True))

    def ending(self, case: Case) -> Ending:
        """What there is to compare."""
        found = outcomes(case.bus.heard(), case.tenant)
        return Ending(
            self.database.story(case.tenant, case.marker), {key: len(ids) for key, ids in sorted(found.items())}
        )

    def record(self, scenario: Scenario) -> tuple[list[Point], Ending]:
        """The story undisturbed: its points and its ending. Raises AssertionError when it is not whole."""
        with self.forks() as forks:
            case = self.case(forks, scenario)
            points = forks.record(case.job(self.provider))
        assert not case.bus.waiting(), "the story does not come to its end by itself"
        assert self.wrong(case) == []
        assert set(self.provider.sold_with(case.marker).values()) <= {1}
        return points, self.ending(case)

    def killed(self, scenario: Scenario, point: Point, expected: Ending) -> list[str]:
        """The story with a death at a point; what is wrong after it, and after its repair."""
        with self.forks() as forks:
            case = self.case(forks, scenario)
            forks.kill(case.job(self.provider), point)
            return [f"{scenario.name}, {point}: {what}" for what in self.after_death(forks, case, expected)]

    def after_death(self, forks: ForkServer, case: Case, expected: Ending) -> list[str]:
        """What is wrong right after a worker died, and after the repair."""
        wrong = [f"after the kill: {what}" for what in self.database.violations(case.tenant)]
        sold, stored = self.provider.sold_with(case.marker), self.database.stored(case.tenant)
        self.mend(forks, case)
        # What was paid between a reply and its commit is paid again, once, and the ledger cannot know of it.
        wrong += self.wrong(case, lost=sold - stored)
        again = self.provider.sold_with(case.marker) - sold
        wrong += [f"finished, and embedded again: {text[:60]}" for text in again if stored[text]]
        wrong += [f"embedded {n} times: {text[:60]}" for text, n in (sold + again).items() if n > 2]
        return wrong + self.differences(case, expected)

    def stopped(self, scenario: Scenario, point: Point, expected: Ending) -> list[str]:
        """The story told by another to its end while its teller stands still at a point, who then goes on."""
        with self.forks() as forks:
            case = self.case(forks, scenario)
            late = forks.stop(case.job(self.provider), point)
            self.mend(forks, case)
            wrong = [f"while it stands: {what}" for what in self.differences(case, expected)]
            late.resume()
            self.mend(forks, case)
            sold = self.provider.sold_with(case.marker)
            booked = self.wrong(case)
            if booked and point.in_transaction:
                # Ended in the transaction that would have booked a reply: the same as a death there. One that is back
                # before the server's patience ends books what it has paid.
                booked = self.wrong(case, lost=sold - Counter(set(sold)))
            wrong += booked + self.differences(case, expected)
            # Its own call may come late; the other one, who found the lease ended, has paid by then.
            wrong += [f"embedded {n} times: {text[:60]}" for text, n in sold.items() if n > 2]
            return [f"{scenario.name}, {point}: {what}" for what in wrong]

    def differences(self, case: Case, expected: Ending) -> list[str]:
        """Where the ending is not the expected one."""
        ending, wrong = self.ending(case), []
        for name, rows in expected.story.items():
            if ending.story[name] != rows:
                odd = [row for row in ending.story[name] if row not in rows]
                wrong.append(f"{name} differ: {odd} instead of {rows}"[:600])
        if ending.outcomes != expected.outcomes:
            wrong.append(f"outcomes {ending.outcomes} instead of {expected.outcomes}")
        return wrong

    def wrong(self, case: Case, lost: Counter[str] | None = None) -> list[str]:
        """What is wrong when all is quiet; `lost` are texts that were sold to the dead."""
        wrong = self.database.violations(case.tenant)
        wrong += [f"wrong vector: {text[:60]}" for text in self.database.wrong_vectors(case.tenant, DIMENSION)]
        money, sold = self.database.money(case.tenant), self.provider.sold_with(case.marker)
        billed = tokens_of(sold) - tokens_of(lost or Counter())
        if not money.tokens == money.cost == money.spent == billed:
            wrong.append(f"ledger {money.tokens} tokens, {money.cost} EUR, counter {money.spent}, billed {billed}")
        if money.reserved:
            wrong.append(f"{money.reserved} EUR stay reserved")
        return wrong


def at_all(points: Sequence[Point], check: Callable[[Point], list[str]]) -> list[str]:
    """Check every point, two at a time; everything that was wrong, printed as it is found."""

    def checked(point: Point) -> list[str]:
        wrong = check(point)
        for what in wrong:
            print(what)
        return wrong

    with ThreadPoolExecutor(SERVERS) as pool:
        return [what for wrong in pool.map(checked, points) for what in wrong]


def new_tenant(slug: str) -> UUID:
    """A tenant with a vector space."""
    with operator_session() as operator:
        tenant_id = create_tenant(operator, slug, slug.title(), f"admin@{slug}.example").tenant_id
        activate_first(operator, tenant_id, ensure_space(operator, MODEL, DIMENSION))
    return tenant_id


def one_certificate(path: Path) -> Path:
    """A file with a single authority that nobody trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path


@contextmanager
def running_stage(
    folder: Path, owner_url: str, work: str, servers: int = SERVERS, patience: float = 120
) -> Iterator[Stage]:
    """A provider, fork servers for `work` and a database engine, for as long as a module needs them."""
    end_leftovers(owner_url)
    with operator_session() as operator:
        set_price(operator, MODEL, PRICE, datetime.now(UTC) - timedelta(days=1))
        operator.execute(text("delete from core.provider_gates"))
    engine = create_engine(owner_url)
    with ExitStack() as stack:
        stack.callback(engine.dispose)
        provider = stack.enter_context(running_provider(folder / "provider", DIMENSION))
        environment = environment_of(provider.url, one_certificate(folder / "authority.pem"))
        environment |= SMALL | {"BLOB_URL": (folder / "blobs").as_uri()}
        free = start_servers(stack, work, environment, folder, servers, patience)
        yield Stage(provider=provider, database=Database(engine), folder=folder, servers=free)
