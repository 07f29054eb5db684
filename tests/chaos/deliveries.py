"""Thousands of messages about hundreds of documents, each delivered one to five times in a random order."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID, uuid4

from shared.events import DocumentWithdrawn, TenantMessage
from tests.chaos.invariants import outcomes, tokens_of
from tests.chaos.scenarios import submitted
from tests.chaos.sweeping import SERVERS, Stage, new_tenant
from tests.chaos.wire import Kept
from tests.conftest import DIMENSION

VERSIONS = 20
TENANTS = 4


@dataclass
class Flood:
    """The messages, and what must come of them: (tenant, document) → newest version and its text, None if withdrawn."""

    marker: str
    tenants: list[UUID]
    messages: list[Kept] = field(default_factory=list)
    newest: dict[tuple[UUID, str], tuple[int, str | None]] = field(default_factory=dict)

    def add(self, message: TenantMessage) -> None:
        """One more message from upstream."""
        data, topic = message.data().decode(), "documents-upstream"
        self.messages.append(Kept(str(message.event_id), topic, data, message.attributes()))


def flood(count: int, chance: random.Random) -> Flood:
    """`count` messages: twenty versions a document, a tenth withdrawals, a fifth the same content as before."""
    marker = f"f{uuid4().hex[:8]}"
    made = Flood(marker, [new_tenant(f"{marker}-{number}") for number in range(TENANTS)])
    for number in range(count // VERSIONS):
        tenant, name, content = made.tenants[number % TENANTS], f"doc-{number:05d}.txt", ""
        for version in range(1, VERSIONS + 1):
            kind = chance.random()
            if kind < 0.1:
                made.add(DocumentWithdrawn(tenant_id=tenant, external_id=name, source_version=version))
                made.newest[tenant, name] = version, None
                continue
            if kind > 0.3 or not content:
                content = f"Version {version} of document {number} of {marker}."
            made.add(submitted(tenant, name, content.encode(), version))
            made.newest[tenant, name] = version, content
    return made


def order_of(count: int, chance: random.Random) -> list[int]:
    """Every message one to five times, in random order; a tenth of the messages only after everything else."""
    late = set(chance.sample(range(count), count // 10))
    on_time = [index for index in range(count) for _ in range(chance.randint(1, 5)) if index not in late]
    delayed = [index for index in late for _ in range(chance.randint(1, 5))]
    chance.shuffle(on_time)
    chance.shuffle(delayed)
    return on_time + delayed


def deliver(stage: Stage, made: Flood, order: list[int], seed: int) -> dict[str, Any]:
    """All deliveries, shared out to processes that work at the same time; then what they postponed."""
    bearers = stage.provider.bearers()
    total: dict[str, Any] = {"heard": [], "statuses": Counter(), "delivered": 0}

    def share(messages: list[dict[str, Any]], indices: list[int], number: int) -> dict[str, Any]:
        job = {"messages": messages, "order": indices, "bearers": bearers, "seed": seed + number}
        with stage.forks() as forks:
            answer: dict[str, Any] = forks.run(job)
            return answer

    messages = [asdict(message) for message in made.messages]
    while messages:
        with ThreadPoolExecutor(SERVERS) as pool:
            shares = [order[number::SERVERS] for number in range(SERVERS)]
            answers = list(pool.map(share, [messages] * SERVERS, shares, range(SERVERS)))
        messages = [message for answer in answers for message in answer["later"]]
        order = list(range(len(messages)))
        for answer in answers:
            total["heard"] += answer["heard"]
            total["statuses"] += Counter(answer["statuses"])
            total["delivered"] += answer["delivered"]
    return total


def wrong_after(stage: Stage, made: Flood, heard: list[str]) -> list[str]:
    """What is not exactly once."""
    wrong, events = [], [json.loads(each) for each in heard]
    sold = stage.provider.sold_with(made.marker)
    wrong += [f"embedded {count} times: {text}" for text, count in sold.items() if count > 1]
    booked = 0
    for tenant in made.tenants:
        wrong += stage.database.violations(tenant) + stage.database.wrong_vectors(tenant, DIMENSION)
        money = stage.database.money(tenant)
        booked += money.tokens
        if money.reserved or money.cost != money.spent:
            wrong.append(f"{money.reserved} EUR reserved, {money.cost} EUR in the ledger, {money.spent} counted")
        for key, ids in outcomes(events, tenant).items():
            if len(ids) != 1:
                wrong.append(f"{len(ids)} outcomes of {key}")
        wrong += _unlike(stage, made, tenant)
    if booked != tokens_of(sold):
        wrong.append(f"{booked} tokens booked, {tokens_of(sold)} sold")
    return wrong


def _unlike(stage: Stage, made: Flood, tenant: UUID) -> list[str]:
    """Documents that do not answer with their newest version."""
    rows = stage.database.rows(
        "select d.external_id, d.state, v.source_version, c.text from rag.documents d "
        "left join rag.versions v on v.tenant_id = d.tenant_id and v.version_id = d.current_version_id "
        "left join rag.chunks c on c.tenant_id = v.tenant_id and c.version_id = v.version_id where d.tenant_id = :t",
        t=tenant,
    )
    # A version with the content of the one before it leaves that one answering.
    found = {row.external_id: (row.state, row.text) for row in rows}
    expected = {
        name: ("searchable", text) if text is not None else ("deleted", None)
        for (owner, name), (_, text) in made.newest.items()
        if owner == tenant
    }
    if len(rows) != len(found):
        return ["a document has chunks twice"]
    return [
        f"{name}: {found.get(name)} instead of {state}" for name, state in expected.items() if found.get(name) != state
    ]


def exactly_once(stage: Stage, count: int) -> None:
    """Deliver `count` messages and check; prints the figures."""
    chance = random.Random(count)
    made = flood(count, chance)
    order = order_of(count, chance)
    began = time.monotonic()
    told = deliver(stage, made, order, seed=count)
    seconds = time.monotonic() - began
    wrong = wrong_after(stage, made, told["heard"])
    print(
        f"\n{count} messages, {told['delivered']} deliveries in {seconds:.0f} s, answers {dict(told['statuses'])}, "
        f"{len(told['heard'])} outcomes, {stage.provider.requests} embedding requests, {len(wrong)} violations"
    )
    assert wrong == [], "\n".join(wrong[:40])
    # 503: the database chose one of two that locked each other; it comes again.
    assert set(told["statuses"]) <= {"204", "503"}
