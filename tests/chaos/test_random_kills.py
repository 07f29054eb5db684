"""Real processes behind the real bus, killed at random while documents flow."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.chaos.ingestion_work import AGED
from tests.chaos.invariants import tokens_of
from tests.chaos.processes import SERVICES, await_true, running_machines
from tests.chaos.scenarios import submitted
from tests.chaos.sweeping import new_tenant
from tests.conftest import DIMENSION, Database

KILLS = 51
DOCUMENTS = 120

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


def test_fifty_kills_while_documents_flow_lose_nothing(database: Database, tmp_path: Path) -> None:
    """Ingest, embed and maintenance die 51 times of SIGKILL; 120 documents are searchable, each once, paid once."""
    chance = random.Random(7)
    tenant = new_tenant("kills")
    texts = {f"doc-{number:03d}.txt": f"Document {number} says what only it says." for number in range(DOCUMENTS)}
    left = [submitted(tenant, name, text.encode(), 1) for name, text in texts.items()]
    finished_again: list[str] = []
    with running_machines(tmp_path, database.owner_url) as machines:
        look = machines.database

        def note(asked: list[str]) -> None:
            stored = look.stored(tenant)
            finished_again.extend(text for text in asked if stored[text])

        machines.provider.before_answer = note
        killed: Counter[str] = Counter()
        for number in range(KILLS):
            batch = -(-len(left) // (KILLS - number))
            machines.publish(*left[:batch])
            del left[:batch]
            name = chance.choices(SERVICES, (3, 3, 1))[0]
            asked = machines.provider.requests
            # In the middle of something: the next call to the provider, or soon.
            patience = chance.uniform(0.05, 0.6)
            with suppress(AssertionError):
                await_true(lambda asked=asked: machines.provider.requests > asked, patience, "work")  # type: ignore[misc]
            machines.kill(name)
            killed[name] += 1
            assert look.violations(tenant) == []
            machines.start(name)
            machines.await_ready()
            # What the dead one was pushed comes again after its backoff, which is over now.
            machines.bus.advance(61)

        def searchable() -> bool:
            rows = look.rows(
                "select count(*) from rag.documents where tenant_id = :t and state = 'searchable'", t=tenant
            )
            return bool(rows[0][0] == DOCUMENTS)

        def nudge() -> None:
            for statement in AGED[1:]:
                look.change(statement, t=tenant)
            machines.bus.advance(120)

        def at_rest() -> bool:
            sql = "select (select count(*) from core.outbox where tenant_id = :t) + "
            sql += "(select count(*) from core.ledger where tenant_id = :t and state = 'reserved')"
            return bool(look.rows(sql, t=tenant)[0][0] == 0)

        await_true(searchable, 240, "every document is searchable", nudge)
        await_true(at_rest, 120, "nothing waits", nudge)
        machines.provider.before_answer = lambda _texts: None
        sold, money = machines.provider.sold, look.money(tenant)
        print(
            f"\n{KILLS} kills ({dict(killed)}) while {DOCUMENTS} documents flowed: {machines.provider.requests} "
            f"embedding requests, {tokens_of(sold)} tokens sold, {money.tokens} booked"
        )
        assert look.violations(tenant) == []
        assert look.wrong_vectors(tenant, DIMENSION) == []
        assert look.stored(tenant) == Counter(texts.values())
        assert finished_again == []
    # A reply that died with its worker was paid and cannot be booked; everything else is, to the token.
    assert tokens_of(Counter(set(sold))) <= money.tokens <= tokens_of(sold)
    assert money.tokens == money.cost == money.spent
    assert money.reserved == 0
