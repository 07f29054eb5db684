"""A tenth of all messages is poison: what each kind must end as, and how long the good ones took."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID, uuid4

from shared.events import DocumentSubmitted
from shared.storage.folder import FolderStorage
from tests.chaos.processes import Machines, await_true
from tests.chaos.scenarios import submitted
from tests.chaos.sweeping import new_tenant

LIMITS = {"PARSE_SECONDS": "3", "PARSE_MEMORY_MB": "200"}
"""Reading includes the start of a parser, half a second on a quiet machine."""
HANGS = ("a" + "\u0316\u0301" * 400_000).encode()
"""Normalising this takes minutes (tests/unit/test_parsing_sandbox.py)."""
EATS = "wörd ".encode() * 4_000_000
KINDS = ("undecodable", "wrong-schema", "raises", "hangs", "eats")
LETTERS = {"undecodable": "malformed-message", "wrong-schema": "malformed-message", "raises": "attempts-exhausted"}
FAILURES = {"raises": "attempts-exhausted", "hangs": "parse-timeout", "eats": "parse-memory"}

_RAISING = """
create function rag.always_raise() returns trigger language plpgsql as
$$ begin raise exception 'this document always raises'; end $$;
create trigger always_raise before insert on rag.chunks for each row
when (new.text like 'Raises %') execute function rag.always_raise();
"""
_NOT_RAISING = "drop trigger always_raise on rag.chunks; drop function rag.always_raise();"


@dataclass(frozen=True)
class Served:
    """How a run went: seconds from publishing to searchable of every good document, and what became of the others."""

    seconds: list[float]
    letters: Counter[tuple[str, str]]
    failures: Counter[str]

    @property
    def median(self) -> float:
        """Seconds until half of the good ones were searchable."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{len(self.seconds)} good: median {self.median:.1f} s, last {max(self.seconds):.1f} s"


@contextmanager
def raising(machines: Machines) -> Iterator[None]:
    """Documents that begin with "Raises" fail in the database, always."""
    machines.database.change(_RAISING)
    try:
        yield
    finally:
        machines.database.change(_NOT_RAISING)


def serve(machines: Machines, count: int, poisoned: int) -> Served:
    """Publish `count` messages at once, `poisoned` of them poison of five kinds in turn; wait until all have ended."""
    tenant = new_tenant(f"p-{uuid4().hex[:8]}")
    store = FolderStorage(machines.environment["BLOB_URL"])
    uris = {"hangs": store.put(tenant, HANGS), "eats": store.put(tenant, EATS)} if poisoned else {}
    raw = [_good(tenant, number) for number in range(count - poisoned)]
    raw += [_poison(tenant, KINDS[number % len(KINDS)], number, uris) for number in range(poisoned)]
    random.Random(count).shuffle(raw)
    began = machines.database.rows("select clock_timestamp()")[0][0]
    for first in range(0, len(raw), 100):
        machines.send(raw[first : first + 100])
    look = machines.database
    states = "select state, count(*) from rag.documents where tenant_id = :t group by state"

    def good_ended() -> bool:
        found = {row.state: row.count for row in look.rows(states, t=tenant)}
        return bool(found.get("searchable", 0) == count - poisoned)

    await_true(good_ended, 300, f"the good ones are searchable: {look.rows(states, t=tenant)}")
    # Deliveries of what always raises have a backoff of 30 s and more; nothing good waits any more.
    letters, failures = _expected(poisoned)
    await_true(
        lambda: _letters(machines, tenant) >= letters and _failures(machines, tenant) >= failures,
        300,
        "every poison is archived",
        lambda: machines.bus.advance(61),
    )
    times = look.rows(
        "select extract(epoch from updated_at - :b) as seconds from rag.documents "
        "where tenant_id = :t and state = 'searchable'",
        t=tenant,
        b=began,
    )
    return Served([float(row.seconds) for row in times], _letters(machines, tenant), _failures(machines, tenant))


def _expected(poisoned: int) -> tuple[Counter[tuple[str, str]], Counter[str]]:
    each = Counter(KINDS[number % len(KINDS)] for number in range(poisoned))
    letters: Counter[tuple[str, str]] = Counter()
    for kind, reason in LETTERS.items():
        letters["poison" if reason == "malformed-message" else "transient", reason] += each[kind]
    return letters, Counter({FAILURES[kind]: each[kind] for kind in FAILURES})


def _letters(machines: Machines, tenant: UUID) -> Counter[tuple[str, str]]:
    sql = "select class, reason, count(*) from core.dead_letters where tenant_id = :t group by 1, 2"
    return Counter({(row[0], row[1]): row[2] for row in machines.database.rows(sql, t=tenant)})


def _failures(machines: Machines, tenant: UUID) -> Counter[str]:
    sql = (
        "select reason, count(*) from rag.documents where tenant_id = :t and state = 'failed' "
        "and next_action <> '' group by 1"
    )
    return Counter({row[0]: row[1] for row in machines.database.rows(sql, t=tenant)})


def _good(tenant: UUID, number: int) -> tuple[bytes, dict[str, str]]:
    message = submitted(tenant, f"good-{number:04d}.txt", f"Good document {number}.".encode(), 1)
    return message.data(), message.attributes()


def _poison(tenant: UUID, kind: str, number: int, uris: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    name = f"{kind}-{number:04d}.txt"
    if kind in uris:
        message = DocumentSubmitted(
            tenant_id=tenant, external_id=name, file_name=name, source_version=1, uri=uris[kind]
        )  # fmt: skip
    else:
        message = submitted(tenant, name, f"{kind.title()} {number}.".encode(), 1)
    if kind == "undecodable":
        return b"\xff\xfe" + number.to_bytes(4, "big"), message.attributes()
    if kind == "wrong-schema":
        return message.data().replace(b'"external_id"', b'"externalId"'), message.attributes()
    return message.data(), message.attributes()
